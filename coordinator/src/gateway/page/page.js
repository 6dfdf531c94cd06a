"use strict";
// Everything that comes from elsewhere is put on the page by textContent; no text is ever parsed as HTML.
const $ = id => document.getElementById(id);
const stored = (box, name) => { try { return box.getItem(name) || ""; } catch { return ""; } };
const keep = (box, name, value) => { try { box.setItem(name, value); } catch { /* private windows may refuse */ } };

// ── Words and numbers ──
const number = new Intl.NumberFormat("en");
const count = n => n == null ? "–" : n >= 1e9 ? (n / 1e9).toFixed(2) + " G" : n >= 1e6 ? (n / 1e6).toFixed(2) + " M" : number.format(Math.round(n));
const money = micro => micro == null ? "–" : "$" + (micro / 1e6).toFixed(Math.abs(micro) >= 1e6 || !micro ? 2 : Math.abs(micro) >= 1e4 ? 4 : 6);
const span = ms => { const s = Math.max(0, Math.round(ms / 1000)), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  return h >= 48 ? Math.floor(h / 24) + " d " + h % 24 + " h" : h ? h + " h " + String(m).padStart(2, "0") + " min" : m ? m + " min " + String(s % 60).padStart(2, "0") + " s" : s + " s"; };
const clock = ms => { const d = new Date(ms), time = d.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return d.toDateString() === new Date().toDateString() ? time : d.toLocaleDateString([], { day: "numeric", month: "short" }) + ", " + time; };
const BAD = new Set(["failed", "expired", "lost", "gone"]), GOOD = new Set(["completed", "ready"]), WARN = new Set(["paused_budget", "draining", "cancelling", "cancelled", "calibrating"]);
const kind = s => BAD.has(s) ? "bad" : GOOD.has(s) ? "good" : WARN.has(s) ? "warn" : "";

// ── Nodes ──
function node(tag, text, cls) { const e = document.createElement(tag); if (text != null) e.textContent = text; if (cls) e.className = cls; return e; }
function svg(tag, attributes) { const e = document.createElementNS("http://www.w3.org/2000/svg", tag); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); return e; }
const set = (id, text) => { const e = $(id); if (e.textContent !== text) e.textContent = text; };
function button(text, label, act) { const b = node("button", text, "quiet small"); b.type = "button"; b.setAttribute("aria-label", label); b.onclick = act; return b; }
/** Parts are shares of the whole: [share, class]. */
function bar(label, parts, thin) {
  const b = node("div", null, thin ? "bar thin" : "bar"); b.setAttribute("role", "progressbar"); b.setAttribute("aria-label", label);
  b.setAttribute("aria-valuenow", Math.floor(100 * Math.min(1, parts.reduce((sum, [share]) => sum + share, 0))));
  for (const [share, cls] of parts) { const i = node("i", null, cls); i.style.width = 100 * Math.min(1, Math.max(0, share)) + "%"; b.append(i); }
  return b;
}
/** Text in which `…` marks what is typed. */
function prose(tag, text, cls) { const e = node(tag, null, cls); text.split("`").forEach((part, i) => e.append(i % 2 ? node("code", part) : part)); return e; }
function cell(...children) { const f = document.createDocumentFragment(); f.append(...children.filter(c => c != null)); return f; }
/** Rows by key: one that is unchanged keeps its nodes, so that focus and text selection survive the next second. */
function sync(body, items, key, columns) {
  const old = new Map([...body.children].map(row => [row.dataset.key, row]));
  items.forEach((item, at) => {
    let row = old.get(key(item)); old.delete(key(item));
    if (!row) { row = node("tr"); row.dataset.key = key(item); row.setAttribute("role", "row");
      for (const column of columns) { const td = node("td", null, column.cls); td.dataset.label = column.label; td.setAttribute("role", "cell"); row.append(td); } }
    columns.forEach((column, i) => {
      const td = row.children[i], mark = JSON.stringify(column.mark(item));
      if (td.dataset.mark !== mark) { td.dataset.mark = mark; const made = column.make(item); td.replaceChildren(typeof made === "string" ? document.createTextNode(made) : made); }
    });
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] || null);
  });
  for (const row of old.values()) row.remove();
}
const plain = (label, text, cls) => ({ label, cls, mark: text, make: text });

