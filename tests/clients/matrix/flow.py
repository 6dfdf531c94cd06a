"""What the users of other clients do first, against a running fleet: LiteLLM, LangChain, instructor, `llm`, lm-
evaluation-harness.

    python flow.py http://127.0.0.1:PORT

Prints one line a rule and exits with 1 at the first that does not hold. Called by tests/tests/clients.rs.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Literal

import pydantic

folder = tempfile.TemporaryDirectory(prefix="ternfleet-matrix-")
# Nothing here may look for models or data elsewhere.
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=folder.name, HF_DATASETS_OFFLINE="1", LITELLM_LOCAL_MODEL_COST_MAP="True", LLM_USER_PATH=folder.name, OPENAI_API_KEY="unused", LANGSMITH_TRACING="false")
base = sys.argv[1]
v1 = f"{base}/v1"
tale = [{"role": "user", "content": "Tell me a tale."}]


def rule(text, holds, found=None):
    print(("ok   " if holds else "FAIL ") + text, flush=True)
    if not holds:
        print(found, flush=True)
        sys.exit(1)


class King(pydantic.BaseModel, extra="forbid"):
    age: Literal["old", "young"]
    sons: int = pydantic.Field(ge=0, le=9)


TOOLS = [{"type": "function", "function": {"name": "King", "description": "A king", "parameters": King.model_json_schema()}}]


def with_litellm():
    import litellm

    how = {"api_base": v1, "api_key": "unused", "max_tokens": 8, "temperature": 0}
    whole = litellm.completion(model="openai/storyteller", messages=tale, **how)
    rule("LiteLLM completes a chat", whole.choices[0].message.content and whole.usage.completion_tokens == 8, whole)
    told = "".join(c.choices[0].delta.content or "" for c in litellm.completion(model="openai/storyteller", messages=tale, stream=True, **how) if c.choices)
    rule("LiteLLM streams it", told == whole.choices[0].message.content, told)
    shaped = litellm.completion(model="openai/storyteller", messages=tale, response_format=King, **{**how, "max_tokens": 60})
    rule("LiteLLM gets an answer of a schema", King.model_validate_json(shaped.choices[0].message.content), shaped)
    asked = litellm.completion(model="openai/storyteller", messages=tale, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **{**how, "max_tokens": 120, "temperature": 1})
    rule("LiteLLM gets a call of a function", asked.choices[0].finish_reason == "tool_calls" and King.model_validate_json(asked.choices[0].message.tool_calls[0].function.arguments), asked)
    text = litellm.text_completion(model="text-completion-openai/storyteller", prompt="Once upon a time", **how)
    rule("LiteLLM completes a text", text.choices[0].text, text)
    try:
        litellm.completion(model="openai/storyteller", messages=[{"role": "user", "content": "tale " * 9000}], **how)
        rule("LiteLLM knows a prompt that is too long", False)
    except litellm.ContextWindowExceededError as error:
        rule("LiteLLM knows a prompt that is too long", True, error)
    except litellm.BadRequestError as error:
        rule("LiteLLM knows a prompt that is too long", "context" in str(error), error)


def with_langchain():
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="storyteller", base_url=v1, api_key="unused", max_tokens=8, temperature=0)
    whole = model.invoke("Tell me a tale.")
    rule("LangChain invokes", whole.content and whole.usage_metadata["output_tokens"] == 8, whole)
    rule("LangChain streams", "".join(part.content for part in model.stream("Tell me a tale.")) == whole.content)
    batch = model.batch(["Tell me a tale.", "Who was the king?"])
    rule("LangChain runs a batch", batch[0].content == whole.content and len(batch) == 2, batch)
    responses = ChatOpenAI(model="storyteller", base_url=v1, api_key="unused", max_tokens=8, temperature=0, use_responses_api=True)
    roomy = ChatOpenAI(model="storyteller", base_url=v1, api_key="unused", max_tokens=60)
    king = roomy.with_structured_output(King, method="json_schema").invoke("Describe a king.")
    rule("LangChain's structured output is a model of pydantic", isinstance(king, King), king)
    roomier = ChatOpenAI(model="storyteller", base_url=v1, api_key="unused", max_tokens=120)
    caller = roomier.bind_tools([King], tool_choice="King")
    rule("LangChain binds a tool and reads its call", King.model_validate(caller.invoke("Describe a king.").tool_calls[0]["args"]))
    streamed = None
    for part in caller.stream("Describe a king."):
        streamed = part if streamed is None else streamed + part
    rule("and puts it together from a stream", King.model_validate(streamed.tool_calls[0]["args"]), streamed)
    by_call = roomier.with_structured_output(King, method="function_calling")
    rule("LangChain's structured output by a call, too", isinstance(by_call.invoke("Describe a king."), King))
    rule("LangChain uses responses", responses.invoke("Tell me a tale.").text == whole.content)


def with_instructor():
    import instructor
    import openai

    client = instructor.from_openai(openai.OpenAI(base_url=v1, api_key="unused"), mode=instructor.Mode.JSON_SCHEMA)
    king = client.chat.completions.create(model="storyteller", messages=[{"role": "user", "content": "Describe a king."}], response_model=King, max_tokens=60, max_retries=1)
    rule("instructor answers with a model of pydantic", isinstance(king, King), king)
    by_call = instructor.from_openai(openai.OpenAI(base_url=v1, api_key="unused"), mode=instructor.Mode.TOOLS)
    king = by_call.chat.completions.create(model="storyteller", messages=[{"role": "user", "content": "Describe a king."}], response_model=King, max_tokens=120, max_retries=1)
    rule("instructor does so by a call as well", isinstance(king, King), king)


def with_llm():
    models = [{"model_id": "tales", "model_name": "storyteller", "api_base": v1}]
    pathlib.Path(folder.name, "extra-openai-models.yaml").write_text(json.dumps(models))
    command = [str(pathlib.Path(sys.executable).parent / "llm"), "-m", "tales", "-o", "max_tokens", "8", "-o", "temperature", "0"]
    streamed = subprocess.run([*command, "Tell me a tale."], capture_output=True, text=True, timeout=60)
    whole = subprocess.run([*command, "--no-stream", "Tell me a tale."], capture_output=True, text=True, timeout=60)
    rule("llm answers, streamed and whole", streamed.returncode == 0 and streamed.stdout.strip() and streamed.stdout == whole.stdout, (streamed, whole))


class Letters:
    """One token a letter, as the model's vocabulary has them: a way of writing that it was not trained on, so the accuracy says nothing."""

    eot_token = 0

    def encode(self, text):
        return [byte - 33 if 33 <= byte < 127 else 188 + byte for byte in text.encode("ascii")]

    def decode(self, tokens):
        return bytes(token + 33 if token < 94 else token - 188 for token in tokens).decode("ascii")

    def decode_batch(self, batch):
        return [self.decode(tokens) for tokens in batch]


