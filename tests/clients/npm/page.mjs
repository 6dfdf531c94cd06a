// The page at `/` in a real browser, on one fleet with API keys and a scaler: first paint, signing in, every view at
// three widths in both themes under axe-core, forms, keyboard, hostile names, no foreign request.
//
//     node page.mjs TERNFLEET MODULES [SHOTS]
//
// TERNFLEET is the program; a fleet of its own is started with it and ended. MODULES is the folder where `npm ci` put
// playwright-core and axe-core (target/npm). With SHOTS, screenshots are written there. BATCHES=10000 has so many
// batches end first. The browser is Debian's chromium, or the one that CHROMIUM names. Called by scripts/system-tests.sh.

import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const [program, modules, shots] = process.argv.slice(2);
const { chromium } = createRequire(resolve(modules, "package.json"))("playwright-core");
const axe = readFileSync(join(modules, "node_modules/axe-core/axe.min.js"), "utf8");
const folder = mkdtempSync(join(tmpdir(), "ternfleet-page-")), data = join(folder, "data");
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));
const children = [];
let browser = null, page = null;

// Also when the script itself breaks: nothing that it started outlives it.
process.on("exit", () => { for (const child of children) child.kill("SIGKILL"); });
async function end(code) {
  await browser?.close().catch(() => {});
  for (const child of children) { child.kill("SIGINT"); for (let i = 0; i < 150 && child.exitCode === null && child.signalCode === null; i++) await sleep(100); child.kill("SIGKILL"); }
  rmSync(folder, { recursive: true, force: true });
  process.exit(code);
}
async function rule(text, holds) {
  let held = false;
  const began = Date.now();
  try { held = typeof holds === "function" ? await holds() : holds; } catch (error) { text += ` (${error.message.split("\n")[0]})`; }
  console.log(`${held ? "ok  " : "FAIL"} ${String(Date.now() - began).padStart(6)} ms  ${text}`);
  if (!held && page) { await page.screenshot({ path: join(shots || tmpdir(), "page-failed.png"), fullPage: true }).catch(() => {}); console.log((await page.textContent("body").catch(() => "")).slice(0, 2000)); }
  if (!held) await end(1);
}
async function until(what, seconds = 30) {
  for (const stop = Date.now() + seconds * 1000; Date.now() < stop; await sleep(100)) if (await what()) return true;
  return false;
}

// ── The fleet, its keys, its batches ──
const keys = [["default", "--operator"], ["acme"]].map(([tenant, ...more]) => JSON.parse(execFileSync(program, ["key", "new", "--json", "--tenant", tenant, ...more])));
const keys_file = join(folder, "keys.toml");
writeFileSync(keys_file, keys.map(k => `[[key]]\ntenant = "${k.tenant}"\nblake3 = "${k.blake3}"\noperator = ${k.operator}\n`).join("\n"));
const [operator, guest] = keys.map(k => k.key);
const start = (what, env) => { const child = spawn(program, what, { stdio: "ignore", env: { ...process.env, ...env } }); children.push(child); return child; };

browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
// One worker on one thread leaves a processor to the browser; pictures show two.
const workers = shots ? 2 : 1;
const fleet = start(["up", "--dir", data, "--workers", `${workers}`, "--scale", "0..1", "--threads", "1", "--nats-port", "0", "--http-port", "0", "--price-usd-per-hour", "0.34,1.19"], { TERNFLEET_GATEWAY__KEYS_FILE: keys_file });
await rule("a fleet starts", () => until(() => existsSync(join(data, "addresses.json")) || fleet.exitCode !== null, 120));
const addresses = JSON.parse(readFileSync(join(data, "addresses.json")));
const base = addresses.http.startsWith("http") ? addresses.http : `http://${addresses.http}`;
const auth = { Authorization: "Bearer " + operator }, json = { ...auth, "content-type": "application/json" };

