"""The `openai` package against a running fleet: files, a whole batch, single and streamed completions, errors.

    python openai_flow.py http://127.0.0.1:PORT

Prints one line a rule and exits with 1 at the first that does not hold. Called by tests/tests/clients.rs.
"""

import io
import json
import sys
import time
from typing import Literal

import openai
import pydantic

base = sys.argv[1]
client = openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=120)


def rule(text, holds):
    print(("ok   " if holds else "FAIL ") + text, flush=True)
    if not holds:
        sys.exit(1)


def refused(text, kind, call):
    try:
        call()
    except kind as error:
        return rule(f"{text}: {error.message[:110]}", bool(error.message))
    rule(text, False)


model = client.models.list().data[0].id
rule("the served model is listed and can be fetched by name", client.models.retrieve(model).id == model)

lines = [
    {"custom_id": "plain", "method": "POST", "url": "/v1/completions",
     "body": {"model": model, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}},
    {"custom_id": "seeded", "method": "POST", "url": "/v1/completions",
     "body": {"model": model, "prompt": "The king said", "max_tokens": 8, "temperature": 0.8, "seed": 7}},
    {"custom_id": "wrong", "method": "POST", "url": "/v1/completions", "body": {"model": model, "prompt": "x", "n": 17}},
]
content = "".join(json.dumps(line) + "\n" for line in lines).encode()
upload = client.files.create(file=("prompts.jsonl", io.BytesIO(content)), purpose="batch")
rule("an upload keeps its name and length", upload.filename == "prompts.jsonl" and upload.bytes == len(content))
rule("a file's content comes back as it went", client.files.content(upload.id).content == content)
rule("files are listed", upload.id in [f.id for f in client.files.list().data])

batch = client.batches.create(input_file_id=upload.id, endpoint="/v1/completions", completion_window="24h", metadata={"run": "7"})
until = time.monotonic() + 120
while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < until:
    time.sleep(0.2)
    batch = client.batches.retrieve(batch.id)
rule(f"a batch completes ({batch.status})", batch.status == "completed")
counts = batch.request_counts
rule("its counts add up", (counts.total, counts.completed, counts.failed) == (3, 2, 1))
rule("metadata comes back unread", batch.metadata == {"run": "7"})
output = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
rule("good lines stand in the output file, in input order", [o["custom_id"] for o in output] == ["plain", "seeded"])
rule("each has text and usage", all(o["response"]["body"]["choices"][0]["text"] and o["response"]["body"]["usage"]["completion_tokens"] > 0 for o in output))
errors = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
rule("a bad line is one error line that names the parameter", len(errors) == 1 and "n" in errors[0]["error"]["message"])
rule("batches are listed newest first", client.batches.list(limit=1).data[0].id == batch.id)

single = client.completions.create(model=model, prompt="Once upon a time", max_tokens=12, temperature=0)
rule("a single completion gives the same bits as the batch", single.choices[0].text == output[0]["response"]["body"]["choices"][0]["text"])
chunks = list(client.completions.create(model=model, prompt="Once upon a time", max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}))
streamed = "".join(c.choices[0].text for c in chunks if c.choices)
rule("a stream gives the same text", streamed == single.choices[0].text)
rule("a stream ends with a reason and, when asked, the usage",
     any(c.choices and c.choices[0].finish_reason for c in chunks) and chunks[-1].usage.completion_tokens == single.usage.completion_tokens)
