"""Small things that break clients, one rule each, by plain HTTP and the `openai` package against a running fleet.

    python details.py http://127.0.0.1:PORT

Every answer on the way is held against OpenAI's published schemas (openai-schemas.json, an extract: see README.md), where null stands for absent, as in OpenAI's own
answers. Prints one line a rule and exits with 1 at the first that does not hold. Called by tests/tests/clients.rs.
"""

import io
import json
import pathlib
import sys
import time

import jsonschema_rs
import openai
import requests

base = sys.argv[1]
client = openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=120)
schemas = json.loads((pathlib.Path(__file__).parent / "openai-schemas.json").read_text())


def rule(text, holds, found=None):
    print(("ok   " if holds else "FAIL ") + text, flush=True)
    if not holds:
        print(found, flush=True)
        sys.exit(1)


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value if item is not None] if isinstance(value, list) else value


validators = {}


def shaped(name, value):
    """Holds `value` against a schema of OpenAI's; answers it."""
    if name not in validators:
        validators[name] = jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **schemas})
    # Where OpenAI's schemas ask for a field, its own answers have it as null.
    faults = [f for f in validators[name].iter_errors(without_nulls(value)) if "required" not in f.message or not null_at(value, f)]
    rule(f"as OpenAI's {name} says", not faults, (faults[:3], value)) if faults else None
    return value


def null_at(value, fault):
    for step in fault.instance_path:
        value = value[step]
    missing = fault.message.split('"')[1]
    return isinstance(value, dict) and missing in value


def ask(path, body=None, method=None, status=200, **options):
    answer = requests.request(method or ("POST" if body is not None else "GET"), f"{base}{path}", json=body, timeout=120, **options)
    assert answer.status_code == status, (path, body, answer.status_code, answer.text)
    return answer


def refused(body, param, path="/v1/completions", status=400, code=None):
    error = shaped("ErrorResponse", ask(path, body, status=status).json())["error"]
    rule(f"refused with its name: {error['message'][:90]}", error["param"] == param and code in (None, error["code"]), error)


def events(path, body):
    answer = ask(path, {**body, "stream": True}, stream=True)
    raw = answer.content.decode()
    lines = [line for line in raw.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines), lines
    assert lines[-1] == "data: [DONE]", lines[-1]
    return [json.loads(line[6:]) for line in lines[:-1]]


def upload(lines, name="lines.jsonl", **options):
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return client.files.create(file=(name, io.BytesIO(content)), purpose="batch", **options)


def ended(batch):
    until = time.monotonic() + 120
    while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = shaped("Batch", ask(f"/v1/batches/{batch['id']}").json())
    return batch


def created(body, **options):
    return shaped("Batch", ask("/v1/batches", {"endpoint": "/v1/completions", "completion_window": "24h", **body}, **options).json())


model = shaped("ListModelsResponse", ask("/v1/models").json())["data"][0]["id"]
rule("a model is found by its name", shaped("Model", ask(f"/v1/models/{model}").json())["id"] == model)
ask("/v1/models/nobodys", status=404)
once = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}
plain = shaped("CreateCompletionResponse", ask("/v1/completions", once).json())
text = plain["choices"][0]["text"]
rule("the model of an answer is the one that answered", plain["model"] == model, plain)

# Prompts, choices, echoes.
ids = [int(i) for i in b"ABCD"]
for spelling, same in ((["Once upon a time"], "Once upon a time"), ([ids], ids)):
    one = ask("/v1/completions", {**once, "prompt": spelling}).json()["choices"]
    rule("an array of one prompt is the prompt", one == ask("/v1/completions", {**once, "prompt": same}).json()["choices"], one)
