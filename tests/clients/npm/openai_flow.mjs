// The `openai` npm package against a local fleet: files, a whole batch, streams, hanging up, functions, responses, errors.
//
//     node openai_flow.mjs http://127.0.0.1:PORT MODULES
//
// MODULES is the folder where `npm ci` put the package (target/npm). Prints one line a rule; exits with 1 at the first
// that does not hold. Called by tests/tests/clients.rs.

import { createRequire } from "node:module";
import { join } from "node:path";

const [base, modules] = process.argv.slice(2);
const require = createRequire(join(modules, "package.json"));
const { default: OpenAI, toFile } = require("openai");
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "unused", maxRetries: 0, timeout: 120_000 });

function rule(text, holds) {
  console.log((holds ? "ok   " : "FAIL ") + text);
  if (!holds) process.exit(1);
}
async function refused(text, kind, call) {
  try { await call(); } catch (error) { return rule(`${text}: ${error.message.slice(0, 100)}`, error instanceof kind && error.message.length > 10); }
  rule(text, false);
}
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

const models = (await client.models.list()).data;
const model = models[0].id;
rule("the served model is listed", models.length > 0 && (await client.models.retrieve(model)).id === model);

const lines = [
  { custom_id: "plain", method: "POST", url: "/v1/completions", body: { model, prompt: "Once upon a time", max_tokens: 12, temperature: 0 } },
  { custom_id: "wrong", method: "POST", url: "/v1/completions", body: { model, prompt: "x", tools: [{}] } },
];
const content = lines.map(line => JSON.stringify(line) + "\n").join("");
const file = await client.files.create({ file: await toFile(Buffer.from(content), "prompts.jsonl"), purpose: "batch" });
rule("an upload keeps its name and length", file.filename === "prompts.jsonl" && file.bytes === content.length);
rule("its content comes back as it went", await (await client.files.content(file.id)).text() === content);
const ids = [];
for await (const one of client.files.list({ limit: 1 })) ids.push(one.id);
rule("files are listed over pages of one", ids.includes(file.id) && new Set(ids).size === ids.length);

let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/completions", completion_window: "24h", metadata: { run: "npm" } });
for (let i = 0; i < 600 && !["completed", "failed", "expired", "cancelled"].includes(batch.status); i++) { await sleep(100); batch = await client.batches.retrieve(batch.id); }
rule(`a batch completes (${batch.status})`, batch.status === "completed");
rule("its counts add up", batch.request_counts.total === 2 && batch.request_counts.completed === 1 && batch.request_counts.failed === 1);
rule("its times are in order", batch.created_at <= batch.in_progress_at && batch.in_progress_at <= batch.finalizing_at && batch.finalizing_at <= batch.completed_at && batch.completed_at < batch.expires_at);
const output = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(line => JSON.parse(line));
rule("its output has the good line", output.length === 1 && output[0].custom_id === "plain" && output[0].response.status_code === 200);
const errors = (await (await client.files.content(batch.error_file_id)).text()).trim().split("\n").map(line => JSON.parse(line));
rule("its error file names the parameter", errors.length === 1 && errors[0].error.message.includes("tools"));
const listed = [];
for await (const one of client.batches.list({ limit: 1 })) { listed.push(one.id); if (listed.length > 5) break; }
rule("batches are listed over pages of one", listed[0] === batch.id);

const single = await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 12, temperature: 0 });
rule("a single completion gives the same bits as the batch", single.choices[0].text === output[0].response.body.choices[0].text);
let streamed = "", usage = null, reason = null;
for await (const chunk of await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 12, temperature: 0, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.text ?? ""; reason = chunk.choices[0]?.finish_reason ?? reason; usage = chunk.usage ?? usage;
}
rule("a stream gives the same text, a reason and the usage", streamed === single.choices[0].text && reason === "length" && usage.completion_tokens === 12);
const messages = [{ role: "user", content: "Tell me a tale." }];
const chat = await client.chat.completions.create({ model, messages, max_completion_tokens: 10, temperature: 0, logprobs: true, top_logprobs: 2 });
rule("a chat completion has log-probabilities of each token", chat.choices[0].logprobs.content.length === chat.usage.completion_tokens && chat.choices[0].logprobs.content[0].top_logprobs.length === 2);
let told = "";
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 10, temperature: 0, stream: true })) told += chunk.choices[0]?.delta?.content ?? "";
rule("a chat stream gives the same text", told === chat.choices[0].message.content);
const long = await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 400, temperature: 1, stream: true });
for await (const chunk of long) { if (chunk.choices[0]?.text) break; }
long.controller.abort();
rule("a stream can be left in the middle", (await client.completions.create({ model, prompt: "Then", max_tokens: 2 })).usage.completion_tokens === 2);