def with_lm_eval():
    import lm_eval
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    questions = [{"question": "The king had three", "choices": ["sons", "~~~~"], "answer": 0}, {"question": "Once upon a", "choices": ["}}}}", "time"], "answer": 1}]
    home = pathlib.Path(folder.name)
    (home / "tales.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    task = {"task": "tales", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(home / "tales.jsonl")}}, "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "choices", "doc_to_target": "answer", "metric_list": [{"metric": "acc"}]}
    (home / "tasks").mkdir()
    (home / "tasks" / "tales.yaml").write_text(json.dumps(task))
    for tokenized in (True, False):
        model = LocalCompletionsAPI(base_url=f"{v1}/completions", model="storyteller", tokenizer_backend=None, tokenized_requests=tokenized, batch_size=2, max_retries=1)
        model.tokenizer, model.tokenizer_backend = Letters(), "tiktoken"
        found = lm_eval.simple_evaluate(model=model, tasks=["tales"], task_manager=TaskManager(include_path=str(home / "tasks"), include_defaults=False), bootstrap_iters=0)
        accuracy = found["results"]["tales"]["acc,none"]
        rule(f"lm-evaluation-harness runs a log-likelihood task, {'tokens' if tokenized else 'texts'} (accuracy {accuracy})", 0 <= accuracy <= 1, found)


with_litellm()
with_langchain()
with_instructor()
with_llm()
with_lm_eval()
print("all rules hold")
