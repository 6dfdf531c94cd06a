"""A batch and its table: wait for it, stream its answers, or get the table with its answers."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import logging
import time
from typing import Any, Callable, Dict, Generic, Iterator, List, Mapping, NamedTuple, Optional, TypeVar, Union

from ._errors import BatchFailed, BudgetSpent, ConnectionLost, Interrupted
from ._http import Http
from ._request import new_columns, row_id, unix_seconds, usd_micro
from ._schema import INTEGER, STRING, Shape
from ._tables import Column, Table

TableT = TypeVar("TableT")
T = TypeVar("T")

_log = logging.getLogger("ternfleet")
_ENDED = ("completed", "failed", "expired", "cancelled")
_POLL_MIN_S = 0.1
_POLL_MAX_S = 2.0
# Reading the answers so far begins with the first; so it may take this share of the time and no more.
_READING_SHARE = 0.1
# A paused batch may go on by itself when jobs turn out cheaper than was put aside for them.
_PAUSED_S = 2.0


class Result(NamedTuple):
    """The answer to one row. `answer` is None where `error` is not."""

    row: int
    id: str
    answer: Any
    """The text; with a schema, the parsed value."""
    finish_reason: Optional[str]
    prompt_tokens: Optional[int]
    completion_tokens: Optional[int]
    error: Optional[str]
    values: List[Any]
    """Values of the schema's columns, in their order; without a schema, only the text."""