several = {**once, "prompt": ["Once upon a time", "The king said"], "n": 2, "temperature": 1, "seed": 5}
choices = shaped("CreateCompletionResponse", ask("/v1/completions", several).json())["choices"]
rule("several prompts are several choices in order", [c["index"] for c in choices] == [0, 1, 2, 3], choices)
rule("each choice has its own draws", len({c["text"] for c in choices}) == 4, choices)
alone = ask("/v1/completions", {**several, "prompt": "The king said", "n": 1}).json()["choices"][0]["text"]
rule("the first choice of a prompt is its answer alone", choices[2]["text"] == alone, (choices, alone))
chunks = [shaped("CreateCompletionResponse", {**c, "choices": [{**x, "finish_reason": x["finish_reason"] or "stop"} for x in c["choices"]]}) for c in events("/v1/completions", several)]
told = ["".join(x["text"] for c in chunks for x in c["choices"] if x["index"] == i) for i in range(4)]
rule("a stream of choices says the same", told == [c["text"] for c in choices], told)
chat = {"messages": [{"role": "user", "content": "Tell me a tale.", "name": "me"}], "max_tokens": 6, "temperature": 1, "seed": 3, "n": 3}
answers = shaped("CreateChatCompletionResponse", ask("/v1/chat/completions", chat).json())
rule("chat takes n as well", len({c["message"]["content"] for c in answers["choices"]}) == 3 and answers["usage"]["completion_tokens"] <= 18, answers)
chunks = [shaped("CreateChatCompletionStreamResponse", c) for c in events("/v1/chat/completions", {**chat, "stream_options": {"include_usage": True}})]
told = ["".join(x["delta"].get("content") or "" for c in chunks for x in c["choices"] if x["index"] == i) for i in range(3)]
rule("and streams it", told == [c["message"]["content"] for c in answers["choices"]], told)
rule("usage is null in all chunks but the last", all("usage" in c and c["usage"] is None for c in chunks[:-1]) and chunks[-1]["usage"]["total_tokens"] > 0, chunks)
rule("each chunk names the model that answers", all(c["model"] == model for c in chunks), chunks)

parameters = {"type": "object", "properties": {"place": {"enum": ["Oslo", "Rome"]}}, "required": ["place"], "additionalProperties": False}
asked = {**chat, "n": 2, "max_tokens": 100, "tools": [{"type": "function", "function": {"name": "weather", "parameters": parameters}}], "tool_choice": "required", "parallel_tool_calls": False}
answers = shaped("CreateChatCompletionResponse", ask("/v1/chat/completions", asked).json())["choices"]
calls = [c["message"]["tool_calls"][0] for c in answers]
rule("each choice calls a function", all(c["finish_reason"] == "tool_calls" and json.loads(x["function"]["arguments"])["place"] in ("Oslo", "Rome") for c, x in zip(answers, calls)), answers)
chunks = [shaped("CreateChatCompletionStreamResponse", c) for c in events("/v1/chat/completions", asked)]
told = [[x for c in chunks for x in c["choices"] if x["index"] == i] for i in range(2)]
deltas = [[d for x in one for d in x["delta"].get("tool_calls") or []] for one in told]
rule("and a stream says the same", ["".join(d["function"]["arguments"] for d in one) for one in deltas] == [c["function"]["arguments"] for c in calls] and len({one[0]["id"] for one in deltas}) == 2 and all(one[-1]["finish_reason"] == "tool_calls" for one in told), (deltas, calls))
asked = {"input": "Will it rain?", "max_output_tokens": 100, "seed": 3, "tools": [{"type": "function", "name": "weather", "parameters": parameters}], "tool_choice": "required", "parallel_tool_calls": False}
whole = shaped("Response", ask("/v1/responses", asked).json())["output"]
rule("a response calls a function", [item["type"] for item in whole] == ["function_call"] and json.loads(whole[0]["arguments"])["place"] in ("Oslo", "Rome"), whole)
spoken = ask("/v1/responses", {**asked, "stream": True}).content.decode()
told = [json.loads(line[6:]) for line in spoken.splitlines() if line.startswith("data: ")]
for event in told:
    shaped("".join(part.capitalize() for part in event["type"].replace(".", "_").split("_")) + "Event", event)
rule("and tells it in events of their own shapes", told[-1]["response"]["output"][0]["arguments"] == whole[0]["arguments"] == "".join(e["delta"] for e in told if e["type"].endswith("arguments.delta")), told)