// ── Talking to the gateway ──
let key = stored(sessionStorage, "key");
const headers = more => key ? { ...more, Authorization: "Bearer " + key } : { ...more };
async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers) });
  if (answer.ok) return answer;
  let message = answer.status + " " + answer.statusText;
  try { message = (await answer.json()).error.message; } catch { /* no JSON: the status has to do */ }
  if (answer.status === 401) { $("key-form").hidden = false; $("key-note").textContent = key ? "This key is not known." : ""; }
  throw new Error(message);
}
const post = (path, value) => call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
/** Server-sent events by fetch, because EventSource cannot send a key. */
async function events(answer, on) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const { value, done } = await reader.read(); if (done) return; rest += value;
    for (let at; (at = rest.indexOf("\n\n")) >= 0; rest = rest.slice(at + 2)) {
      let name = "message"; const data = [];
      for (const line of rest.slice(0, at).split("\n")) if (line.startsWith("event:")) name = line.slice(6).trim(); else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      if (data.length) on(name, data.join("\n"));
    }
  }
}
async function download(path, name) {
  try {
    const blob = await (await call(path)).blob(), a = node("a");
    a.href = URL.createObjectURL(blob); a.download = name.endsWith(".jsonl") ? name : name + ".jsonl"; a.click();
    setTimeout(() => URL.revokeObjectURL(a.href), 1000);
  } catch (e) { set("batches-note", e.message); }
}

// ── Charts ──
const charts = {};
/** The next of 1, 1.2, 1.6, 2, 3, 4, 5, 6, 8 times a power of ten, so that half of it reads well too. */
const round = most => { if (!(most > 0)) return 1; const unit = 10 ** Math.floor(Math.log10(most)); return unit * [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].find(step => step * unit >= most); };
function chart(id, points, value, show) {
  const box = $(id), plot = box.parentNode, note = $(id + "-note"); charts[id] = { points, value, show };
  if (points.length < 2) return;
  const values = points.map(value), most = Math.max(...values), top = round(most), from = points[0].at, wide = Math.max(points.at(-1).at - from, 1);
  const x = at => 100 * (at - from) / wide, y = v => 39.5 - 38.5 * v / top;
  const line = points.map((p, i) => (i ? "L" : "M") + x(p.at).toFixed(2) + " " + y(values[i]).toFixed(2)).join("");
  box.replaceChildren(...[0, .5, 1].map(share => svg("line", { class: "grid", x1: 0, x2: 100, y1: y(top * share), y2: y(top * share) })),
    svg("path", { class: "area", d: line + "L100 39.5L0 39.5Z" }), svg("path", { class: "line", d: line }));
  plot.querySelectorAll("span").forEach(e => e.remove());
  for (const share of [0, .5, 1]) { const e = node("span", show(top * share, true)); e.style.top = 100 * y(top * share) / 40 + "%"; plot.append(e); }
  plot.nextElementSibling.firstElementChild.textContent = span(wide) + " ago";
  if (!box.matches(":hover")) note.textContent = "now " + show(values.at(-1)) + " · most " + show(most);
  box.setAttribute("aria-label", box.getAttribute("aria-label").split(":")[0] + ": now " + show(values.at(-1)) + ", most " + show(most));
}
for (const id of ["c-rate", "c-price"]) {
  $(id).onpointermove = e => { const c = charts[id]; if (!c || c.points.length < 2) return;
    const box = $(id).getBoundingClientRect(), share = (e.clientX - box.left) / box.width, from = c.points[0].at, at = from + share * (c.points.at(-1).at - from);
    const p = c.points.reduce((a, b) => Math.abs(b.at - at) < Math.abs(a.at - at) ? b : a);
    $(id + "-note").textContent = clock(p.at) + " · " + c.show(c.value(p));
    $(id).querySelector(".at")?.remove(); $(id).append(svg("line", { class: "at", x1: 100 * share, x2: 100 * share, y1: 0, y2: 40 })); };
  $(id).onpointerleave = () => { $(id).querySelector(".at")?.remove(); const c = charts[id]; if (c) chart(id, c.points, c.value, c.show); };
}

