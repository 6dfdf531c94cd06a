// Draws the pictures of the page in docs/page/, from a fleet on this machine that works on three batches.
//
//     node pictures.mjs TERNFLEET MODULES FOLDER
//
// TERNFLEET is the program, MODULES the folder where `npm ci` put playwright-core (target/npm), FOLDER gets the pictures.
// Takes about two minutes. Called by `make page-pictures`.

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [program, modules, folder] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "package.json"))("playwright-core");
const own = mkdtempSync(join(tmpdir(), "ternfleet-pictures-")), data = join(own, "data");
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));
async function until(what, seconds = 60) {
  for (const stop = Date.now() + seconds * 1000; Date.now() < stop; await sleep(200)) if (await what()) return;
  throw new Error("this never came true: " + what);
}

const children = [], start = (...what) => { const child = spawn(program, what, { stdio: "ignore" }); children.push(child); return child; };
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
try {
  start("up", "--dir", data, "--workers", "2", "--threads", "1", "--scale", "0..2", "--nats-port", "0", "--http-port", "0", "--price-usd-per-hour", "0.34,0.50");
  await until(() => existsSync(join(data, "addresses.json")));
  const { nats, http } = JSON.parse(readFileSync(join(data, "addresses.json")));
  const overview = async () => (await fetch(`${http}/api/overview`)).json();
  const line = (i, prompt, max_tokens) => JSON.stringify({ custom_id: `tale-${i}`, method: "POST", url: "/v1/completions", body: { prompt, max_tokens, seed: i } }) + "\n";
  async function submit(name, lines, more) {
    const form = new FormData();
    form.append("purpose", "batch"); form.append("file", new Blob([lines.join("")]), "prompts.jsonl");
    const { id } = await (await fetch(`${http}/v1/files`, { method: "POST", body: form })).json();
    const answer = await fetch(`${http}/v1/batches`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ input_file_id: id, endpoint: "/v1/completions", completion_window: "24h", ternfleet: { name, accept_at_risk: true, ...more } }) });
    return (await answer.json()).id;
  }
  const tales = (count, prompt, tokens) => Array.from({ length: count }, (_, i) => line(i, prompt, tokens));
  await submit("tales of the king", tales(40, "The king said to his daughter", 60));
  const winter = await submit("winter tales", [...tales(30, "One winter evening the old woman", 60), line(98, "word ".repeat(700), 4)]);
  const spot = start("worker", "--nats", nats, "--threads", "1", "--pod", "spot-7", "--pod-class", "spot", "--price-usd-per-hour", "0.20");
  await until(async () => (await overview()).pods.some(pod => pod.pod === "spot-7"));
  await until(async () => (await overview()).batches.every(batch => batch.status === "completed"));
  const sea = await submit("tales of the sea", tales(20000, "Once upon a time, by the sea,", 120), { budget_usd_micro: 2_000_000 });
  await submit("riddles", tales(2000, "What has a mouth and never speaks?", 40), { priority: -2 });
  await sleep(30_000);
  spot.kill("SIGKILL");
  await sleep(45_000);

  const page = await (await browser.newContext({ viewport: { width: 1280, height: 900 } })).newPage();
  const views = [["light", "", "light", 1280], ["dark", `batches/${sea}`, "dark", 1280], ["lines", `batches/${winter}`, "light", 1280], ["pods", "pods", "light", 1280], ["phone", "", "light", 390]];
  for (const [name, hash, colorScheme, width] of views) {
    await page.setViewportSize({ width, height: 900 }); await page.emulateMedia({ colorScheme });
    await page.goto(`${http}/#/${hash}`); await page.reload(); await page.waitForSelector("main h1"); await sleep(3000);
    await page.screenshot({ path: join(folder, `${name}.png`), clip: { x: 0, y: 0, width, height: Math.min(1800, await page.evaluate(() => document.documentElement.scrollHeight)) }, fullPage: true });
  }
} finally {
  await browser.close();
  for (const child of children) {
    child.kill("SIGINT");
    for (let i = 0; i < 150 && child.exitCode === null && child.signalCode === null; i++) await sleep(100);
    child.kill("SIGKILL");
  }
  rmSync(own, { recursive: true, force: true });
}