echo = {**once, "echo": True}
rule("an echo stands before the text", ask("/v1/completions", echo).json()["choices"][0]["text"] == once["prompt"] + text)
told = "".join(x["text"] for c in events("/v1/completions", echo) for x in c["choices"])
rule("an echo streams", told == once["prompt"] + text, told)
scored = shaped("CreateCompletionResponse", ask("/v1/completions", {**echo, "logprobs": 1, "max_tokens": 0}).json())
found = scored["choices"][0]["logprobs"]
rule("a prompt is scored alone", found["token_logprobs"][0] is None and all(x <= 0 for x in found["token_logprobs"][1:]) and scored["usage"]["completion_tokens"] == 0, scored)
rule("and only the prompt is there", scored["choices"][0]["text"] == once["prompt"] and len(found["tokens"]) == scored["usage"]["prompt_tokens"], scored)
both = ask("/v1/completions", {**echo, "logprobs": 1}).json()["choices"][0]["logprobs"]
rule("and the same before an output", both["token_logprobs"][: len(found["tokens"])] == found["token_logprobs"] and len(both["tokens"]) == len(found["tokens"]) + 6, both)
rule("offsets tell where each token begins", all(both["text_offset"][i] <= both["text_offset"][i + 1] for i in range(len(both["tokens"]) - 1)) and both["text_offset"][-1] < len(once["prompt"] + text), both)
streamed = [x["logprobs"] for c in events("/v1/completions", {**echo, "logprobs": 1}) for x in c["choices"] if x["logprobs"]]
rule("a stream has the same log-probabilities", sum((x["token_logprobs"] for x in streamed), []) == both["token_logprobs"], streamed)
tokenized = ask("/v1/completions", {"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}).json()["choices"][0]["logprobs"]
rule("a tokenized prompt is scored token by token", len(tokenized["tokens"]) == len(ids) + 1, tokenized)

# Bytes of tokens that are part of a character.
lone_byte = {"127": 100}
parts = ask("/v1/chat/completions", {**chat, "n": 1, "max_tokens": 2, "temperature": 0, "logit_bias": lone_byte, "logprobs": True, "top_logprobs": 2}).json()
tokens = parts["choices"][0]["logprobs"]["content"]
rule("a part of a character has its own bytes", all(len(t["bytes"]) == 1 and t["bytes"][0] >= 0x80 for t in tokens), parts)

# Refusals before a stream, and by name.
long = {"prompt": ids * 5000, "max_tokens": 5}
for wants_stream in (False, True):
    refused({**long, "stream": wants_stream}, None, code="context_length_exceeded")
    refused({**once, "max_tokens": 900_000, "stream": wants_stream}, None, code="context_length_exceeded")
refused({**once, "top_p": 0}, "top_p")
refused({**once, "n": 17}, "n")
refused({**once, "store": True}, "store")
hopeless = {"type": "object", "properties": {"a": {"uniqueItems": True}}}
format = {"type": "json_schema", "name": "a", "schema": hopeless}
wrapped = {"type": "json_schema", "json_schema": {"name": "a", "schema": hopeless}}
function = {"name": "f", "parameters": hopeless}
refused({**once, "response_format": wrapped}, "response_format")
refused({**once, "structured_outputs": {"regex": "("}}, "structured_outputs")
for name, value in (("json", hopeless), ("regex", "("), ("choice", [""]), ("grammar", "begin: ")):
    refused({**once, f"guided_{name}": value, "response_format": {"type": "text"}}, f"guided_{name}")
refused({**chat, "tools": [{"type": "function", "function": function}]}, "tools", "/v1/chat/completions")
refused({"input": "a", "text": {"format": format}}, "text.format", "/v1/responses")
refused({"input": "a", "tools": [{"type": "function", **function}]}, "tools", "/v1/responses")
error = ask("/v1/batches", {"requests": [{**once, "prompt": "a" * (8 << 20)}]}, status=413).json()["error"]
rule("a body that is too long is told the limit", "8388608 bytes" in error["message"] and error["code"] == "body_too_large", error)
whole = {"input_file_id": "file-unknown", "endpoint": "/v1/completions", "completion_window": "24h"}
refused({**whole, "endpoint": "/v1/embeddings"}, "endpoint", "/v1/batches")
refused({**whole, "completion_window": "1s"}, "completion_window", "/v1/batches")
refused({**whole, "metadata": {"k" * 65: "v"}}, "metadata", "/v1/batches")
refused({**whole, "metadata": {str(i): "v" for i in range(17)}}, "metadata", "/v1/batches")
refused({**whole, "output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after", "/v1/batches")
refused(whole, "input_file_id", "/v1/batches", status=404)
ask("/v1/completions", {**once, "user": "u", "store": False, "service_tier": "auto", "prompt_cache_key": "k", "metadata": {"a": "b"}, "suffix": "", "n": 1, "best_of": 1})
rule("fields that ask for nothing are taken", True)

# Files, their ends, and lists.
names = [upload([{**once, "prompt": f"Tale {i}"}], f"{i}.jsonl").id for i in range(5)]
for query, param in (("limit=0", "limit"), ("limit=10001", "limit"), ("limit=x", "limit"), ("order=newest", "order")):
    error = ask(f"/v1/files?{query}", status=400).json()["error"]
    rule(f"a list refuses {query}", error["param"] == param, error)
for query, param in (("limit=0", "limit"), ("limit=101", "limit"), ("order=x", "order"), ("order=asc", "order")):
    rule(f"so do batches with {query}", ask(f"/v1/batches?{query}", status=400).json()["error"]["param"] == param)
ask("/v1/batches?order=desc")
for path in ("/v1/files?after=file-never", "/v1/batches?after=batch_never", "/v1/batches?after=nope", "/v1/batches?after=no+pe"):
    error = shaped("ErrorResponse", ask(path, status=404).json())["error"]
    rule(f"an after that never was is an error: {path}", error["param"] == "after", error)
walked, after = [], None
while True:
    page = shaped("ListFilesResponse", ask("/v1/files?limit=2&order=asc&purpose=batch" + (f"&after={after}" if after else "")).json())
    for file in page["data"]:
        walked.append(file["id"])
        ask(f"/v1/files/{file['id']}", method="DELETE")
    after = page["last_id"]
    if not page["has_more"]:
        break
rule("whoever deletes page by page misses nothing", [w for w in walked if w in names] == names, (walked, names))
ask(f"/v1/files/{names[0]}", status=404), ask(f"/v1/files/{names[0]}/content", status=404), ask(f"/v1/files/{names[0]}", method="DELETE", status=404)
rule("and what was deleted is gone", True)
kept = upload([once], expires_after={"anchor": "created_at", "seconds": 3600})
rule("a file has the end that it was given", kept.expires_at == kept.created_at + 3600, kept)
try:
    upload([once], expires_after={"anchor": "created_at", "seconds": 60})
    rule("an end that is too near is refused", False)
except openai.BadRequestError as error:
    rule("an end that is too near is refused", error.param == "expires_after", error)

# Batches.
odd = "odd\u2028id\u0085"
batch = ended(created({"requests": [{"custom_id": odd, **once}, {"custom_id": "many", **several}, {"prompt": 7}], "output_expires_after": {"anchor": "created_at", "seconds": 7200}}))
rule("an inline batch is answered", batch["status"] == "completed" and batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}, batch)
rule("the batch names its model and OpenAI's details of its usage", batch["model"] == model and batch["usage"]["total_tokens"] > 0, batch)
results = requests.get(f"{base}/v1/batches/{batch['id']}/results", timeout=60).content.decode()
rule("its results stand at /results, each on one line for every reader", len(results.splitlines()) == 3, results)
output = ask(f"/v1/files/{batch['output_file_id']}/content").content.decode()
lines = [json.loads(line) for line in output.splitlines()]
rule("and in its file", [line["custom_id"] for line in lines] == [odd, "many"], output)
rule("a line has the bits of the single request", [c["text"] for c in lines[1]["response"]["body"]["choices"]] == [c["text"] for c in choices], lines)
for line in lines:
    shaped("CreateCompletionResponse", line["response"]["body"])
for name in ("output_file_id", "error_file_id"):
    file = shaped("OpenAIFile", ask(f"/v1/files/{batch[name]}").json())
    true = file["purpose"] == "batch_output" and abs(file["created_at"] - batch["completed_at"]) < 60 and file["bytes"] == len(ask(f"/v1/files/{batch[name]}/content").content)
    rule(f"{name} has its true purpose, time, size and end", true and file["expires_at"] == file["created_at"] + 7200 and file["filename"] == batch[name], file)
listed = [f["id"] for f in shaped("ListFilesResponse", ask("/v1/files?purpose=batch_output").json())["data"]]
rule("files are listed by purpose", batch["output_file_id"] in listed and batch["input_file_id"] not in listed, listed)
shaped("ListBatchesResponse", ask("/v1/batches?limit=1").json())

asked = {**asked, "instructions": "Be short.", "tool_choice": {"type": "function", "name": "weather"}}
single = ask("/v1/responses", asked).json()
batch = ended(created({"endpoint": "/v1/responses", "requests": [asked]}))
line = shaped("Response", json.loads(ask(f"/v1/files/{batch['output_file_id']}/content").content)["response"]["body"])
repeated = ("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p")
differ = {name: (line[name], single[name]) for name in repeated if line[name] != single[name]}
rule("a response in a line repeats its request as a single one does", not differ and line["instructions"] == "Be short.", differ)

slow = upload([{"prompt": f"Tale {i}", "max_tokens": 400, "temperature": 1} for i in range(40)])
running = created({"input_file_id": slow.id})
error = ask(f"/v1/files/{slow.id}", method="DELETE", status=409).json()["error"]
rule("the input of a live batch cannot be deleted", running["id"] in error["message"], error)
ask(f"/v1/batches/{running['id']}/cancel", {})
ended(running)
rule("and goes once the batch has ended", shaped("DeleteFileResponse", ask(f"/v1/files/{slow.id}", method="DELETE").json())["deleted"])
print("all rules hold")
