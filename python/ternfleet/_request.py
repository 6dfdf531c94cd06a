"""What is asked of each row: templates over the columns, the lines of the batch, its limits."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import string
import time
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, TypedDict, Union

from ._errors import TableError
from ._schema import Shape
from ._tables import Row, Table

Message = Mapping[str, Any]
Prompt = Union[str, Callable[[Row], Optional[str]]]
Messages = Union[Sequence[Message], Callable[[Row], Optional[Sequence[Message]]]]

_FORMATTER = string.Formatter()
_ID_BYTES_MAX = 512
_WINDOW_MIN_S = 24 * 3600
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)


class Request(TypedDict, total=False):
    """The keyword arguments of `Client.run`, `stream` and `submit`."""

    messages: Messages
    """Instead of a prompt: chat messages with templates, or a function that returns messages for a row."""
    system: str
    """With a prompt: the system message of a chat with the prompt."""
    schema: Any
    """A JSON schema, or a class with `model_json_schema()`. Each answer follows it, and its fields become columns."""
    id: str
    """The column with the `custom_id` of each row; the row number by default."""
    prefix: str
    """Prefix of the names of new columns."""
    budget: Union[float, decimal.Decimal]
    """Maximum cost in US dollars. The batch pauses when it is spent."""
    deadline: Union[str, datetime.timedelta, datetime.datetime]
    """`"2h"`, or a time from now, or a time of day."""
    model: str
    """Name of a model that the fleet serves; any model by default."""
    name: str
    """Name of the batch, for lists and the web page."""
    priority: int
    accept_at_risk: bool
    wait_for_model: bool
    max_tokens: int
    """Maximum tokens of each answer; 256 by default."""
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: Union[str, Sequence[str]]
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]


class Template:
    """A text with `{column}` in it, each optionally with a conversion and a format, as `str.format` has them."""

    def __init__(self, text: str, columns: Sequence[str]) -> None:
        self._parts: List[Tuple[str, Optional[str], Optional[str], Optional[str]]] = []
        try:
            self._parts.extend(_FORMATTER.parse(text))
        except ValueError as error:
            raise TableError(f"the template {text!r} cannot be read: {error}; write {{{{ and }}}} for braces") from None
        self.columns: Set[str] = {name for _, name, _, _ in self._parts if name is not None}
        for name in sorted(self.columns):
            if name not in columns:
                there = ", ".join(columns) or "none"
                raise TableError(f"the table has no column {name!r}; it has: {there} (write {{{{ and }}}} for braces)")

    def fill(self, row: Row) -> str:
        """The text for a row. Raises `_Skipped` if a column is null there."""
        filled = []
        for text, name, spec, conversion in self._parts:
            filled.append(text)
            if name is None:
                continue
            value = row[name]
            if value is None:
                raise _Skipped(f"`{name}` is null")
            changed = _FORMATTER.convert_field(value, conversion)
            filled.append(format(changed, spec or ""))
        return "".join(filled)


class _Skipped(Exception):
    """A row that asks for nothing; the text goes into its column `error`."""


class Plan:
    """A request, held against a table: everything that can be refused without a server has been."""

    def __init__(self, table: Table, prompt: Optional[Prompt], request: Mapping[str, Any]) -> None:
        known = set(Request.__annotations__)
        for name in request:
            if name not in known:
                raise TypeError(f"unknown keyword argument {name!r}; known are: {', '.join(sorted(known))}")
        self._table = table
        self._request = request
        self.shape = Shape(_schema_of(request.get("schema")))
        self.id_column: Optional[str] = request.get("id")
        self.prefix: str = request.get("prefix") or ""
        self._needed: Optional[Set[str]] = set()
        self._ask = self._asking(prompt)
        if self.id_column is not None and self.id_column not in table.columns:
            raise TableError(f"`id`: the table has no column {self.id_column!r}; it has: {', '.join(table.columns)}")
        for name in new_columns(self.shape, self.prefix):
            if name in table.columns:
                raise TableError(f"the table already has a column {name!r}: rename it, or set a `prefix` for the new ones")
        self.batch_fields = _batch_fields(request)

    @property
    def endpoint(self) -> str:
        chat = "messages" in self._request or "system" in self._request
        return "/v1/chat/completions" if chat else "/v1/completions"

    def write(self, file: IO[bytes]) -> Tuple[int, Dict[int, str]]:
        """Writes the lines of the batch. Returns how many there are, and why the other rows have none."""
        names = None if self._needed is None else sorted(self._needed | ({self.id_column} if self.id_column else set()))
        shared = self._shared_body()
        seen: Dict[str, int] = {}
        skipped: Dict[int, str] = {}
        lines = 0
        for number, row in enumerate(self._table.rows(names)):
            custom_id = row_id(row, number, self.id_column)
            if custom_id in seen:
                raise TableError(f"`id`: rows {seen[custom_id]} and {number} are both {custom_id!r}")
            seen[custom_id] = number
            try:
                asked = self._ask(row)
            except _Skipped as reason:
                skipped[number] = str(reason)
                continue
            line = {"custom_id": custom_id, "method": "POST", "url": self.endpoint, "body": {**asked, **shared}}
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            lines += 1
        return lines, skipped

    def _asking(self, prompt: Optional[Prompt]) -> Callable[[Row], Dict[str, Any]]:
        messages: Optional[Messages] = self._request.get("messages")
        system: Optional[str] = self._request.get("system")
        if (prompt is None) == (messages is None):
            raise TableError("give either `prompt` or `messages`")
        if prompt is not None:
            text = self._text(prompt)
            if system is None:
                return lambda row: {"prompt": text(row)}
            instruction = self._text(system)
            return lambda row: {"messages": [_message("system", instruction(row)), _message("user", text(row))]}
        if system is not None:
            raise TableError("`system` goes with `prompt`; in `messages` write it as the first one")
        if callable(messages):
            self._needed = None
            of_row = messages
            return lambda row: {"messages": [dict(one) for one in _given(of_row(row))]}
        filled = [(dict(one), self._text(one["content"])) for one in messages or () if isinstance(one.get("content"), str)]
        if len(filled) != len(messages or ()):
            raise TableError("each of `messages` needs a `content` that is a text; for others give a function of the row")
        return lambda row: {"messages": [{**one, "content": text(row)} for one, text in filled]}

    def _text(self, prompt: Prompt) -> Callable[[Row], str]:
        if callable(prompt):
            self._needed = None
            of_row = prompt
            return lambda row: str(_given(of_row(row)))
        template = Template(prompt, self._table.columns)
        if self._needed is not None:
            self._needed |= template.columns
        return template.fill

    def _shared_body(self) -> Dict[str, Any]:
        body: Dict[str, Any] = {"max_tokens": self._request.get("max_tokens", 256)}
        for name in ("model", *_SAMPLING):
            if self._request.get(name) is not None:
                body[name] = self._request[name]
        if self.shape.schema is not None:
            named = {"name": "answer", "schema": self.shape.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body


def new_columns(shape: Shape, prefix: str) -> Iterator[str]:
    """The names of the columns that the answers add, in their order."""
    for name in [*(name for name, _ in shape.columns), "finish_reason", "prompt_tokens", "completion_tokens", "error"]:
        yield prefix + name


def row_id(row: Row, number: int, column: Optional[str]) -> str:
    """What a row is called on the server."""
    if column is None:
        return str(number)
    text = "" if row[column] is None else str(row[column])
    if not 1 <= len(text.encode("utf-8", "replace")) <= _ID_BYTES_MAX:
        raise TableError(f"`id`: {column!r} of row {number} must have 1 to {_ID_BYTES_MAX} bytes, not {text[:40]!r}")
    return text


def _given(value: Any) -> Any:
    if value is None:
        raise _Skipped("the function returned no prompt for this row")
    return value


def _message(role: str, content: str) -> Dict[str, str]:
    return {"role": role, "content": content}


def _schema_of(schema: Any) -> Optional[Mapping[str, Any]]:
    made = schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema
    if made is not None and not isinstance(made, Mapping):
        raise TableError(f"`schema` must be a JSON schema as a dict, not a {type(made).__name__}")
    return made


def usd_micro(budget: Union[float, decimal.Decimal]) -> int:
    """Dollars in millionths."""
    try:
        micro = int((decimal.Decimal(str(budget)) * 1_000_000).to_integral_value())
    except (decimal.InvalidOperation, OverflowError, ValueError):
        micro = 0
    if micro < 1:
        raise TableError(f"`budget` must be a number of US dollars above 0, not {budget!r}")
    return micro


def unix_seconds(deadline: Union[str, datetime.timedelta, datetime.datetime]) -> int:
    """When a deadline is."""
    if isinstance(deadline, datetime.datetime):
        return math.ceil(deadline.timestamp())
    if isinstance(deadline, datetime.timedelta):
        return math.ceil(time.time() + deadline.total_seconds())
    found = re.fullmatch(r"\s*(\d+)\s*([smhd])\s*", deadline) if isinstance(deadline, str) else None
    if found is None:
        raise TableError(f"`deadline` must be a text such as '2h' (s, m, h, d), a timedelta or a datetime, not {deadline!r}")
    return math.ceil(time.time() + int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]])


def _batch_fields(request: Mapping[str, Any]) -> Dict[str, Any]:
    own = {name: request[name] for name in ("name", "priority", "accept_at_risk", "wait_for_model") if name in request}
    window = _WINDOW_MIN_S
    if request.get("budget") is not None:
        own["budget_usd_micro"] = usd_micro(request["budget"])
    if request.get("deadline") is not None:
        own["deadline"] = unix_seconds(request["deadline"])
        window = max(window, own["deadline"] - math.floor(time.time()))
    return {"completion_window": f"{window}s", "ternfleet": own}