// ── The overview ──
const own = b => b.ternfleet || {}, title = b => own(b).name || b.metadata?.name || b.id;
const done = b => b.request_counts.completed + b.request_counts.failed, ended = b => ["completed", "failed", "expired", "cancelled"].includes(b.status);
const exact = b => own(b).state || b.status, deadline = b => own(b).deadline_ms || b.expires_at * 1000;
const BATCHES = [
  { label: "Batch", cls: "name wide", mark: b => [title(b), b.id], make: b => cell(node("b", title(b)), title(b) === b.id ? null : node("small", b.id)) },
  { label: "State", mark: b => [exact(b), own(b).reason], make: b => { const s = node("span", exact(b).replaceAll("_", " "), "state " + kind(exact(b))); if (own(b).reason) s.title = own(b).reason; return cell(s, own(b).reason && !ended(b) ? node("small", own(b).reason) : null); } },
  { label: "Progress", cls: "wide", mark: b => [b.request_counts, own(b).total_is_final], make: b => { const c = b.request_counts, all = Math.max(c.total, 1);
    return cell(bar("Progress of " + title(b), [[c.completed / all, ""], [c.failed / all, "bad"]]), node("small", count(done(b)) + " of " + count(c.total) + (own(b).total_is_final === false ? "+" : "") + (c.failed ? " · " + count(c.failed) + " failed" : ""))); } },
  { label: "Cost and budget", mark: b => [own(b).cost_usd_micro, own(b).budget_usd_micro], make: b => { const cost = own(b).cost_usd_micro, most = own(b).budget_usd_micro;
    return most ? cell(bar("Budget spent by " + title(b), [[cost / most, cost > .9 * most ? "warn" : ""]], true), money(cost), node("small", "of " + money(most))) : cell(money(cost), node("small", "no budget")); } },
  { label: "Finish and deadline", mark: b => [own(b).ended_at_ms, own(b).finish_estimate_ms && Math.round(own(b).finish_estimate_ms / 5000), deadline(b), ended(b) || Math.floor(Date.now() / 5000)], make: b => { const o = own(b), late = !ended(b) && o.finish_estimate_ms > deadline(b);
    if (ended(b)) return cell(o.ended_at_ms ? clock(o.ended_at_ms) : "–", node("small", o.ended_at_ms && o.created_at_ms ? "took " + span(o.ended_at_ms - o.created_at_ms) : ""));
    return cell(node("span", o.finish_estimate_ms ? "in " + span(o.finish_estimate_ms - Date.now()) : "not known yet", late ? "late" : ""), node("small", "due " + clock(deadline(b)))); } },
  { label: "Tokens", cls: "n", mark: b => [b.usage?.output_tokens, Math.round(own(b).rate_tok_s)], make: b => cell(count(b.usage?.output_tokens || 0), node("small", ended(b) ? "generated" : (own(b).rate_tok_s || 0).toFixed(1) + " tok/s")) },
  { label: "Results", mark: b => [b.output_file_id, b.error_file_id, ended(b), done(b) > 0], make: b => {
    const f = document.createDocumentFragment(), name = title(b);
    if (b.output_file_id) f.append(button("output", "Download the output of " + name, () => download("/v1/files/" + encodeURIComponent(b.output_file_id) + "/content", b.output_file_id)));
    if (b.error_file_id) f.append(button("errors", "Download the errors of " + name, () => download("/v1/files/" + encodeURIComponent(b.error_file_id) + "/content", b.error_file_id)));
    if (!ended(b) && done(b)) f.append(button("so far", "Download the results of " + name + " so far", () => download("/v1/batches/" + encodeURIComponent(b.id) + "/results", b.id + "_so_far")));
    if (!ended(b)) f.append(button("cancel", "Cancel " + name, async () => { if (confirm("Cancel " + name + "? What was answered stays.")) try { await post("/v1/batches/" + encodeURIComponent(b.id) + "/cancel", {}); } catch (e) { set("batches-note", e.message); } }));
    return f.childNodes.length ? f : "–"; } },
];
let fastest = 1;
const PODS = [
  { label: "Pod", cls: "name wide", mark: p => [p.pod, p.class, p.worker, p.model], make: p => { const b = node("b", p.pod); b.title = p.worker; return cell(b, node("small", [p.class, p.model].filter(Boolean).join(" · "))); } },
  { label: "State", mark: p => p.state, make: p => node("span", p.state, "state " + kind(p.state)) },
  { label: "tok/s", cls: "n", mark: p => [p.tok_s.toFixed(1), fastest], make: p => cell(bar("Speed of " + p.pod + " against the fastest", [[p.tok_s / fastest, ""]], true), p.tok_s.toFixed(1)) },
  plain("$ an hour", p => money(p.price_usd_micro_per_hour), "n"), plain("$ per 1M", p => money(p.usd_micro_per_million_tokens), "n"),
  { label: "Slots", mark: p => [p.slots_in_use, p.slots], make: p => cell(bar("Slots of " + p.pod + " in use", [[p.slots_in_use / Math.max(p.slots, 1), ""]], true), p.slots_in_use + " of " + p.slots) },
  plain("Queue", p => count(p.queued_jobs), "n"), plain("Busy", p => Math.round(100 * p.busy_ratio) + " %", "n"), plain("Threads", p => String(p.threads), "n"), plain("ISA", p => p.isa),
  plain("Tokens", p => count(p.tokens), "n"), plain("Cost", p => money(p.cost_usd_micro), "n"),
];
function show(v) {
  const t = v.totals;
  set("f-rate", t.tok_s.toFixed(1)); set("f-price", money(t.usd_micro_per_hour)); set("f-kappa", t.tok_s > 0 ? money(t.usd_micro_per_hour * 1e6 / 3600 / t.tok_s) : "–");
  set("f-open", count(t.open_jobs)); set("f-queue", count(t.running_jobs) + " in slots, " + count(t.queued_jobs) + " queued"); set("f-age", t.oldest_open_ms == null ? "–" : span(t.oldest_open_ms));
  set("f-pods", count(t.pods_live)); set("f-slots", count(t.running_jobs) + " of " + count(t.slots) + " slots in use");
  const said = v.warnings.join("\n"), box = $("warnings");
  if (box.dataset.said !== said) { box.dataset.said = said; box.hidden = !v.warnings.length; box.querySelector("ul").replaceChildren(...v.warnings.map(w => prose("li", w))); }
  if (v.history) { chart("c-rate", v.history, p => p.tok_s, (n, short) => n.toFixed(n && n < 10 ? 1 : 0) + (short ? "" : " tok/s")); chart("c-price", v.history, p => p.usd_micro_per_hour, n => "$" + (n / 1e6).toFixed(n >= 1e7 ? 1 : 2)); }
  for (const [id, list] of [["batches", v.batches], ["pods", v.pods]]) { $("no-" + id).hidden = list.length > 0; $(id).closest(".scroll").hidden = !list.length; }
  const open = v.batches.filter(b => !ended(b)).length; set("batches-note", v.batches.length ? open + " running, " + (v.batches.length - open) + " ended" : "");
  set("pods-note", v.pods.length ? t.pods_live + " live of " + v.pods.length : "");
  fastest = Math.max(1, ...v.pods.map(p => p.tok_s));
  sync($("batches"), v.batches, b => b.id, BATCHES); sync($("pods"), v.pods.sort((a, b) => a.pod.localeCompare(b.pod, "en", { numeric: true }) || a.worker.localeCompare(b.worker)), p => p.worker, PODS);
}
function link(text, cls) { set("link", text); $("link").className = "link " + cls; }
async function live() {
  for (;;) {
    try {
      await events(await call("/api/live"), (name, data) => { const v = JSON.parse(data); if (name === "overview") { show(v); link("live", "on"); $("key-form").hidden = true; } else link(v.error.message, "off"); });
      link("the connection ended; trying again", "off");
    } catch (e) { link("not connected: " + e.message, "off"); }
    await new Promise(resolve => setTimeout(resolve, 2000));
  }
}

