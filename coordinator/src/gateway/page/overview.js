// The first view: what needs attention, the fleet in figures, the last hour, what runs.

import { chart } from "./chart.js";
import { card, h, prose, say, show } from "./dom.js";
import { count, ended, money, plural, rate, span } from "./format.js";
import { batchTable } from "./batches.js";
import { history } from "./live.js";

const OPEN_SHOWN = 8;

const dollars = n => "$" + (n / 1e6).toFixed(n >= 1e7 ? 1 : 2);

/** Figures with a name above and a remark below each: [name, figure, remark]. */
export function figures(label) {
  const made = h("dl.card.figures", { "aria-label": label });
  made.update = entries => {
    while (made.children.length < entries.length) made.append(h("div", h("dt"), h("dd"), h("dd.small", h("small"))));
    entries.forEach(([name, figure, remark], i) => {
      const [dt, dd, small] = made.children[i].children;
      say(dt, name); say(dd, figure); say(small.firstChild, remark);
    });
  };
  return made;
}

export function overviewView(main) {
  const notice = h("section.notice", { "aria-label": "Needs attention", "aria-live": "polite", hidden: true });
  const sums = figures("Fleet totals");
  sums.update(["Cost of 1M tokens", "Speed", "Price", "Spent", "Open lines", "Pods"].map(name => [name, "–", " "]));
  const speed = chart("Tokens per second", p => p.tok_s, (n, short) => n.toFixed(n && n < 10 ? 1 : 0) + (short ? "" : " tok/s"));
  const price = chart("Dollars per hour", p => p.usd_micro_per_hour, dollars);
  const open = batchTable("Open batches"), none = h("p.empty", "Loading …");
  const batches = card("Open batches", open, none);
  main.append(h("div.top", h("h1", "Overview")), notice, sums, h("div.two", speed, price), batches);

  function update(v) {
    const t = v.totals, spent = t.spent;
    notice.hidden = !v.warnings.length;
    show(notice, v.warnings, () => [h("h2", "Needs attention"), h("ul", v.warnings.map(text => prose("li", text)))]);
    sums.update([
      ["Cost of 1M tokens", t.tok_s > 0 ? money(t.usd_micro_per_hour * 1e6 / 3600 / t.tok_s) : "–", "at the measured speed"],
      ["Speed", rate(t.tok_s), "tokens per second"],
      ["Price", money(t.usd_micro_per_hour), "per hour"],
      ["Spent", spent ? money(spent.total_usd_micro) : "–", spent ? money(spent.today_usd_micro) + " today" : "loading"],
      ["Open lines", count(t.open_jobs), t.oldest_open_ms == null ? "none waiting" : "oldest " + span(t.oldest_open_ms)],
      ["Pods", count(t.pods_live), t.pods_live || !v.scaling ? t.running_jobs + " of " + t.slots + " slots in use" : "rented on demand"],
    ]);
    speed.update(history()); price.update(history());
    const found = v.batches.filter(b => !ended(b)).slice(0, OPEN_SHOWN);
    open.update(found, b => b.id);
    none.hidden = found.length > 0;
    const all = Object.values(v.counts).reduce((sum, n) => sum + n, 0);
    show(none, all > 0, () => all ? [h("span", "No open batches. "), h("a", { href: "#/batches" }, "All batches")] : [h("span", "No batches yet. "), h("a", { href: "#/batches" }, "Run one"), h("span", " or "), h("a", { href: "#/try" }, "try a prompt"), "."]);
    show(batches.note, [found.length, all], () => h("a", { href: "#/batches" }, plural(all, "batch", "batches") + " in total"));
  }
  return { title: "Overview", update };
}
