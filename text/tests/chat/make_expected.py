"""Renders every template of this folder over a few conversations by transformers' own code, into expected.json. Run once:

    python3 -m venv venv && venv/bin/pip install transformers jinja2 && venv/bin/python make_expected.py

The templates do what the published ones of ChatML, Falcon 3, Llama 3 and Qwen 3 do, in words of our own.
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What's the weather <now> & \"soon\"? Größe: 5 °C",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}, "required": ["place"]},
        },
    },
    {"type": "function", "function": {"name": "add", "description": "", "parameters": {"b": [], "a": {}, "c": [1, 2.5, None, True]}}},
]


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(id, name, arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = [
    [message("user", "Hello!")],
    [message("system", "Be brief."), message("user", "  What is 2+2?\n")],
    [message("system", "Be brief."), message("user", "Hi"), message("assistant", "Hello."), message("user", "Größe? 日本語 <b>&'\"</b>")],
    [message("user", "a"), message("assistant", "<think>\nwhy not\n</think>\n\nb"), message("user", "c")],
    [message("user", "Rain?"), message("assistant", "<think>\nask\n</think>\n\nOne moment."), message("tool", '{"rain": true}'), message("tool", "5 °C")],
    [
        message("user", "Rain in Köln, and 1 + 2?"),
        message("assistant", "One moment.", tool_calls=[call("call_1", "weather", {"place": "Köln \"am Rhein\"", "days": 3})]),
        message("tool", "5 °C", tool_call_id="call_1"),
        message("assistant", "", tool_calls=[call("call_2", "add", {"b": [1, 2.5, None], "a": {}}), call("call_3", "add", {})]),
        message("tool", "3", tool_call_id="call_2"),
        message("tool", "0", tool_call_id="call_3"),
        message("assistant", "Rain, and 3."),
        message("user", "Thanks!"),
    ],
    [message("user", "{{ messages }} {% raw %}"), message("assistant", "\n\nline\n"), message("user", "<tool_response>x</tool_response>")],
]
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>"}

cases = []
for path in sorted(HERE.glob("*.jinja")):
    for messages in CONVERSATIONS:
        for tools in [None, TOOLS]:
            for thinking in [None, True, False] if path.stem == "qwen3" else [None]:
                extra = dict(TOKENS) if thinking is None else dict(TOKENS, enable_thinking=thinking)
                rendered, _ = render_jinja_template(
                    conversations=[messages], tools=tools, chat_template=path.read_text(), add_generation_prompt=True, **extra
                )
                cases.append(
                    {"template": path.name, "messages": messages, "tools": tools is not None, "thinking": thinking, "text": rendered[0]}
                )
made = {"tools": json.dumps(TOOLS, ensure_ascii=False), "cases": cases}
(HERE / "expected.json").write_text(json.dumps(made, ensure_ascii=False, indent=0) + "\n")