// ── Forms ──
$("key-form").onsubmit = e => { e.preventDefault(); key = $("key").value.trim(); keep(sessionStorage, "key", key); $("key-note").textContent = "trying …"; };
let running = null;
$("t-stop").onclick = () => running?.abort();
$("t-prompt").onkeydown = e => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); $("try").requestSubmit(); } };
$("try").onsubmit = async e => {
  e.preventDefault(); running?.abort();
  const out = $("t-out"), mine = running = new AbortController(), began = performance.now(); let first = 0, usage = null;
  out.textContent = ""; out.setAttribute("aria-busy", "true"); $("t-stop").hidden = false; set("t-note", "waiting …");
  const chat = $("t-kind").value === "chat", text = $("t-prompt").value;
  const body = { max_tokens: +$("t-max").value, temperature: +$("t-temp").value, stream: true, stream_options: { include_usage: true }, ...(chat ? { messages: [{ role: "user", content: text }] } : { prompt: text }) };
  if ($("t-seed").value !== "") body.seed = +$("t-seed").value;
  try {
    const answer = await call(chat ? "/v1/chat/completions" : "/v1/completions", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: mine.signal });
    await events(answer, (_, data) => { if (data === "[DONE]") return; const v = JSON.parse(data); if (v.error) throw new Error(v.error.message);
      const piece = v.choices?.[0]?.text ?? v.choices?.[0]?.delta?.content ?? ""; if (piece && !first) first = performance.now();
      usage = v.usage || usage; out.append(piece); out.scrollTop = out.scrollHeight; });
    const spent = (performance.now() - began) / 1000;
    if (mine === running) set("t-note", usage ? usage.completion_tokens + " tokens in " + spent.toFixed(1) + " s, first after " + Math.round(first - began) + " ms" : "");
  } catch (error) { if (mine === running) { if (error.name === "AbortError") set("t-note", "stopped"); else { set("t-note", ""); out.append((out.textContent ? "\n" : "") + error.message); } } }
  if (mine === running) { out.removeAttribute("aria-busy"); $("t-stop").hidden = true; }
};
let uploaded = null;
async function upload(file) {
  if (uploaded?.file === file) return uploaded.id;
  const form = new FormData(); form.append("purpose", "batch"); form.append("file", file);
  const value = await (await call("/v1/files", { method: "POST", body: form })).json();
  uploaded = { file, id: value.id }; return value.id;
}
$("u-file").onchange = async () => { $("u-quote").hidden = true; set("u-note", "");
  const head = await $("u-file").files[0]?.slice(0, 65536).text(); if (head?.split("\n")[0].includes("/v1/chat/completions") || head?.split("\n")[0].includes("\"messages\"")) $("u-endpoint").value = "/v1/chat/completions"; };
