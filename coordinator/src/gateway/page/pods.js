// Pods: lost and live ones, their speed over the last hour, and their price.

import { get, remove } from "./api.js";
import { spark } from "./chart.js";
import { badge, bar, button, card, h, say, table } from "./dom.js";
import { clock, count, money, plural, rate, span } from "./format.js";

const HISTORY_EVERY = 30000;

export function podsView(main) {
  let past = { every_ms: 30000, tok_s: {} }, timer = 0, left = false;
  const said = h("p.hint", { role: "status" });
  const lost = table("Lost pods", [
    { label: "Pod", cls: "name", mark: p => [p.pod, p.class, p.model], make: p => [h("b", p.pod), h("small", [p.class, p.model].filter(Boolean).join(" · "))] },
    { label: "Lost", mark: p => [p.at, Math.floor(Date.now() / 10000)], make: p => [clock(p.at), h("small", span(Date.now() - p.at) + " ago")] },
    { label: "Why", cls: "wide", mark: p => p.why },
    { label: "Tokens", cls: "n", mark: p => count(p.tokens) },
    { label: "Cost", cls: "n", mark: p => money(p.cost_usd_micro) },
    { label: "Action", mark: p => p.pod, make: p => button("Dismiss", async () => { try { await remove("/api/pods/lost/" + encodeURIComponent(p.pod)); } catch (error) { say(said, error.message); } }, "quiet small", "Dismiss " + p.pod) },
  ]);
  const losses = card("Lost pods", h("p.hint", "A lost pod is shown until a pod of its class replaces it or you dismiss it."), lost, said);
  const pods = table("Pods", [
    { label: "Pod", cls: "name", mark: p => [p.pod, p.class, p.worker, p.model, p.version, p.isa, p.threads, p.calibration], make: p => [h("b", p.pod), h("small", [p.class, p.model].filter(Boolean).join(" · ")), details(p)] },
    { label: "State", mark: p => p.state, make: p => badge(p.state) },
    { label: "Last hour", mark: p => past.tok_s[p.worker], make: p => past.tok_s[p.worker]?.length > 1 ? spark("Speed of " + p.pod + " over the last " + span(past.every_ms * past.tok_s[p.worker].length), past.tok_s[p.worker]) : "–" },
    { label: "Speed", cls: "n", mark: p => rate(p.tok_s), make: p => [rate(p.tok_s), h("small", "tok/s")] },
    { label: "Slots", cls: "wide", mark: p => [p.slots_in_use, p.slots, p.queued_jobs], make: p => [bar("Slots of " + p.pod + " in use", [[p.slots_in_use / Math.max(p.slots, 1), ""]]), h("small", p.slots_in_use + " of " + p.slots + (p.queued_jobs ? ", " + count(p.queued_jobs) + " queued" : ""))] },
    { label: "Price", cls: "n", mark: p => [p.price_usd_micro_per_hour, p.usd_micro_per_million_tokens], make: p => [money(p.price_usd_micro_per_hour) + "/h", h("small", money(p.usd_micro_per_million_tokens) + " per 1M")] },
    { label: "Cost", cls: "n", mark: p => [p.cost_usd_micro, p.tokens], make: p => [money(p.cost_usd_micro), h("small", plural(p.tokens, "token"))] },
    { label: "Up", cls: "n", mark: p => span(10000 * Math.floor((Date.now() - p.started_at_ms) / 10000)), make: p => [span(Date.now() - p.started_at_ms), h("small", "since " + clock(p.started_at_ms))] },
  ]);
  const none = h("p.empty", "Loading …"), live = card("Pods", pods, none), spent = h("span.hint");
  main.append(h("div.top", h("h1", "Pods"), spent), losses, live);
  losses.hidden = true;

  function details(p) {
    const facts = [["Worker", p.worker], ["Host", p.host], ["Threads", p.threads + " · " + p.isa], ["Context", plural(p.context_tokens, "token")], ["Jobs", count(p.jobs_done) + " done, " + count(p.jobs_failed) + " failed"], ["Calibration", (p.calibration || []).map(at => rate(at.tok_s) + " tok/s at " + at.batch).join(", ") || "–"], ["Version", p.version]];
    return h("details", h("summary", "Details"), h("dl.facts", facts.flatMap(([name, text]) => [h("dt", name), h("dd", text)])));
  }
  async function look() {
    try { past = await get("/api/pods/history"); } catch { /* The line of the connection says what is wrong. */ }
    if (!left) timer = setTimeout(look, HISTORY_EVERY);
  }
  look();
  function update(v) {
    const sorted = [...v.pods].sort((a, b) => a.pod.localeCompare(b.pod, "en", { numeric: true }) || a.worker.localeCompare(b.worker));
    pods.update(sorted, p => p.worker);
    none.hidden = sorted.length > 0;
    say(none, v.scaling ? "0 pods, rented on demand." : "No pods. Start one with ternfleet worker --nats … --model ….");
    lost.update([...v.lost].reverse(), p => p.pod);
    losses.hidden = !v.lost.length;
    say(live.note, v.totals.pods_live + " live" + (v.lost.length ? ", " + v.lost.length + " lost" : "") + (v.workers > v.pods.length ? "; the first " + v.pods.length + " of " + v.workers + " workers are shown" : ""));
    const s = v.totals.spent;
    say(spent, s ? money(s.total_usd_micro) + " spent since " + clock(s.since) + ", " + money(s.today_usd_micro) + " of it today; " + money(s.rented_usd_micro) + " by the scaler" : "");
  }
  return { title: "Pods", update, leave: () => { left = true; clearTimeout(timer); } };
}
