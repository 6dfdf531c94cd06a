// The page at `/` in a real browser: first paint, live figures, forms, keyboard, hostile names, no foreign request.
//
//     node page.mjs TERNFLEET MODULES [SHOTS]
//
// TERNFLEET is the program; a fleet of its own is started with it and ended. MODULES is the folder where `npm ci` put
// playwright-core (target/npm). With SHOTS, screenshots are written there. The browser is Debian's chromium, or the one
// that CHROMIUM names. Called by scripts/system-tests.sh.

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [program, modules, shots] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "package.json"))("playwright-core");
const folder = mkdtempSync(join(tmpdir(), "ternfleet-page-"));
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));
let fleet = null, browser = null, page = null;

async function end(code) {
  await browser?.close().catch(() => {});
  if (fleet) { fleet.kill("SIGINT"); for (let i = 0; i < 100 && fleet.exitCode === null; i++) await sleep(100); fleet.kill("SIGKILL"); }
  rmSync(folder, { recursive: true, force: true });
  process.exit(code);
}
async function rule(text, holds) {
  let held = false;
  const began = Date.now();
  try { held = typeof holds === "function" ? await holds() : holds; } catch (error) { text += ` (${error.message.split("\n")[0]})`; }
  console.log(`${held ? "ok  " : "FAIL"} ${String(Date.now() - began).padStart(6)} ms  ${text}`);
  if (!held && shots && page) await page.screenshot({ path: join(shots, "failed.png"), fullPage: true });
  if (!held) await end(1);
}
async function until(what, seconds = 30) {
  for (const stop = Date.now() + seconds * 1000; Date.now() < stop; await sleep(100)) if (await what()) return true;
  return false;
}

browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
// One worker on one thread leaves a processor to the browser; pictures show two.
const workers = shots ? 2 : 1;
fleet = spawn(program, ["up", "--dir", folder, "--workers", `${workers}`, "--threads", "1", "--nats-port", "0", "--http-port", "0", "--price-usd-per-hour", "0.34,1.19"], { stdio: "ignore" });
await rule("a fleet starts", () => until(() => existsSync(join(folder, "addresses.json")) || fleet.exitCode !== null, 90));
const { http } = JSON.parse(readFileSync(join(folder, "addresses.json")));
const base = http.startsWith("http") ? http : `http://${http}`;

// A batch whose name is an attack, and one that runs long enough to be watched.
async function submit(name, count, tokens, more = {}) {
  const form = new FormData(); form.append("purpose", "batch");
  const line = i => JSON.stringify({ custom_id: `${i}`, method: "POST", url: "/v1/completions", body: { prompt: "Once upon a time", max_tokens: tokens, seed: i } });
  form.append("file", new Blob([Array.from({ length: count }, (_, i) => line(i) + "\n").join("")]), "x.jsonl");
  const file = await (await fetch(`${base}/v1/files`, { method: "POST", body: form })).json();
  const answer = await fetch(`${base}/v1/batches`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ input_file_id: file.id, endpoint: "/v1/completions", completion_window: "24h", ternfleet: { name, ...more } }) });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}