chat = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Tell me a tale."}], max_tokens=10, temperature=0)
rule("a chat completion answers as the assistant", chat.choices[0].message.role == "assistant" and chat.usage.prompt_tokens > 0)
told = list(client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Tell me a tale."}], max_tokens=10, temperature=0, stream=True))
rule("a chat stream gives the same text", "".join(c.choices[0].delta.content or "" for c in told if c.choices) == chat.choices[0].message.content)
detailed = client.completions.create(model=model, prompt="Once upon a time", max_tokens=4, temperature=0, logprobs=2)
rule("log-probabilities come with each token", len(detailed.choices[0].logprobs.token_logprobs) == detailed.usage.completion_tokens)

class King(pydantic.BaseModel):
    age: Literal["old", "young"]
    sons: int = pydantic.Field(ge=0, le=9)


parsed = client.chat.completions.parse(model=model, messages=[{"role": "user", "content": "Describe a king."}], response_format=King, max_tokens=60)
rule("an answer is parsed into a model of pydantic", isinstance(parsed.choices[0].message.parsed, King))
shaped = client.responses.parse(model=model, input="Describe a king.", text_format=King, max_output_tokens=60)
rule("a response is, too", isinstance(shaped.output_parsed, King))
chosen = client.completions.create(model=model, prompt="The king said", max_tokens=20, extra_body={"guided_choice": ["yes", "no"]})
rule("a choice of texts is one of them", chosen.choices[0].text in ("yes", "no"))
response = client.responses.create(model=model, input="Tell me a tale.", max_output_tokens=10, temperature=0)
rule("a response says what a chat does", response.output_text == chat.choices[0].message.content and response.usage.output_tokens == 10)
with client.responses.stream(model=model, input="Tell me a tale.", max_output_tokens=10, temperature=0) as events:
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
rule("and streams it in events", text == response.output_text)

parameters = {"type": "object", "properties": {"place": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["place", "days"], "additionalProperties": False}
tools = [{"type": "function", "function": {"name": "weather", "description": "The weather at a place", "parameters": parameters, "strict": True}}, {"type": "function", "function": {"name": "now"}}]


def valid(name, arguments):
    read = json.loads(arguments)
    return read == {} if name == "now" else name == "weather" and read["place"] in ("Oslo", "Rome") and 1 <= read["days"] <= 9 and len(read) == 2


rain = [{"role": "user", "content": "Will it rain?"}]
how = {"model": model, "messages": rain, "tools": tools, "max_tokens": 120, "temperature": 1, "seed": 3}
named = {"type": "function", "function": {"name": "weather"}}
# The package streams functions that are strict alone.
strict = {**how, "tools": tools[:1], "tool_choice": named}
called = client.chat.completions.create(**strict).choices[0]
call = called.message.tool_calls[0]
rule("a named function is called with valid arguments", called.finish_reason == "tool_calls" and called.message.content is None and call.function.name == "weather" and valid("weather", call.function.arguments))
required = client.chat.completions.create(**how, tool_choice="required", parallel_tool_calls=False).choices[0]
rule("a required call is valid", len(required.message.tool_calls) == 1 and all(valid(c.function.name, c.function.arguments) for c in required.message.tool_calls))
with client.chat.completions.stream(**strict) as events:
    kinds = {event.type for event in events}
    final = events.get_final_completion().choices[0]
rule("a stream builds up the same call", final.message.tool_calls[0].function.arguments == call.function.arguments and final.message.tool_calls[0].id and final.finish_reason == "tool_calls" and "tool_calls.function.arguments.delta" in kinds)
several = client.chat.completions.create(**how, tool_choice=named, n=3)
rule("each of several choices calls for itself", len({c.message.tool_calls[0].id for c in several.choices}) == 3 and all(valid("weather", c.message.tool_calls[0].function.arguments) for c in several.choices))
answered = rain + [called.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
told = client.chat.completions.create(**{**how, "messages": answered, "max_tokens": 12}).choices[0]
rule("what a tool says goes back to the model", told.message.content or told.message.tool_calls)
silent = client.chat.completions.create(**{**how, "max_tokens": 12}, tool_choice="none").choices[0]
rule("and none are called where none may be", silent.message.tool_calls is None and silent.message.content)


class Weather(pydantic.BaseModel, extra="forbid"):
    place: Literal["Oslo", "Rome"]
    days: int = pydantic.Field(ge=1, le=9)


typed = client.chat.completions.parse(model=model, messages=rain, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required", max_tokens=120, parallel_tool_calls=False)
rule("a call is parsed into a model of pydantic", isinstance(typed.choices[0].message.tool_calls[0].function.parsed_arguments, Weather))
flat = [{"type": "function", "name": "weather", "parameters": parameters, "strict": True}]
how = {"model": model, "tools": flat, "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 120}
asked = client.responses.create(input="Will it rain?", **how)
item = asked.output[0]
rule("a response calls a function", item.type == "function_call" and asked.status == "completed" and valid(item.name, item.arguments) and asked.tools[0].name == "weather")
with client.responses.stream(input="Will it rain?", **how) as events:
    seen = list(events)
    final = events.get_final_response()
deltas = "".join(event.delta for event in seen if event.type == "response.function_call_arguments.delta")
rule("and streams the call in events", final.output[0].arguments == deltas and valid("weather", deltas))
back = [{"role": "user", "content": "Will it rain?"}, item.to_dict(), {"type": "function_call_output", "call_id": item.call_id, "output": "Rain."}]
rule("its output goes back as an item", client.responses.create(model=model, input=back, max_output_tokens=8).output_text)
refused("a function that is not offered cannot be chosen", openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=rain, tools=tools, tool_choice={"type": "function", "function": {"name": "rain"}}))
refused("parameters that cannot be kept to are refused", openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=rain, tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"uniqueItems": True}}}}}]))
refused("OpenAI's own tools are refused by name", openai.BadRequestError, lambda: client.responses.create(model=model, input="x", tools=[{"type": "web_search"}]))

refused("a schema that cannot be kept to is refused", openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x", extra_body={"guided_regex": "("}))
refused("an unsupported parameter is refused by name", openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x", best_of=2))
refused("an unknown batch is not found", openai.NotFoundError, lambda: client.batches.retrieve("batch_unknown"))
refused("an unknown file is not found", openai.NotFoundError, lambda: client.files.content("file-unknown"))
refused("a wrong purpose is refused", openai.BadRequestError, lambda: client.files.create(file=("x", b"{}"), purpose="fine-tune"))
refused("an empty prompt list is refused", openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=[]))
refused("embeddings are clearly not served", openai.APIStatusError, lambda: client.embeddings.create(model=model, input="x"))
rule("a file can be deleted", client.files.delete(upload.id).deleted)
print("all rules hold")