async function store(lines) {
  const form = new FormData(); form.append("purpose", "batch");
  form.append("file", new Blob([lines.map(line => JSON.stringify(line) + "\n").join("")]), "x.jsonl");
  return (await (await fetch(`${base}/v1/files`, { method: "POST", headers: auth, body: form })).json()).id;
}
async function submit(name, input_file_id, more = {}) {
  const answer = await fetch(`${base}/v1/batches`, { method: "POST", headers: json, body: JSON.stringify({ input_file_id, endpoint: "/v1/completions", completion_window: "24h", ternfleet: { name, ...more } }) });
  // A tenant may have 1,000 running batches.
  if (answer.status === 429) { await sleep(1000); return submit(name, input_file_id, more); }
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}
const line = (i, tokens, more = {}) => ({ custom_id: `tale-${i}`, method: "POST", url: "/v1/completions", body: { prompt: `Once upon a time, in village ${i},`, max_tokens: tokens, seed: i, ...more } });
const lines = (count, tokens) => Array.from({ length: count }, (_, i) => line(i, tokens));
const overview = async () => (await fetch(`${base}/api/overview`, { headers: auth })).json();

const many = +process.env.BATCHES || 40;
const ended = async () => { const { completed = 0, failed = 0 } = (await overview()).counts; return completed + failed; };
await rule(`${many} batches end`, async () => {
  const blank = await store([line(0, 0, { max_tokens: -1 })]);
  for (let at = 0; at < many; at += 20) {
    await Promise.all(Array.from({ length: Math.min(20, many - at) }, (_, i) => submit(`past ${at + i}`, blank)));
  }
  return until(async () => await ended() >= many, 600);
});
const hostile = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`;
// Long enough to be open until the last rule cancels it, on a fast machine too: what only has ended is not on the overview.
const SEA = 12_000, sea = "tales of the sea, told at great length by an old fisherman_who_never_once_in_his_life_used_a_space_where_an_underscore_would_do";
await rule("three more are accepted", async () => {
  await submit(hostile, await store(lines(3, 4)));
  await submit(sea, await store(lines(SEA, 120)), { budget_usd_micro: 2_000_000, accept_at_risk: true });
  return (await submit("winter tales", await store([...lines(30, 40), line(98, 4, { stop: 7 }), { custom_id: "too long", method: "POST", url: "/v1/completions", body: { prompt: "word ".repeat(700), max_tokens: 4 } }]))).object === "batch";
});

// ── Signing in ──
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
page = await context.newPage();
const asked = [], complaints = [];
page.on("request", request => asked.push(request.url()));
page.on("console", message => { if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) complaints.push(message.text()); });
page.on("pageerror", error => complaints.push(error.message));
const text = selector => page.textContent(selector);
// By its role: the same word may stand in a hint that is hidden.
const press = name => page.getByRole("button", { name, exact: true }).click();
const go = async (hash, heading) => { await page.evaluate(hash => { location.hash = hash; }, hash); await page.waitForFunction(heading => document.querySelector("main h1")?.textContent.includes(heading), heading); };
const signIn = async key => { await page.fill("#key", key); await page.keyboard.press("Enter"); };

await page.goto(base);
await rule("a fleet with keys asks for one", () => until(async () => (await text("main")).includes("Sign in")));
await rule("a wrong key is told as that", async () => { await signIn("tf-wrong"); return until(async () => (await text("main")).includes("not valid")); });
await rule("a right one lets in", async () => { await signIn(guest); return until(async () => (await text("#link")) === "live"); });
await rule("a key of another tenant shows none of these batches", () => until(async () => (await text("main")).includes("No batches yet")));
await rule("and may not scale", async () => { await go("#/scaling", "Scaling"); return until(async () => (await text("main")).includes("operator")); });
await rule("signing out and in again changes who asks", async () => { await page.click("#signout"); await page.waitForSelector("#key"); await signIn(operator); await go("#/", "Overview"); return until(async () => (await text("main")).includes("tales of the sea")); });

// ── First paint ──
await page.reload();
const paint = await page.evaluate(() => new Promise(resolve => new PerformanceObserver(list => { const e = list.getEntriesByName("first-contentful-paint")[0]; if (e) resolve(e.startTime); }).observe({ type: "paint", buffered: true })));
await page.waitForSelector("main tbody tr");
const listed = await page.evaluate(() => performance.now());
// By their content: entries of files that the browser had already tell no size.
const bytes = await page.evaluate(async () => {
  const files = [location.href.split("#")[0], ...performance.getEntriesByType("resource").map(e => e.name).filter(name => name.includes("/page/"))];
  const sizes = await Promise.all(files.map(async file => (await (await fetch(file)).blob()).size));
  return sizes.reduce((sum, size) => sum + size, 0);
});
console.log(`     first contentful paint ${paint.toFixed(0)} ms, first batches listed after ${listed.toFixed(0)} ms, page of ${bytes} bytes, ${many} ended batches`);
await rule("the page is under 100 KB", bytes < 100_000 && bytes > 10_000);
await rule("it goes live", () => until(async () => (await text("#link")) === "live"));
await rule("speed, price and what was spent are figures", () => until(async () => { const said = await text("dl.figures"); return /Speed[1-9][\d,.]*/.test(said) && /Price\$\d/.test(said) && /Spent\$0\.\d/.test(said); }, 60));

// ── Batches ──
await go("#/batches", "Batches");
const rows = page.locator("main tbody tr");
await rule("open batches come before ended ones, and the totals are true", () => until(async () => (await rows.count()) === 25 && /in progress|validating/.test(await rows.nth(0).textContent()) && (await text(".pager")).includes(`of ${(many + 3).toLocaleString("en")}`)));
await rule("a hostile name is text and nothing else", async () => (await page.locator("main td a", { hasText: "<script>" }).count()) === 1 && (await page.locator("main img, main script").count()) === 0 && (await page.title()).startsWith("Batches"));
await rule("progress moves by itself", async () => { const cell = page.locator("main tr", { hasText: "tales of the sea" }).locator("td").nth(2); const before = await cell.textContent(); return until(async () => (await cell.textContent()) !== before); });
await rule("older ones are a page on, and back again", async () => {
  const first = await rows.nth(0).textContent();
  await press("Older"); if (!await until(async () => (await text(".pager")).startsWith("26 to"))) return false;
  const second = await rows.nth(0).textContent();
  await press("Newer"); return first !== second && until(async () => (await text(".pager")).startsWith("1 to"));
});
await rule("they are found by name", async () => { await page.fill("#find", "PAST 7"); return until(async () => (await rows.count()) >= 1 && (await rows.allTextContents()).every(row => row.includes("past 7"))); });
await rule("and by state", async () => { await page.fill("#find", ""); await page.click(".choice button[data-value=open]"); return until(async () => (await rows.count()) <= 3 && (await rows.allTextContents()).every(row => !row.includes("past"))); });
const file = content => page.setInputFiles("#file", { name: "from the page.jsonl", mimeType: "application/jsonl", buffer: Buffer.from(content) });
await rule("a file gets a quote", async () => {
  await file('{"prompt": "Once", "max_tokens": 5}\n{"prompt": "Twice", "max_tokens": 5}\n');
  await page.click("main details summary"); await page.fill("#hours", "2"); await page.click("button[value=quote]");
  return until(async () => (await page.locator("form dl.facts dd").count()) === 4 || (await text("form .actions")).includes("nothing"));
});
await rule("and is submitted", async () => { await page.check("#risk"); await page.click("button[value=submit]"); return until(async () => (await text("form .actions")).includes("accepted: batch_")); });

// ── One batch ──
await page.click("form .actions a");
await rule("a batch has a page, and its end is seen there", () => until(async () => (await text("main h1")) === "from the page.jsonl" && (await text(".top .state")) === "completed", 60));
await rule("its results can be downloaded", async () => {
  const [got] = await Promise.all([page.waitForEvent("download"), press("Download results")]);
  return readFileSync(await got.path(), "utf8").trim().split("\n").length === 2;
});
await rule("its lines are shown with what was asked", () => until(async () => { const said = await text("ul.lines"); return said.includes("Line 1") && said.includes("Once") && said.includes("Twice") && said.includes("5 tokens"); }));
const winter = (await overview()).batches.find(b => b.ternfleet.name === "winter tales");
await go("#/batches/" + winter.id, "winter tales");
await rule("a batch with failed lines tells why each failed", async () => { if (!await until(async () => (await text(".top .state")) === "completed", 120)) return false; await page.click(".choice button[data-value=failed]"); return until(async () => { const said = await text("ul.lines"); return said.includes("invalid request") && said.includes("too long") && !said.includes("tale-3"); }); });
await rule("lines are searched by what was answered or by id", async () => { await page.click(".filter .choice button[data-value='']"); await page.fill("#line-find", "TALE-17"); return until(async () => (await page.locator("ul.lines > li").count()) === 1 && (await text("ul.lines")).includes("village 17,")); });
await rule("what failed for good reason is not sent again, and the rest is", async () => { await press("Resubmit failed lines"); return until(async () => (await text("main h1")) === "winter tales (again)" || (await text("main")).includes("would fail again")); });
const running = (await overview()).batches.find(b => b.ternfleet.name === sea);
await go("#/batches/" + running.id, "tales of the sea");
await rule("a running batch shows cost against its budget, time against its deadline, lines that run", () => until(async () => { const said = await text("main"); return said.includes("budget $2.00") && said.includes("deadline") && /is running on local-\d/.test(said) && /[1-9]\d* of 12,000/.test(said); }));
await rule("its results so far can be downloaded", async () => {
  const [got] = await Promise.all([page.waitForEvent("download"), press("Download results so far")]);
  return JSON.parse(readFileSync(await got.path(), "utf8").split("\n")[0]).response.status_code === 200;
});
await rule("budget and priority are changed", async () => { await page.fill("#b-budget", "3.5"); await page.fill("#b-priority", "2"); await press("Change"); return until(async () => (await text("main")).includes("budget $3.50") && (await text("main")).includes("Priority2")); });

// ── Pods, scaling, a prompt ──
await go("#/pods", "Pods");
await rule("every pod is shown with its line of the last hour", () => until(async () => (await rows.count()) === workers && (await page.locator("svg.spark").count()) === workers, 90));
const stray = start(["worker", "--nats", addresses.nats, "--threads", "1", "--pod", "spot-7", "--pod-class", "spot", "--price-usd-per-hour", "0.2", "--model", process.env.TERNFLEET_TEST_MODEL || "models/storyteller/storyteller.gguf"]);
await rule("another pod comes", async () => (await until(async () => (await text("main")).includes("spot-7") || stray.exitCode !== null, 60)) && stray.exitCode === null);
const spent = async () => (await overview()).totals.spent.total_usd_micro, before = await spent();
stray.kill("SIGKILL");
await rule("one that dies stays visible as lost, with when and why", () => until(async () => { const said = await text("main"); return said.includes("Lost pods") && /spot-7.*no heartbeat for 5 s/.test(said) && await page.locator("section[aria-label='Lost pods']").first().isVisible(); }));
await rule("what it has cost stays spent", async () => (await spent()) >= before);
await rule("until it is dismissed", async () => { await press("Dismiss spot-7"); return until(async () => !(await page.locator("section[aria-label='Lost pods']").first().isVisible())); });
await go("#/scaling", "Scaling");
await rule("the scaler shows its limits and its ledger, which is the page's", () => until(async () => { const { rented_usd_micro, total_usd_micro } = (await overview()).totals.spent; return (await page.inputValue("#s-max")) === "1" && (await text("dl.figures")).includes("Spent by the scaler$") && rented_usd_micro <= total_usd_micro; }));
await rule("a plan is previewed and limits are changed", async () => { await page.fill("#s-max", "0"); await page.click("button[value=plan]"); if (!await until(async () => (await text("main")).includes("what would be done"))) return false; await page.click("button[value=set]"); return until(async () => (await text("dl.figures")).includes("0 to 0")); });
await go("#/try", "Try");
await rule("a prompt is answered token by token, by keyboard alone", async () => {
  await page.focus("#prompt"); await page.keyboard.press("Control+A"); await page.keyboard.type("The old fisherman"); await page.keyboard.press("Control+Enter");
  return until(async () => /\d+ tokens in/.test(await text("main")) && (await text(".answer")).length > 10);
});
await rule("an answer keeps to a schema", async () => {
  await page.locator("main summary", { hasText: "schema" }).click();
  await page.fill("#schema", '{"type": "object", "properties": {"fish": {"type": "boolean"}}, "required": ["fish"], "additionalProperties": false}'); await press("Generate");
  return until(async () => { try { return typeof JSON.parse(await text(".answer")).fish === "boolean"; } catch { return false; } });
});
await rule("a schema that is no JSON is told as that", async () => { await page.fill("#schema", "{"); await press("Generate"); return until(async () => (await text("main")).includes("The schema is not JSON")); });
await rule("a running prompt can be stopped", async () => {
  await page.fill("#schema", ""); await page.fill("#most", "400");
  // In one go: the small model may be done before a second journey to the browser.
  await page.evaluate(() => { document.querySelector("main form").requestSubmit(); [...document.querySelectorAll("main button")].find(b => b.textContent === "Stop").click(); });
  return until(async () => (await text("main")).includes("stopped"));
});

// ── Addresses, storage and answers that are not as they should be ──
await rule("an address that names no view shows the overview", async () => { for (const hash of ["#/constructor", "#/__proto__/x"]) { await go("#/try", "Try"); await go(hash, "Overview"); } return true; });
await rule("a batch that cannot be one is told as that", async () => { await go("#/batches/%", "%"); return until(async () => /Batch not found|cannot be loaded/.test(await text("main"))); });
await rule("an answer that is not the gateway's is told by its status", async () => {
  const other = [/\/api\/scale$/, route => route.fulfill({ status: 502, contentType: "application/json", body: "{}" })];
  await page.route(...other); await go("#/scaling", "Scaling");
  const told = await until(async () => (await text("main")).includes("502"));
  await page.unroute(...other); return told;
});
await rule("an answer without text has no time to its first token", async () => {
  const other = [/\/v1\/completions$/, route => route.fulfill({ status: 200, contentType: "text/event-stream", body: 'data: {"choices": [], "usage": {"completion_tokens": 1}}\n\ndata: [DONE]\n\n' })];
  await page.route(...other); await go("#/try", "Try"); await press("Generate");
  const told = await until(async () => /1 token in \d/.test(await text("main")));
  await page.unroute(...other); return told && !(await text("main")).includes("first after");
});
await rule("a browser that blocks storage signs in all the same", async () => {
  const other = await browser.newContext();
  await other.addInitScript(() => { for (const box of ["sessionStorage", "localStorage"]) Object.defineProperty(window, box, { get() { throw new DOMException("blocked", "SecurityError"); } }); });
  const tab = await other.newPage(); await tab.goto(base); await tab.fill("#key", operator); await tab.keyboard.press("Enter");
  const seen = await until(async () => (await tab.textContent("main")).includes("tales of the sea"));
  await other.close(); return seen;
});

// ── Every view, at three widths, in both themes ──
const cdp = await context.newCDPSession(page);
const check = async () => JSON.parse((await cdp.send("Runtime.evaluate", { awaitPromise: true, returnByValue: true, expression: axe + ";axe.run(document, { resultTypes: ['violations'] }).then(r => JSON.stringify(r.violations.map(v => [v.impact, v.id, v.nodes[0].html.slice(0, 120)])))" })).result.value);
const views = { overview: ["#/", "Overview"], batches: ["#/batches", "Batches"], batch: ["#/batches/" + running.id, "tales"], pods: ["#/pods", "Pods"], scaling: ["#/scaling", "Scaling"], try: ["#/try", "Try"] };
const found = [], wide = [], papers = new Set();
let checked = 0;
for (const [name, [hash, heading]] of Object.entries(views)) for (const width of [390, 768, 1280]) for (const scheme of ["light", "dark"]) {
  await page.setViewportSize({ width, height: 900 }); await page.emulateMedia({ colorScheme: scheme });
  if (width === 390 && scheme === "light") { await go(hash, heading); await sleep(1200); }
  papers.add(scheme + await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor));
  const over = await page.evaluate(() => [...document.querySelectorAll("html, main *")].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && (e === document.documentElement || getComputedStyle(e).overflowX !== "visible") && !["INPUT", "SELECT", "TEXTAREA"].includes(e.tagName)).map(e => e.tagName + "." + e.className));
  if (over.length) wide.push(`${name} ${width}: ${over[0]}`);
  const serious = (await check()).filter(([impact]) => impact === "serious" || impact === "critical");
  found.push(...serious.map(v => `${name} ${width} ${scheme}: ${v.join(" ")}`));
  checked++;
  if (shots && (width !== 768)) await page.screenshot({ path: join(shots, `${name}-${width}-${scheme}.png`), fullPage: width > 1000 });
}
await rule(`axe-core finds nothing serious in ${checked} pictures ${found.slice(0, 5).join("; ")}`, found.length === 0);
await rule(`nothing is clipped or scrolls sideways ${wide.slice(0, 5).join("; ")}`, wide.length === 0);
await rule("each theme has one colour of paper", papers.size === 2);
await rule("the switch overrules the system", async () => { const paper = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor); await page.emulateMedia({ colorScheme: "dark" }); const dark = await paper(); await page.click("#theme"); const light = await paper(); await page.click("#theme"); await page.click("#theme"); return dark !== light && dark === await paper(); });
await page.setViewportSize({ width: 1280, height: 900 });
await rule("the keyboard alone signs out nobody, reaches every view and every control in order", async () => {
  await go("#/batches", "Batches");
  await page.evaluate(() => { document.activeElement.blur(); document.getElementById("skip").focus(); });
  const seen = [];
  for (let i = 0; i < 60; i++) { seen.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent)); await page.keyboard.press("Tab"); }
  const order = ["Scaling", "theme", "file", "endpoint", "find"].map(name => seen.indexOf(name));
  return order.every((at, i) => at > (i ? order[i - 1] : -1));
});
await rule("the skip link leads to the content, Enter on a batch to its page", async () => {
  await page.focus("#skip"); await page.keyboard.press("Enter");
  if (await page.evaluate(() => document.activeElement.id) !== "main") return false;
  await page.locator("main td a").first().focus(); await page.keyboard.press("Enter");
  return until(async () => (await page.url()).includes("#/batches/batch_"));
});
await go("#/batches/" + running.id, "tales of the sea");
await rule("a batch can be cancelled", async () => { page.once("dialog", dialog => dialog.accept()); await press("Cancel batch"); return until(async () => (await text(".top .state")) === "cancelled"); });
await rule("nothing was asked of anybody else", () => asked.every(url => url.startsWith(base) || url.startsWith("data:") || url.startsWith("blob:")));
await rule(`the browser had nothing to complain about ${complaints.join("; ")}`, complaints.length === 0);
fleet.kill("SIGINT");
await rule("the page says when the coordinator is gone", () => until(async () => /not connected|ended|answer/.test(await text("#link")), 20));
console.log("all rules hold");
await end(0);
