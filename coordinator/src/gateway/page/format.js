// Numbers, money, times and states as people read them.

const grouped = new Intl.NumberFormat("en");
export const count = n => n == null ? "–" : n >= 1e9 ? (n / 1e9).toFixed(2) + " G" : n >= 1e7 ? (n / 1e6).toFixed(2) + " M" : grouped.format(Math.round(n));
export const plural = (n, one, many = one + "s") => count(n) + " " + (n === 1 ? one : many);
export const rate = n => n == null ? "–" : n.toFixed(n < 100 ? 1 : 0);
export const money = micro => micro == null ? "–" : (micro < 0 ? "−" : "") + "$" + (Math.abs(micro) / 1e6).toFixed(Math.abs(micro) >= 1e6 || !micro ? 2 : Math.abs(micro) >= 1e4 ? 4 : 6);

export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000)), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  if (h >= 48) return Math.floor(h / 24) + " d " + h % 24 + " h";
  if (h) return h + " h " + String(m).padStart(2, "0") + " min";
  return m ? m + " min " + String(s % 60).padStart(2, "0") + " s" : s + " s";
}
export function clock(ms) {
  const at = new Date(ms), time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  return at.toDateString() === new Date().toDateString() ? time : at.toLocaleDateString([], { day: "numeric", month: "short" }) + ", " + time;
}
/** A time that the planner calls never lies a century ahead. */
export const comes = ms => ms != null && ms < Date.now() + 3.2e12;

const KINDS = {
  bad: ["failed", "expired", "quiet", "lost", "gone"], good: ["completed", "ready", "working"],
  warn: ["paused_budget", "draining", "cancelling", "cancelled", "calibrating", "ending"],
};
export const kind = state => Object.keys(KINDS).find(kind => KINDS[kind].includes(state)) || "";
export const words = state => String(state).replaceAll("_", " ");

// ── Batches, as the API writes them ──
export const own = b => b.ternfleet || {};
export const title = b => own(b).name || b.metadata?.name || b.id;
export const state = b => own(b).state || b.status;
export const ended = b => ["completed", "failed", "expired", "cancelled"].includes(b.status);
export const done = b => b.request_counts.completed + b.request_counts.failed;
export const deadline = b => own(b).deadline_ms || b.expires_at * 1000;
/** Why it does not advance or how it failed, and what to do about it. */
export const waits = b => [own(b).reason, own(b).stall?.advice].filter(Boolean).join("; ");
export const link = b => "#/batches/" + encodeURIComponent(b.id);
