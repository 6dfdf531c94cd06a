// Scaling: the limits, what the plan does next and why, what is rented, which classes there are.

import { get, post } from "./api.js";
import { badge, card, field, h, say, show, table } from "./dom.js";
import { clock, comes, count, money, rate, span, title, words } from "./format.js";
import { overview } from "./live.js";
import { figures } from "./overview.js";

const LOOK_EVERY = 5000;
const named = id => { const known = overview()?.batches.find(b => b.id === id); return known ? title(known) : id; };

export function scalingView(main) {
  const fault = h("p.empty", { role: "status" }, "Loading …"), halted = h("p.notice", { hidden: true }), sums = figures("Spending"), all = h("div", { hidden: true });
  const acts = h("ul.lines"), batches = table("Batches in the plan", [
    { label: "Batch", cls: "name", mark: b => b.batch, make: b => h("a", { href: "#/batches/" + encodeURIComponent(b.batch) }, named(b.batch)) },
    { label: "In time", mark: b => [b.kept, b.binds], make: b => h("span.state." + (b.kept ? "good" : "warn"), b.kept ? "yes" : "at risk: " + words(b.binds)) },
    { label: "Tokens left", cls: "n", mark: b => count(b.tokens_left) },
    { label: "Cost", cls: "n", mark: b => money(b.cost_usd_micro) },
    { label: "Done, p95", cls: "n", mark: b => comes(b.finish_p95_ms) ? clock(b.finish_p95_ms) : "not possible with these limits" },
  ]);
  const pods = table("Rented pods", [
    { label: "Pod", cls: "name", mark: p => [p.name, p.class, p.provider_id], make: p => [h("b", p.name), h("small", [p.class, p.data_center, p.provider_id].filter(Boolean).join(" · "))] },
    { label: "State", cls: "wide", mark: p => [p.state, p.ending], make: p => [badge(p.state), p.ending ? h("small", p.ending) : null] },
    { label: "Speed", cls: "n", mark: p => rate(p.rate_tok_s) + " tok/s" },
    { label: "Price", cls: "n", mark: p => money(p.price_usd_micro_per_hour) + "/h" },
    { label: "Billed", cls: "n", mark: p => money(p.billed_usd_micro) },
    { label: "Since", cls: "n", mark: p => clock(p.since) },
  ]);
  const classes = table("Classes", [
    { label: "Class", cls: "name", mark: c => c.name, make: c => h("b", c.name) },
    { label: "Pods", cls: "n", mark: c => c.pods + " of " + c.pods_max },
    { label: "Speed", cls: "n", mark: c => rate(c.rate_tok_s) + " tok/s" },
    { label: "Price", cls: "n", mark: c => money(c.price_usd_micro_per_hour) + "/h" },
    { label: "1M tokens", cls: "n", mark: c => c.rate_tok_s > 0 ? money(c.price_usd_micro_per_hour * 1e6 / 3600 / c.rate_tok_s) : "–" },
    { label: "Notes", cls: "wide", mark: c => [c.enabled, c.refused, c.failed], make: c => [
      c.enabled ? c.refused ? h("p.late", "not ordered: " + c.refused) : "may be rented" : "excluded by the limits",
      c.failed ? h("details", h("summary", "Last failure: " + c.failed.pod + ", " + clock(c.failed.at)), h("p", c.failed.why), c.failed.log.map(line => h("p", h("code", line)))) : null] },
  ]);
  const none = h("p.empty", "No rented pods."), rented = card("Rented pods", pods, none), plan = card("Plan", acts, batches), form = limitsForm();
  main.append(h("div.top", h("h1", "Scaling")), fault, halted, all);
  all.append(sums, form.card, plan, rented, card("Classes", classes));

  let timer = 0, left = false, filled = false, preview = false;
  async function look() {
    try { const v = await get("/api/scale"); if (!preview) draw(v); } catch (error) {
      all.hidden = true; fault.hidden = false;
      // The code "conflict" means that this coordinator rents no pods.
      say(fault, error.code === "conflict" ? "Scaling is off. " + error.message : error.message);
    }
    if (!left) timer = setTimeout(look, LOOK_EVERY);
  }
  const limit = (n, unit) => n == null ? "no limit" : "of " + money(n) + " " + unit;
  function draw(v) {
    all.hidden = false; fault.hidden = true;
    halted.hidden = !v.halted; say(halted, "No pods are ordered: " + v.halted);
    const hourly = v.pods.reduce((sum, p) => sum + p.price_usd_micro_per_hour, 0);
    sums.update([["Spent by the scaler", money(v.spent_usd_micro), "in total, " + v.provider], ["Today", money(v.spent_today_usd_micro), limit(v.usd_micro_per_day_max, "per day")], ["Price", money(hourly), limit(v.usd_micro_per_hour_max, "per hour")],
      ["Pods", count(v.pods.length), v.pods_min + " to " + v.pods_max], ["Plan", money(v.plan_usd_micro), "for the rest of the work; bound " + money(v.bound_usd_micro)], ["Idle limit", span(v.idle_limit_ms), "then a pod is returned"]]);
    if (!filled) { form.fill(v); filled = true; }
    show(acts, v.acts, () => v.acts.length ? v.acts.map(a => h("li", h("div.line-head", h("b", a.what === "give_back" ? "return" : words(a.what)), h("span", a.pod), h("span", a.class)), h("div", a.why))) : h("li", "Nothing to do: the running pods match the plan."));
    say(plan.note, preview ? "preview; nothing was changed" : "");
    batches.update(v.batches, b => b.batch);
    pods.update(v.pods, p => p.name); none.hidden = v.pods.length > 0;
    classes.update(v.classes, c => c.name);
  }
  function limitsForm() {
    const number = (id, more) => h("input", { id, type: "number", min: 0, ...more });
    const min = number("s-min", { required: true }), max = number("s-max", { required: true }), hour = number("s-hour", { step: "any", placeholder: "no limit" }), day = number("s-day", { step: "any", placeholder: "no limit" }), idle = number("s-idle", { step: "any", required: true });
    const ticks = h("div.ticks"), said = h("span.hint", { role: "status" });
    const dials = () => {
      const chosen = [...ticks.querySelectorAll("input")], names = chosen.filter(one => one.checked).map(one => one.value);
      return { pods_min: +min.value, pods_max: +max.value, usd_micro_per_hour_max: Math.round(hour.value * 1e6), usd_micro_per_day_max: Math.round(day.value * 1e6), idle_limit_ms: Math.round(idle.value * 60000), classes: names.length === chosen.length ? [] : names };
    };
    const made = card("Limits", h("form", { onsubmit: async event => {
      event.preventDefault();
      const wanted = event.submitter?.value || "set";
      if (![...ticks.querySelectorAll("input")].some(one => one.checked)) return say(said, "choose at least one class");
      try {
        const v = await post(wanted === "plan" ? "/api/scale/plan" : "/api/scale", dials());
        preview = wanted === "plan"; draw(v); say(said, preview ? "the plan below shows what would be done" : "changed");
        if (preview) setTimeout(() => { preview = false; }, 20000);
      } catch (error) { say(said, error.message); }
    } }, h("div.row", field("Minimum pods", min), field("Maximum pods", max, "0 returns all pods"), field("Maximum $ per hour", hour), field("Maximum $ per day", day), field("Idle minutes", idle, "then a pod is returned")),
      h("fieldset", h("legend", "Classes that may be rented"), ticks),
      h("div.actions", h("button", { value: "set" }, "Change"), h("button.quiet", { value: "plan" }, "Preview the plan"), said)));
    return { card: made, fill: v => {
      min.value = v.pods_min; max.value = v.pods_max; idle.value = v.idle_limit_ms / 60000;
      hour.value = v.usd_micro_per_hour_max == null ? "" : v.usd_micro_per_hour_max / 1e6; day.value = v.usd_micro_per_day_max == null ? "" : v.usd_micro_per_day_max / 1e6;
      ticks.replaceChildren(...v.classes.map(c => h("label.tick", h("input", { type: "checkbox", value: c.name, checked: c.enabled }), c.name)));
    } };
  }
  look();
  return { title: "Scaling", leave: () => { left = true; clearTimeout(timer); } };
}
