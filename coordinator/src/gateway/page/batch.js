// One batch: how far it is, what it costs against quote and budget, when it ends against its deadline, its lines, and
// what can be done about it.

import { download, get, post } from "./api.js";
import { badge, bar, button, card, choice, field, h, prose, say, show } from "./dom.js";
import { clock, comes, count, deadline, done, ended, link, money, own, plural, rate, span, state, title, waits, words } from "./format.js";

const LOOK_EVERY = 2000;
const A_PAGE = 25;

/** Figures in one line: [name, text]. */
const legend = entries => h("ul.legend", entries.map(([name, text]) => h("li", name + " ", h("b", text))));

/** A value on a scale from nothing to the largest of what is shown. `marks`: [name, value, text], `range`: [from, to]. */
function meter(label, value, cls, range, marks, text) {
  const top = Math.max(value, range?.[1] || 0, ...marks.map(([, at]) => at)) * 1.04 || 1, place = at => 100 * at / top + "%";
  const fill = h("span.fill" + (cls ? "." + cls : ""));
  fill.style.width = place(value);
  const parts = [fill];
  if (range) { const part = h("span.range"); part.style.left = place(range[0]); part.style.width = place(Math.max(0, range[1] - range[0])); parts.push(part); }
  for (const [name, at] of marks) { const mark = h("span.mark", { title: name }); mark.style.left = place(at); parts.push(mark); }
  return h("div.meter", h("div.track", { role: "img", "aria-label": label }, parts), legend(text));
}

function costOf(b) {
  const o = own(b), q = o.quote, cost = o.cost_usd_micro, budget = o.budget_usd_micro, text = [["so far", money(cost)]];
  if (q) text.push(["quoted", money(q.cost_p50_usd_micro)], ["p95", money(q.cost_p95_usd_micro)]);
  text.push(["budget", budget ? money(budget) : "none"]);
  if (o.over_budget_usd_micro) text.push(["over budget, not charged", money(o.over_budget_usd_micro)]);
  const cls = budget && cost > .9 * budget ? "warn" : "";
  return [h("p.big", money(cost), h("small", cost && b.usage.output_tokens ? " " + money(1e6 * cost / b.usage.output_tokens) + " per 1M generated tokens" : "")),
    meter("Cost of " + title(b) + " against quote and budget", cost, cls, q && [q.cost_p50_usd_micro, q.cost_p95_usd_micro], budget ? [["budget", budget]] : [], text)];
}
function timeOf(b) {
  const o = own(b), begin = o.created_at_ms, due = deadline(b), now = ended(b) ? o.ended_at_ms || begin : Date.now(), estimate = ended(b) ? null : o.finish_estimate_ms;
  const known = comes(estimate), late = known && estimate > due, text = [[ended(b) ? "took" : "running for", span(now - begin)], ["deadline", clock(due)]];
  if (o.quote && comes(o.quote.finish_p50_ms)) text.push(["quoted", clock(o.quote.finish_p50_ms)]);
  if (known) text.push(["estimate", clock(estimate)]);
  const big = ended(b) ? h("p.big", clock(now), h("small", " ended")) : h("p.big" + (late ? ".late" : ""), known ? "in " + span(estimate - now) : "unknown", h("small", late ? " " + span(estimate - due) + " after the deadline" : known ? " to the end" : ""));
  return [big, meter("Time of " + title(b) + " against its deadline", now - begin, late ? "bad" : "", known ? [now - begin, estimate - begin] : null, [["deadline", due - begin]], text)];
}

