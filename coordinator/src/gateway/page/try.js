// A prompt, tried on the fleet: streamed, with sampling and, where wanted, a schema that the answer keeps to.

import { events, get, send } from "./api.js";
import { card, field, h, say } from "./dom.js";
import { plural } from "./format.js";

const EXAMPLE = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}';

export function tryView(main) {
  const number = (id, value, more) => h("input", { id, type: "number", value: String(value), ...more });
  const prompt = h("textarea", { id: "prompt", rows: 5, required: true, onkeydown: event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); } } });
  prompt.value = "Once upon a time";
  const system = h("textarea", { id: "system", rows: 2, placeholder: "none" }), kind = h("select", { id: "kind" }, h("option", { value: "completion" }, "Completion"), h("option", { value: "chat" }, "Chat"));
  const model = h("select", { id: "model" }, h("option", { value: "" }, "any"));
  const most = number("most", 80, { min: 1, max: 100000 }), temperature = number("temperature", .7, { min: 0, max: 2, step: .05 });
  const optional = (id, more) => h("input", { id, type: "number", placeholder: "model's own", step: "any", ...more });
  const topP = optional("top-p", { min: .01, max: 1 }), topK = optional("top-k", { min: 1, step: 1 }), minP = optional("min-p", { min: 0, max: 1 }), seed = optional("seed", { min: 0, step: 1, placeholder: "any" }), presence = optional("presence", { min: -2, max: 2, placeholder: "0" }), frequency = optional("frequency", { min: -2, max: 2, placeholder: "0" });
  const until = h("input", { id: "until", placeholder: "none" }), schema = h("textarea.code", { id: "schema", rows: 4, placeholder: EXAMPLE, spellcheck: "false" });
  const note = h("span.hint", { role: "status" }), stop = h("button.quiet", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const out = h("div.answer", { role: "region", "aria-label": "Generated text", tabindex: 0, "data-empty": "The text appears here, token by token." });
  const form = h("form", { onsubmit: run }, field("Prompt", prompt, "Ctrl+Enter generates"),
    h("div.row", field("Kind", kind), field("Model", model), field("Maximum tokens", most), field("Temperature", temperature)),
    h("details", h("summary", "More sampling"), h("div.row", field("Top p", topP), field("Top k", topK), field("Min p", minP), field("Seed", seed), field("Presence penalty", presence), field("Frequency penalty", frequency), field("Stop at", until))),
    h("details", h("summary", "System message and JSON schema"), field("System message", system, "Only for chat"), field("JSON schema", schema, "The answer will be JSON that is valid under this schema")),
    h("div.actions", h("button", "Generate"), stop));
  const answer = card("Answer", out);
  answer.note.replaceWith(note);
  main.append(h("div.top", h("h1", "Try a prompt")), h("div.two", card("Prompt", form), answer));
  let running = null;

  get("/v1/models").then(list => {
    model.append(...list.data.map(one => h("option", { value: one.id }, one.id)));
    if (!list.data.length) say(note, "no worker serves a model");
  }).catch(error => say(note, error.message));

  function body() {
    const chat = kind.value === "chat", text = prompt.value;
    const made = { max_tokens: +most.value, temperature: +temperature.value, stream: true, stream_options: { include_usage: true } };
    if (chat) made.messages = [...(system.value.trim() ? [{ role: "system", content: system.value }] : []), { role: "user", content: text }]; else made.prompt = text;
    if (model.value) made.model = model.value;
    for (const [name, input] of [["top_p", topP], ["top_k", topK], ["min_p", minP], ["seed", seed], ["presence_penalty", presence], ["frequency_penalty", frequency]]) if (input.value !== "") made[name] = +input.value;
    if (until.value) made.stop = [until.value];
    if (schema.value.trim()) made.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema.value) } };
    return made;
  }
  async function run(event) {
    event.preventDefault();
    running?.abort();
    let made;
    try { made = body(); } catch (error) { return say(note, "The schema is not JSON: " + error.message); }
    const mine = running = new AbortController(), began = performance.now();
    let first = null, usage = null;
    out.textContent = ""; out.setAttribute("aria-busy", "true"); stop.hidden = false; say(note, "waiting …");
    try {
      const stream = await send(made.messages ? "/v1/chat/completions" : "/v1/completions", made, mine.signal);
      await events(stream, (_, data) => {
        if (data === "[DONE]") return;
        const value = JSON.parse(data);
        if (value.error) throw new Error(value.error.message);
        const piece = value.choices?.[0]?.text ?? value.choices?.[0]?.delta?.content ?? "";
        if (piece) first ??= performance.now();
        usage = value.usage || usage;
        out.append(piece); out.scrollTop = out.scrollHeight;
      });
      const spent = (performance.now() - began) / 1000;
      const parts = [usage && plural(usage.completion_tokens, "token") + " in " + spent.toFixed(1) + " s", first && "first after " + Math.round(first - began) + " ms"];
      if (mine === running) say(note, parts.filter(Boolean).join(", ") || "the answer is empty");
    } catch (error) {
      if (mine === running) {
        if (error.name === "AbortError") say(note, "stopped"); else { say(note, "failed"); out.append((out.textContent ? "\n" : "") + error.message); }
      }
    }
    if (mine === running) { out.removeAttribute("aria-busy"); stop.hidden = true; }
  }
  return { title: "Try", leave: () => running?.abort() };
}