class Batch(Generic[TableT]):
    """An accepted batch. It runs whether or not a client waits for it."""

    def __init__(
        self,
        http: Http,
        batch_id: str,
        table: Table,
        shape: Shape,
        id_column: Optional[str],
        prefix: str,
        skipped: Mapping[int, str],
        patience: float,
    ) -> None:
        self.id = batch_id
        self._http = http
        self._table = table
        self._shape = shape
        self._prefix = prefix
        self._skipped = skipped
        self._patience = patience
        rows = table.rows([id_column] if id_column else [])
        self._row_of = {row_id(row, number, id_column): number for number, row in enumerate(rows)}

    def __repr__(self) -> str:
        return f"<ternfleet.Batch {self.id}>"

    def status(self) -> Dict[str, Any]:
        """The API's batch object; cost, speed and estimates are in its `ternfleet`."""
        return self._patiently(lambda: self._http.json("GET", f"/v1/batches/{self.id}"))

    def set(
        self,
        *,
        budget: Union[float, decimal.Decimal, None] = None,
        deadline: Union[str, datetime.timedelta, datetime.datetime, None] = None,
        priority: Optional[int] = None,
    ) -> Dict[str, Any]:
        """Changes an open batch. A batch that is paused for its budget continues with a higher one."""
        body: Dict[str, Any] = {}
        if budget is not None:
            body["budget_usd_micro"] = usd_micro(budget)
        if deadline is not None:
            body["deadline"] = unix_seconds(deadline)
        if priority is not None:
            body["priority"] = priority
        return self._http.json("POST", f"/v1/batches/{self.id}/ternfleet", body)

    def cancel(self) -> Dict[str, Any]:
        """Cancels the batch. Finished answers are kept; the other rows get an `error`."""
        return self._http.json("POST", f"/v1/batches/{self.id}/cancel", {})

    def results(self) -> Iterator[Result]:
        """Yields each answer once, in order of completion, until the batch has ended."""
        seen: Dict[int, bool] = {}
        read, quiet_until = 0, 0.0
        for batch in self._states():
            ended = batch["status"] in _ENDED
            counts = batch["request_counts"]
            if not ended and (counts["completed"] + counts["failed"] <= read or time.monotonic() < quiet_until):
                continue
            began = time.monotonic()
            # At the end the files are complete, whatever was missed before.
            lines = self._final_lines(batch) if ended else self._lines_so_far(read)
            read += 0 if ended else len(lines)
            quiet_until = time.monotonic() + (time.monotonic() - began) / _READING_SHARE
            for line in lines:
                result = self._result(line)
                if result is not None and result.row not in seen:
                    seen[result.row] = True
                    yield result

    def table(self) -> TableT:
        """Waits until the batch has ended, and returns its table with the answers."""
        last: Dict[str, Any] = {}
        for last in self._states():
            pass
        found = (self._result(line) for line in self._final_lines(last))
        return self._joined(result for result in found if result is not None)

    def _joined(self, results: Iterator[Result]) -> TableT:
        by_row = {result.row: result for result in results}
        missing = "no answer for this row"
        columns: List[List[Any]] = [[] for _ in new_columns(self._shape, "")]
        nothing = [None] * len(self._shape.columns)
        for row in range(self._table.length):
            one = by_row.get(row) or Result(row, "", None, None, None, None, self._skipped.get(row, missing), nothing)
            cells = [*one.values, one.finish_reason, one.prompt_tokens, one.completion_tokens, one.error]
            for column, cell in zip(columns, cells):
                column.append(cell)
        types = [kind for _, kind in self._shape.columns] + [STRING, INTEGER, INTEGER, STRING]
        names = new_columns(self._shape, self._prefix)
        joined: TableT = self._table.joined(map(Column, names, types, columns))
        return joined

    def _states(self) -> Iterator[Dict[str, Any]]:
        """Yields the batch object repeatedly, with pauses; the last one is of an ended batch."""
        pause, paused_since = _POLL_MIN_S, None
        while True:
            batch = self.status()
            if batch["status"] == "failed":
                raise BatchFailed(f"{self.id} failed: {batch['ternfleet']['reason']}", self.id)
            yield batch
            if batch["status"] in _ENDED:
                return
            if batch["ternfleet"]["state"] == "paused_budget":
                paused_since = paused_since or time.monotonic()
                if time.monotonic() - paused_since >= _PAUSED_S:
                    raise BudgetSpent(f"{self.id} is paused: its budget is spent (Batch.set raises it)", self.id)
            else:
                paused_since = None
            with self._interruptible():
                time.sleep(pause)
            pause = min(pause * 1.3, _POLL_MAX_S)

    def _lines_so_far(self, skip: int) -> List[bytes]:
        return self._patiently(lambda: list(self._http.lines(f"/v1/batches/{self.id}/results", skip)))

    def _final_lines(self, batch: Mapping[str, Any]) -> List[bytes]:
        files = [batch[key] for key in ("output_file_id", "error_file_id") if batch.get(key)]
        paths = [f"/v1/files/{file}/content" for file in files]
        return self._patiently(lambda: [line for path in paths for line in self._http.lines(path)])

    def _result(self, said: bytes) -> Optional[Result]:
        line = json.loads(said)
        row = self._row_of.get(line["custom_id"])
        if row is None:
            return None
        nothing: List[Any] = [None] * len(self._shape.columns)
        fault = line.get("error")
        if fault is not None:
            return Result(row, line["custom_id"], None, None, None, None, f"{fault['code']}: {fault['message']}", nothing)
        body = line["response"]["body"]
        choice, usage = body["choices"][0], body.get("usage") or {}
        text = choice["text"] if "text" in choice else choice["message"].get("content") or ""
        finish, error = choice["finish_reason"], None
        try:
            answer, values = self._shape.read(text)
        except (ValueError, OverflowError, RecursionError) as unread:
            why = "it was cut off at max_tokens" if finish == "length" else str(unread)
            answer, values, error = None, nothing, f"the answer does not follow the schema: {why}"
        tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Result(row, line["custom_id"], answer, finish, *tokens, error, values)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Retries after a lost connection: the batch continues without this process."""

        said = False

        def once() -> T:
            nonlocal said
            try:
                return call()
            except ConnectionLost as error:
                if not said:
                    _log.warning("%s continues; waiting for the connection: %s", self.id, error)
                said = True
                raise

        with self._interruptible():
            try:
                return self._http.retried(once, self._patience)
            except ConnectionLost as error:
                wait = f"{self.id} may continue; follow it again with client.resume({self.id!r}, table)"
                raise ConnectionLost(f"{error}; {wait}", self.id) from error

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(self.id) from None

