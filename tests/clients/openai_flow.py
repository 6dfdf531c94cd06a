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

refused("a schema that cannot be kept to is refused", openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x", extra_body={"guided_regex": "("}))
refused("an unsupported parameter is refused by name", openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x", best_of=2))
refused("an unknown batch is not found", openai.NotFoundError, lambda: client.batches.retrieve("batch_unknown"))
refused("an unknown file is not found", openai.NotFoundError, lambda: client.files.content("file-unknown"))
refused("a wrong purpose is refused", openai.BadRequestError, lambda: client.files.create(file=("x", b"{}"), purpose="fine-tune"))
refused("an empty prompt list is refused", openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=[]))
refused("embeddings are clearly not served", openai.APIStatusError, lambda: client.embeddings.create(model=model, input="x"))
rule("a file can be deleted", client.files.delete(upload.id).deleted)
print("all rules hold")
