// A new batch: a file, its limits, a quote, and its submission.

import { post, upload } from "./api.js";
import { card, field, h, prose, say } from "./dom.js";
import { clock, comes, count, link, money } from "./format.js";

/** What a quote says. */
function quoteFacts(q) {
  const facts = [
    ["Cost", money(q.cost_p50_usd_micro) + " (p50), " + money(q.cost_p95_usd_micro) + " (p95)"],
    ["Finish", comes(q.finish_p50_ms) ? clock(q.finish_p50_ms) + " (p50)" + (comes(q.finish_p95_ms) ? ", " + clock(q.finish_p95_ms) + " (p95)" : "") : "not possible with these pods"],
    ["Work", count(q.work_tokens_low) + " to " + count(q.work_tokens_high) + " tokens" + (q.cached_lines ? "; " + count(q.cached_lines) + " lines need none" : "")],
    ["Pods", (q.pods || []).map(p => p.pods + " × " + p.class).join(", ") || "none"],
  ];
  const other = (word, o) => o ? h("p", word + ": " + money(o.cost_usd_micro) + (comes(o.finish_p95_ms) ? ", done by " + clock(o.finish_p95_ms) : "")) : null;
  return [h("dl.facts", facts.flatMap(([name, text]) => [h("dt", name), h("dd", text)])), prose("p" + (q.kept ? "" : ".late"), q.explanation), other("Cheaper", q.cheaper), other("Faster", q.faster)];
}

export function submitCard() {
  const file = h("input", { id: "file", type: "file", accept: ".jsonl,.ndjson,.json,.txt", required: true, onchange: chosen });
  const endpoint = h("select", { id: "endpoint" }, h("option", "/v1/completions"), h("option", "/v1/chat/completions"));
  const hours = h("input", { id: "hours", type: "number", min: "0.1", max: "168", step: "any", placeholder: "24" });
  const budget = h("input", { id: "budget", type: "number", min: "0.000001", step: "any", placeholder: "none" });
  const name = h("input", { id: "name", maxlength: 200, placeholder: "the file's name" });
  const priority = h("input", { id: "priority", type: "number", min: -10, max: 10, value: "0" });
  const risk = h("input", { id: "risk", type: "checkbox" });
  const note = h("span.hint", { role: "status" }), answer = h("div", { hidden: true });
  const quote = h("button.quiet", { value: "quote" }, "Get a quote"), go = h("button", { value: "submit" }, "Submit");
  const form = h("form", { onsubmit: submit },
    h("div.row", field("File of JSON lines", file, "Lines in OpenAI's Batch format, or short lines with a prompt"), field("Endpoint", endpoint)),
    h("details", h("summary", "Deadline, budget and name"), h("div.row", field("Deadline, hours", hours), field("Budget, $", budget), field("Name", name), field("Priority", priority, "-10 last, 10 first")),
      h("label.tick", risk, "Submit even if the quote exceeds the deadline or budget")),
    h("div.actions", go, quote, note), answer);
  let stored = null;

  async function chosen() {
    answer.hidden = true; say(note, ""); stored = null;
    const head = (await file.files[0]?.slice(0, 65536).text())?.split("\n")[0] || "";
    if (head.includes("/v1/chat/completions") || head.includes("\"messages\"")) endpoint.value = "/v1/chat/completions";
    name.placeholder = file.files[0]?.name || "the file's name";
  }
  async function submit(event) {
    event.preventDefault();
    const wanted = event.submitter?.value || "submit", limits = {};
    if (hours.value) limits.deadline = Math.round(Date.now() / 1000 + hours.value * 3600);
    if (budget.value) limits.budget_usd_micro = Math.round(budget.value * 1e6);
    go.disabled = quote.disabled = true;
    try {
      say(note, "uploading …");
      stored ??= await upload(file.files[0]);
      if (wanted === "quote") {
        say(note, "computing the quote …");
        answer.replaceChildren(...quoteFacts(await post("/v1/quotes", { input_file_id: stored, ...limits })).filter(Boolean));
        answer.hidden = false; say(note, "");
      } else {
        const window = hours.value ? Math.max(1, Math.ceil(hours.value * 60)) + "m" : "24h";
        const batch = await post("/v1/batches", { input_file_id: stored, endpoint: endpoint.value, completion_window: window, ternfleet: { name: name.value.trim() || file.files[0].name, priority: +priority.value || 0, accept_at_risk: risk.checked || undefined, ...limits } });
        stored = null; form.reset(); answer.hidden = true;
        note.replaceChildren("accepted: ", h("a", { href: link(batch) }, batch.id));
      }
    } catch (error) { say(note, error.message); }
    go.disabled = quote.disabled = false;
  }
  return card("New batch", form);
}