function quoted(q) {
  const box = $("u-quote"), facts = node("dl"), far = Date.now() + 3.2e12;
  for (const [name, text] of [["Cost", money(q.cost_p50_usd_micro) + ", at most " + money(q.cost_p95_usd_micro) + " in 19 of 20 cases"],
    ["Finish", q.finish_p50_ms < far ? clock(q.finish_p50_ms) + ", " + clock(q.finish_p95_ms) + " at the latest in 19 of 20 cases" : "not with the pods there are"],
    ["Work", count(q.work_tokens_low) + " to " + count(q.work_tokens_high) + " tokens"], ["Pods", (q.pods || []).map(p => p.pods + " × " + p.class).join(", ") || "none"]]) facts.append(node("dt", name), node("dd", text));
  const better = (word, other) => other ? node("p", word + ": " + money(other.cost_usd_micro) + (other.finish_p95_ms < far ? ", done by " + clock(other.finish_p95_ms) : "")) : null;
  box.replaceChildren(...[facts, prose("p", q.explanation, q.kept ? "" : "late"), better("Cheaper", q.cheaper), better("Faster", q.faster)].filter(Boolean)); box.hidden = false;
}
$("upload").onsubmit = async e => {
  e.preventDefault(); const file = $("u-file").files[0], hours = +$("u-hours").value, wanted = e.submitter?.value || "submit", buttons = $("upload").querySelectorAll("button");
  const limits = {}; if (hours) limits.deadline = Math.round(Date.now() / 1000 + hours * 3600); if ($("u-budget").value !== "") limits.budget_usd_micro = Math.round(+$("u-budget").value * 1e6);
  buttons.forEach(b => b.disabled = true); set("u-note", "uploading …");
  try {
    const input_file_id = await upload(file);
    if (wanted === "quote") { quoted(await (await post("/v1/quotes", { input_file_id, ...limits })).json()); set("u-note", ""); }
    else {
      const batch = await (await post("/v1/batches", { input_file_id, endpoint: $("u-endpoint").value, completion_window: hours ? Math.max(1, Math.ceil(hours * 60)) + "m" : "24h", ternfleet: { name: file.name, ...limits } })).json();
      uploaded = null; $("u-quote").hidden = true; set("u-note", "accepted as " + batch.id);
    }
  } catch (error) { set("u-note", error.message); }
  buttons.forEach(b => b.disabled = false);
};

// ── Theme, address, start ──
const THEMES = ["system", "light", "dark"];
function theme(name) { if (name === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name; set("theme", "Theme: " + name); keep(localStorage, "theme", name); }
theme(THEMES.includes(stored(localStorage, "theme")) ? stored(localStorage, "theme") : "system");
$("theme").onclick = () => theme(THEMES[(THEMES.indexOf(stored(localStorage, "theme")) + 1) % 3]);
set("base", location.origin + "/v1");
live();