await refused("an unsupported parameter is refused by name", OpenAI.BadRequestError, () => client.chat.completions.create({ model, messages, audio: { voice: "a", format: "mp3" } }));
await refused("a shape that is not known is refused by name", OpenAI.BadRequestError, () => client.chat.completions.create({ model, messages, response_format: { type: "xml" } }));
const shape = { type: "json_schema", json_schema: { name: "king", strict: true, schema: { type: "object", properties: { king: { enum: ["old", "young"] }, sons: { type: "integer", minimum: 0, maximum: 9 } }, required: ["king", "sons"], additionalProperties: false } } };
const shaped = JSON.parse((await client.chat.completions.create({ model, messages, max_tokens: 60, response_format: shape })).choices[0].message.content);
rule("an answer has the shape of its schema", ["old", "young"].includes(shaped.king) && Number.isInteger(shaped.sons) && Object.keys(shaped).length === 2);

const parameters = { type: "object", properties: { place: { enum: ["Oslo", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } }, required: ["place", "days"], additionalProperties: false };
const valid = text => { const { place, days, ...more } = JSON.parse(text); return ["Oslo", "Rome"].includes(place) && days >= 1 && days <= 9 && Object.keys(more).length === 0; };
const rain = [{ role: "user", content: "Will it rain?" }];
const offered = { model, messages: rain, max_tokens: 120, temperature: 0, tools: [{ type: "function", function: { name: "weather", description: "The weather at a place", parameters, strict: true } }], tool_choice: "required", parallel_tool_calls: false };
const called = (await client.chat.completions.create(offered)).choices[0];
const call = called.message.tool_calls[0];
rule("a required function is called with valid arguments", called.finish_reason === "tool_calls" && called.message.content === null && call.function.name === "weather" && valid(call.function.arguments));
let pieces = "";
for await (const chunk of await client.chat.completions.create({ ...offered, stream: true })) pieces += chunk.choices[0]?.delta?.tool_calls?.[0]?.function?.arguments ?? "";
rule("a stream builds up the same call", pieces === call.function.arguments);
const after = await client.chat.completions.create({ model, max_tokens: 8, messages: [...rain, called.message, { role: "tool", tool_call_id: call.id, content: "Rain." }] });
rule("what a tool says goes back to the model", after.choices[0].message.content.length > 0);

const response = await client.responses.create({ model, input: messages, max_output_tokens: 10, temperature: 0 });
rule("a response says what a chat does", response.output_text === chat.choices[0].message.content && response.status === "incomplete" && response.usage.output_tokens === 10);
let delta = "", last = null;
for await (const event of await client.responses.create({ model, input: messages, max_output_tokens: 10, temperature: 0, stream: true })) { if (event.type === "response.output_text.delta") delta += event.delta; last = event; }
rule("and streams it in events", delta === response.output_text && last.type === "response.incomplete");
const asking = { model, input: "Will it rain?", max_output_tokens: 120, temperature: 0, tools: [{ type: "function", name: "weather", parameters, strict: true }], tool_choice: { type: "function", name: "weather" } };
const asked = await client.responses.create(asking);
rule("a response calls a function", asked.output[0].type === "function_call" && asked.status === "completed" && valid(asked.output[0].arguments));
let written = "";
for await (const event of client.responses.stream(asking)) if (event.type === "response.function_call_arguments.delta") written += event.delta;
rule("and streams the call in events", written === asked.output[0].arguments);
const followed = await client.responses.create({ model, max_output_tokens: 8, input: [...rain, ...asked.output, { type: "function_call_output", call_id: asked.output[0].call_id, output: "Rain." }] });
rule("its output goes back as an item", followed.output_text.length > 0);

await refused("an unknown batch is not found", OpenAI.NotFoundError, () => client.batches.retrieve("batch_unknown"));
await refused("an unknown file is not found", OpenAI.NotFoundError, () => client.files.retrieve("file-unknown"));
await refused("embeddings are clearly not served", OpenAI.APIError, () => client.embeddings.create({ model, input: "x" }));
rule("a file can be deleted", (await client.files.delete(file.id)).deleted === true);
await refused("and is gone then", OpenAI.NotFoundError, () => client.files.content(file.id));
console.log("all rules hold");