export function batchView(main, id) {
  const path = "/v1/batches/" + encodeURIComponent(id), own_path = "/api/batches/" + encodeURIComponent(id);
  const head = h("h1", id), chip = h("span"), actions = h("div.actions"), note = h("p.hint", { role: "status" }), reason = h("p.reason", { hidden: true });
  const progress = h("div"), cost = h("div"), time = h("div"), facts = h("dl.facts");
  const fault = h("p.empty", { role: "alert" }, "Loading …"), all = h("div", { hidden: true });
  main.append(h("p.crumb", h("a", { href: "#/batches" }, "All batches")), h("div.top", head, chip, actions), note, reason, fault, all);
  const limits = limitsForm(), lines = linesCard();
  all.append(card("Progress", progress), h("div.two", card("Cost", cost), card("Time", time)), limits, lines, card("Details", facts));

  let batch = null, timer = 0, gone = false, filled = false;

  async function look() {
    try { draw(await get(path)); } catch (error) { fault.hidden = false; say(fault, error.status === 404 ? "Batch not found." : "The batch cannot be loaded: " + error.message); }
    if (!gone && (!batch || !ended(batch))) timer = setTimeout(look, document.hidden ? 5 * LOOK_EVERY : LOOK_EVERY);
  }
  function draw(b) {
    const first = !batch, moved = !batch || done(batch) !== done(b);
    batch = b; fault.hidden = true; all.hidden = false;
    const o = own(b), c = b.request_counts;
    say(head, title(b)); document.title = title(b) + " · Ternfleet";
    show(chip, state(b), () => badge(state(b)));
    const why = waits(b);
    reason.hidden = !why; show(reason, why, () => prose("span", why));
    show(actions, [b.output_file_id, b.error_file_id, ended(b), c.failed, done(b) > 0], () => buttons(b));
    const whole = Math.max(c.total, 1);
    show(progress, [c, o.total_is_final, b.usage, Math.round(10 * o.rate_tok_s)], () => [
      h("p.big", Math.floor(100 * done(b) / whole) + " %", h("small", " " + count(done(b)) + " of " + count(c.total) + (o.total_is_final === false ? "+" : "") + " lines answered")),
      bar("Progress of " + title(b), [[c.completed / whole, ""], [c.failed / whole, "bad"]]),
      legend([["completed", count(c.completed)], ["failed", count(c.failed)], ["waiting", count(Math.max(0, c.total - done(b)))], ["generated", plural(b.usage.output_tokens, "token")], ["speed", ended(b) ? "–" : rate(o.rate_tok_s) + " tok/s"]]),
    ]);
    show(cost, [o.cost_usd_micro, o.budget_usd_micro, o.quote], () => costOf(b));
    show(time, [o.finish_estimate_ms, deadline(b), ended(b) || Math.floor(Date.now() / 2000)], () => timeOf(b));
    const details = [["Id", b.id], ["Endpoint", b.endpoint], ["Model", b.model || "–"], ["Priority", o.priority], ["Created", clock(o.created_at_ms)], ["Prompt tokens", count(b.usage.input_tokens) + ", " + count(b.usage.input_tokens_details.cached_tokens) + " of them cached"], ["Wasted tokens", count(o.wasted_tokens)], ["Durability", words(o.durability) + ", " + plural(o.replicas, "replica")], ["Input file", b.input_file_id], ...Object.entries(b.metadata || {})];
    show(facts, details, () => details.flatMap(([name, text]) => [h("dt", name), h("dd", String(text))]));
    limits.hidden = ended(b);
    if (!filled) { limits.fill(b); filled = true; }
    if (first || moved || ended(b)) lines.freshen(first);
  }
  const tried = act => async () => { try { say(note, ""); await act(); } catch (error) { say(note, error.message); } };
  function buttons(b) {
    const found = [];
    if (b.output_file_id) found.push(button("Download results", tried(() => download("/v1/files/" + encodeURIComponent(b.output_file_id) + "/content", b.output_file_id)), "small"));
    if (b.error_file_id) found.push(button("Download errors", tried(() => download("/v1/files/" + encodeURIComponent(b.error_file_id) + "/content", b.error_file_id))));
    if (!ended(b) && done(b)) found.push(button("Download results so far", tried(() => download(path + "/results", b.id + "_so_far"))));
    if (ended(b) && b.request_counts.failed) found.push(button("Resubmit failed lines", tried(async () => { location.hash = link(await post(own_path + "/resubmit", {})); })));
    if (!ended(b)) found.push(button("Cancel batch", tried(async () => { if (confirm("Cancel " + title(b) + "? Finished answers are kept.")) draw(await post(path + "/cancel", {})); }), "quiet small danger"));
    return found;
  }

  function limitsForm() {
    const budget = h("input", { id: "b-budget", type: "number", min: "0.000001", step: "any", placeholder: "none" });
    const due = h("input", { id: "b-due", type: "datetime-local" });
    const priority = h("input", { id: "b-priority", type: "number", min: -10, max: 10 });
    const said = h("span.hint", { role: "status" });
    let before = [];
    const local = ms => new Date(ms - new Date(ms).getTimezoneOffset() * 60000).toISOString().slice(0, 16);
    const made = card("Limits", h("form", { onsubmit: async event => {
      event.preventDefault();
      const change = {};
      if (budget.value && budget.value !== before[0]) change.budget_usd_micro = Math.round(budget.value * 1e6);
      if (due.value && due.value !== before[1]) change.deadline = Math.round(new Date(due.value) / 1000);
      if (priority.value !== before[2]) change.priority = +priority.value;
      if (!Object.keys(change).length) return say(said, "no changes");
      try { const b = await post(path + "/ternfleet", change); draw(b); made.fill(b); say(said, "changed"); } catch (error) { say(said, error.message); }
    } }, h("div.row", field("Budget, $", budget), field("Deadline", due), field("Priority, -10 to 10", priority)), h("div.actions", h("button", "Change"), said)));
    made.fill = b => {
      const o = own(b);
      budget.value = o.budget_usd_micro ? o.budget_usd_micro / 1e6 : ""; due.value = local(deadline(b)); priority.value = o.priority;
      before = [budget.value, due.value, priority.value];
    };
    return made;
  }

  function linesCard() {
    const list = h("ul.lines"), running = h("ul.running", { "aria-label": "Running lines" }), said = h("span.hint", { role: "status" }), more = h("button.quiet.small", { type: "button", onclick: () => load(next) }, "More lines");
    const search = h("input", { id: "line-find", type: "search", placeholder: "Text, error or id", "aria-label": "Find lines by answer, error or id", oninput: () => { clearTimeout(typing); typing = setTimeout(() => load(0), 300); } });
    let wanted = "", next = 0, asked = 0, typing = 0, shown = 0, at = 0, busy = false;
    const filter = choice("Status", [["", "All"], ["ok", "Completed"], ["failed", "Failed"]], "", value => { wanted = value; load(0); });
    const made = card("Lines", h("div.filter", filter, search), running, list, h("div.pager", said, more));
    more.hidden = true;

    async function load(after) {
      const mine = ++asked, query = new URLSearchParams({ limit: A_PAGE, after });
      if (wanted) query.set("status", wanted);
      if (search.value.trim()) query.set("q", search.value.trim());
      busy = true; at = Date.now();
      try {
        const page = await get(own_path + "/lines?" + query);
        if (mine !== asked) return;
        if (!after) { shown = 0; list.replaceChildren(); }
        list.append(...page.lines.map(row));
        shown += page.lines.length; next = page.next;
        running.hidden = !page.running.length;
        show(running, page.running, () => page.running.map(r => h("li", "line " + count(r.line) + " is running on " + r.pod + ", " + plural(r.generated, "token"))));
        more.hidden = next == null;
        say(said, shown ? plural(shown, "line") + " shown" + (next == null ? "" : " of " + count(page.answered) + " answered") : next != null ? "nothing found so far" : page.answered ? "no line matches" : "no answers yet");
      } catch (error) { if (mine === asked) say(said, "The lines cannot be loaded: " + error.message); }
      busy = false;
    }
    function row(l) {
      return h("li", h("div.line-head", h("b", "Line " + count(l.line)), l.custom_id && l.custom_id !== "line-" + l.line ? h("span", l.custom_id) : null, h("span.state." + (l.error ? "bad" : "good"), l.error ? words(l.error.code) : "completed"),
        l.error ? null : h("span", plural(l.completion_tokens, "token") + (l.finish === "length" ? ", cut off at the token limit" : "")), h("span", (l.total_ms / 1000).toFixed(1) + " s"), h("span", l.worker)),
      h("div.pair", h("div.said.in", { tabindex: "0" }, l.input ?? ""), h("div.said" + (l.error ? ".bad" : ""), { tabindex: "0" }, l.error ? l.error.message : l.text)));
    }
    // While the first page has room, new answers fill it.
    made.freshen = first => { if (first || (!busy && shown < A_PAGE && Date.now() - at > LOOK_EVERY)) load(0); };
    made.leave = () => { asked++; clearTimeout(typing); };
    return made;
  }

  look();
  return { title: "Batch", leave: () => { gone = true; clearTimeout(timer); lines.leave(); } };
}
