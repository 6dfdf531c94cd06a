// All batches: a form for a new one, then the list, open ones first; the gateway pages and filters.

import { get } from "./api.js";
import { badge, bar, card, choice, h, prose, say, table } from "./dom.js";
import { clock, comes, count, deadline, done, ended, link, money, own, plural, rate, span, state, title, waits } from "./format.js";
import { overview } from "./live.js";
import { submitCard } from "./submit.js";

const A_PAGE = 25;
const FILTERS = [["", "All"], ["open", "Open"], ["ended", "Ended"], ["completed", "Completed"], ["failed", "Failed"], ["expired", "Expired"], ["cancelled", "Cancelled"]];

/** One row a batch. */
export function batchTable(label) {
  return table(label, [
    { label: "Batch", cls: "name", mark: b => [title(b), b.id], make: b => [h("a", { href: link(b) }, title(b)), title(b) === b.id ? null : h("small", b.id)] },
    { label: "State", cls: "wide", mark: b => [state(b), waits(b)], make: b => [badge(state(b)), waits(b) ? prose("small", waits(b)) : null] },
    { label: "Progress", cls: "wide", mark: b => [b.request_counts, own(b).total_is_final], make: b => {
      const c = b.request_counts, all = Math.max(c.total, 1);
      return [bar("Progress of " + title(b), [[c.completed / all, ""], [c.failed / all, "bad"]]),
        h("small", count(done(b)) + " of " + count(c.total) + (own(b).total_is_final === false ? "+" : "") + (c.failed ? ", " + count(c.failed) + " failed" : ""))];
    } },
    { label: "Cost", cls: "n", mark: b => [own(b).cost_usd_micro, own(b).budget_usd_micro], make: b => [money(own(b).cost_usd_micro), h("small", own(b).budget_usd_micro ? "of " + money(own(b).budget_usd_micro) : "no budget")] },
    { label: "Finish", cls: "w", mark: b => [own(b).ended_at_ms, own(b).finish_estimate_ms && Math.round(own(b).finish_estimate_ms / 5000), deadline(b), ended(b) || Math.floor(Date.now() / 5000)], make: b => {
      const o = own(b);
      if (ended(b)) return [o.ended_at_ms ? clock(o.ended_at_ms) : "–", h("small", o.ended_at_ms ? "took " + span(o.ended_at_ms - o.created_at_ms) : "")];
      const known = comes(o.finish_estimate_ms);
      return [h("span" + (known && o.finish_estimate_ms > deadline(b) ? ".late" : ""), known ? "in " + span(o.finish_estimate_ms - Date.now()) : "unknown"), h("small", "due " + clock(deadline(b)))];
    } },
    { label: "Tokens", cls: "n", mark: b => [b.usage?.output_tokens, Math.round(own(b).rate_tok_s)], make: b => [count(b.usage?.output_tokens || 0), h("small", ended(b) ? "generated" : rate(own(b).rate_tok_s || 0) + " tok/s")] },
  ]);
}

export function batchesView(main) {
  const list = batchTable("Batches"), note = h("p.empty", { role: "status" }, "Loading …");
  const search = h("input", { id: "find", type: "search", placeholder: "Name or id", "aria-label": "Find batches by name or id", oninput: () => { clearTimeout(typing); typing = setTimeout(from, 250); } });
  const state = choice("State", FILTERS, "", value => { wanted = value; from(); });
  const place = h("span.hint", { role: "status" });
  const back = h("button.quiet.small", { type: "button", onclick: () => { pages.pop(); load(); } }, "Newer");
  const on = h("button.quiet.small", { type: "button", onclick: () => { pages.push(shown.next); load(); } }, "Older");
  const all = card("All batches", h("div.filter", state, search), list, note, h("div.pager", place, back, on));
  main.append(h("div.top", h("h1", "Batches")), submitCard(), all);

  // Cursors of the pages behind this one, this one's last; the first has none.
  let pages = [""], wanted = "", typing = 0, shown = { batches: [], next: null, counts: {} }, asked = 0, counted = "", at = 0;
  const isFirst = () => pages.length === 1 && !wanted && !search.value.trim();
  const from = () => { pages = [""]; load(); };

  async function load() {
    const mine = ++asked, query = new URLSearchParams({ limit: A_PAGE });
    if (wanted) query.set("state", wanted);
    if (search.value.trim()) query.set("q", search.value.trim());
    if (pages.at(-1)) query.set("after", pages.at(-1));
    at = Date.now();
    try {
      const found = isFirst() && overview() || await get("/api/batches?" + query);
      if (mine === asked) draw(found);
    } catch (error) { if (mine === asked) { list.hidden = true; note.hidden = false; say(note, "The list cannot be loaded: " + error.message); } }
  }
  function draw(found) {
    shown = found; counted = JSON.stringify(found.counts);
    list.update(found.batches, b => b.id);
    const sum = Object.values(found.counts).reduce((sum, n) => sum + n, 0), before = (pages.length - 1) * A_PAGE;
    note.hidden = found.batches.length > 0;
    say(note, found.next ? "Nothing found so far. Continue with Older." : sum ? "No batch matches." : "No batches yet. Upload a file above, or run ternfleet submit FILE.jsonl.");
    say(place, found.batches.length ? count(before + 1) + " to " + count(before + found.batches.length) + (wanted || search.value.trim() ? "" : " of " + count(sum)) : "");
    back.disabled = pages.length === 1; on.disabled = !found.next;
    for (const one of state.children) {
      const [value, name] = FILTERS[[...state.children].indexOf(one)];
      const open = ["validating", "in_progress", "paused_budget", "finalizing", "cancelling"], of = value === "open" ? open : value === "ended" ? ["completed", "failed", "expired", "cancelled"] : value ? [value] : Object.keys(found.counts);
      say(one, name + " " + count(of.reduce((sum, state) => sum + (found.counts[state] || 0), 0)));
    }
    say(all.note, plural(sum, "batch", "batches"));
  }
  // The stream brings the first page. Another page is requested again, at most every 5 s, when batches have come or ended,
  // and while something on it runs.
  function update(v) {
    if (isFirst()) return draw(v);
    const fresh = new Map(v.batches.map(b => [b.id, b]));
    if (shown.batches.some(b => fresh.has(b.id))) draw({ ...shown, batches: shown.batches.map(b => fresh.get(b.id) || b) });
    const stale = counted !== JSON.stringify(v.counts) || shown.batches.some(b => !ended(b) && !fresh.has(b.id));
    if (stale && Date.now() - at > 5000) load();
  }
  return { title: "Batches", update, leave: () => { asked++; clearTimeout(typing); } };
}