const hostile = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`;
await rule("three batches are accepted", async () => { await submit(hostile, 3, 4); await submit("tales of the sea", 4000, 120, { budget_usd_micro: 2_000_000 }); return (await submit("winter tales", 40, 40)).object === "batch"; });

page = await browser.newPage({ viewport: { width: 1320, height: 900 }, colorScheme: "light" });
const asked = [], complaints = [];
page.on("request", request => asked.push(request.url()));
page.on("console", message => { if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) complaints.push(message.text()); });
page.on("pageerror", error => complaints.push(error.message));

await page.goto(base);
await page.reload();
const paint = await page.evaluate(() => new Promise(resolve => new PerformanceObserver(list => { const e = list.getEntriesByName("first-contentful-paint")[0]; if (e) resolve(e.startTime); }).observe({ type: "paint", buffered: true })));
const bytes = await page.evaluate(() => performance.getEntriesByType("navigation")[0].transferSize);
console.log(`     first contentful paint ${paint.toFixed(0)} ms, page of ${bytes} bytes`);
await rule("the page is under 100 KB", bytes < 100_000 && bytes > 10_000);
await rule("it goes live", () => until(async () => (await page.textContent("#link")) === "live"));
await rule("every pod is shown", () => until(async () => (await page.locator("#pods tr").count()) === workers));
await rule("speed and price are figures", () => until(async () => parseFloat(await page.textContent("#f-rate")) > 0 && (await page.textContent("#f-price")) === (shots ? "$1.53" : "$0.3400")));
await rule("three batches are shown", () => until(async () => (await page.locator("#batches tr").count()) === 3));
await rule("a hostile name is text and nothing else", async () => (await page.locator("#batches b", { hasText: "<script>" }).count()) === 1 && (await page.locator("#batches img, #batches script").count()) === 0 && (await page.title()) === "Ternfleet");
await rule("progress moves by itself", async () => { const cell = page.locator("#batches tr", { hasText: "tales of the sea" }).locator("td").nth(2); const before = await cell.textContent(); return until(async () => (await cell.textContent()) !== before); });
await rule("a chart has its first points", () => until(async () => (await page.locator("#c-rate path.line").count()) === 1, 45));

await rule("a prompt is answered token by token, by keyboard alone", async () => {
  await page.focus("#t-prompt"); await page.keyboard.press("Control+A"); await page.keyboard.type("The old fisherman"); await page.keyboard.press("Control+Enter");
  return until(async () => /\d+ tokens in/.test(await page.textContent("#t-note")) && (await page.textContent("#t-out")).length > 10);
});
await rule("a running prompt can be stopped", async () => {
  await page.fill("#t-max", "400");
  // In one go: the small model may be done before a second journey to the browser.
  await page.evaluate(() => { document.getElementById("try").requestSubmit(); document.getElementById("t-stop").click(); });
  return until(async () => (await page.textContent("#t-note")) === "stopped");
});
await page.fill("#t-max", "80");
const upload = content => page.setInputFiles("#u-file", { name: "from the page.jsonl", mimeType: "application/jsonl", buffer: Buffer.from(content) });
await rule("a file gets a quote", async () => {
  await upload('{"prompt": "Once", "max_tokens": 5}\n{"prompt": "Twice", "max_tokens": 5}\n');
  await page.fill("#u-hours", "2"); await page.click("#upload button[value=quote]");
  return until(async () => (await page.locator("#u-quote dd").count()) === 4 || (await page.textContent("#u-note")).includes("nothing at"));
});
if (shots) await page.screenshot({ path: join(shots, "page-light.png"), fullPage: true });
await rule("and is submitted", async () => { await page.click("#upload button[value=submit]"); return until(async () => (await page.textContent("#u-note")).startsWith("accepted as batch_")); });
await rule("its results can be downloaded", async () => {
  const row = page.locator("#batches tr", { hasText: "from the page" });
  if (!await until(async () => (await row.locator("button", { hasText: "output" }).count()) === 1)) return false;
  const [got] = await Promise.all([page.waitForEvent("download"), row.locator("button", { hasText: "output" }).click()]);
  return readFileSync(await got.path(), "utf8").trim().split("\n").length === 2;
});
await rule("results so far can be downloaded while it runs", async () => {
  const row = page.locator("#batches tr", { hasText: "tales of the sea" }).locator("button", { hasText: "so far" });
  const [got] = await Promise.all([page.waitForEvent("download"), row.click()]);
  return JSON.parse(readFileSync(await got.path(), "utf8").split("\n")[0]).response.status_code === 200;
});
await rule("a batch can be cancelled", async () => {
  page.once("dialog", dialog => dialog.accept());
  const row = page.locator("#batches tr", { hasText: "tales of the sea" });
  await row.locator("button", { hasText: "cancel" }).click();
  return until(async () => (await row.textContent()).includes("cancelled"));
});
await rule("every control and table has a name", () => page.evaluate(() => {
  const nameless = [...document.querySelectorAll("button, input, select, textarea, a, [role=progressbar], [role=img], table, section")].filter(e =>
    !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.labels?.length || e.textContent.trim()));
  return nameless.length === 0;
}));
await rule("the keyboard reaches every control in order", async () => {
  await page.evaluate(() => { document.querySelector(".skip").focus(); window.scrollTo(0, 0); });
  const seen = [];
  for (let i = 0; i < 60; i++) { await page.keyboard.press("Tab"); seen.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent)); }
  return seen.findIndex(x => x === "theme") >= 0 && seen.indexOf("t-prompt") > seen.indexOf("theme") && seen.indexOf("u-file") > seen.indexOf("t-prompt");
});
await rule("nothing was asked of anybody else", () => asked.every(url => url.startsWith(base) || url.startsWith("data:") || url.startsWith("blob:")));

await page.emulateMedia({ colorScheme: "dark" });
const dark = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
await rule("dark is dark, and the switch overrules the system", async () => {
  await page.click("#theme");
  const light = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  await page.click("#theme"); await page.click("#theme");
  return dark === "rgb(12, 20, 25)" && light === "rgb(243, 246, 248)";
});
if (shots) await page.screenshot({ path: join(shots, "page-dark.png"), fullPage: true });
await page.setViewportSize({ width: 390, height: 844 });
await page.emulateMedia({ colorScheme: "light" });
await rule("a phone needs no sideways scrolling", () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
if (shots) await page.screenshot({ path: join(shots, "page-phone.png"), fullPage: true });
await rule(`the browser had nothing to complain about ${complaints.join("; ")}`, () => complaints.length === 0);
fleet.kill("SIGINT");
await rule("the page says when the coordinator is gone", () => until(async () => /not connected|ended|answer/.test(await page.textContent("#link")), 20));
console.log("all rules hold");
await end(0);
