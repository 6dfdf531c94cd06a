"""The client: submits a table as a batch, waits for it, and resumes a batch."""

from __future__ import annotations

import json
import tempfile
import uuid
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Optional, Tuple, TypeVar

from . import _tables
from ._batch import Batch, Result
from ._errors import ConnectionLost, TableError
from ._http import Http
from ._request import Plan, Prompt, Request
from ._schema import Shape

if TYPE_CHECKING:
    from typing_extensions import Unpack

TableT = TypeVar("TableT")

# How long a request that submits is repeated.
_SUBMIT_PATIENCE_S = 5.0


class Client:
    """Runs batches over tables.

    `base_url` is the coordinator's address: `TERNFLEET_BASE_URL` unless given, else the fleet of `ternfleet up` in the
    current folder, else http://127.0.0.1:8080. `api_key` is `TERNFLEET_API_KEY` unless given. `timeout` is of one
    request, in seconds. A connection that is lost while a batch runs is waited for `patience` seconds.
    """

    def __init__(
        self, base_url: Optional[str] = None, api_key: Optional[str] = None, *, timeout: float = 60.0, patience: float = 3600.0
    ) -> None:
        self._http = Http(base_url, api_key, timeout)
        self._patience = patience

    @property
    def base_url(self) -> str:
        return self._http.base_url

    def run(
        self,
        table: TableT,
        prompt: Optional[Prompt] = None,
        *,
        on_result: Optional[Callable[[Result], object]] = None,
        **request: Unpack[Request],
    ) -> TableT:
        """Runs `prompt` over each row, and returns the table with the columns of the answers.

        `prompt` is a text with `{column}` in it, or a function of the row, a dict. A row that fails has an `error`.
        `on_result` is called with each answer as it comes. `Request` lists the other arguments.
        """
        rows = _tables.of(table)
        plan = Plan(rows, prompt, request)
        with tempfile.TemporaryFile() as form:
            lines, skipped = _write_form(plan, form)
            if lines == 0:
                nobody: Batch[TableT] = Batch(self._http, "", rows, plan.shape, plan.id_column, plan.prefix, skipped, 0.0)
                return nobody._joined(iter(()))
            batch: Batch[TableT] = self._submit(rows, plan, form, skipped)
        return _wait(batch, on_result)

    def stream(self, table: Any, prompt: Optional[Prompt] = None, **request: Unpack[Request]) -> Iterator[Result]:
        """As `run`, but yields each answer in order of completion."""
        yield from self.submit(table, prompt, **request).results()

    def submit(self, table: TableT, prompt: Optional[Prompt] = None, **request: Unpack[Request]) -> Batch[TableT]:
        """As `run`, but returns as soon as the batch is accepted."""
        rows = _tables.of(table)
        plan = Plan(rows, prompt, request)
        with tempfile.TemporaryFile() as form:
            lines, skipped = _write_form(plan, form)
            if lines == 0:
                raise TableError("no row of the table has a request")
            return self._submit(rows, plan, form, skipped)

    def batch(self, batch_id: str, table: TableT) -> Batch[TableT]:
        """A batch that this module submitted, with its table."""
        facts = self._http.json("GET", f"/v1/batches/{batch_id}")
        metadata = facts.get("metadata") or {}
        if "table_rows" not in metadata:
            raise TableError(f"{batch_id} was not created from a table by this module")
        rows = _tables.of(table)
        if str(rows.length) != metadata["table_rows"]:
            raise TableError(f"{batch_id} was created from a table of {metadata['table_rows']} rows; this one has {rows.length}")
        id_column = metadata.get("table_id") or None
        if id_column is not None and id_column not in rows.columns:
            raise TableError(f"{batch_id} uses the id column {id_column!r}, which this table does not have")
        shape = Shape(self._schema(facts["input_file_id"]))
        prefix = metadata.get("table_prefix", "")
        return Batch(self._http, batch_id, rows, shape, id_column, prefix, {}, self._patience)

    def resume(
        self, batch_id: str, table: TableT, *, on_result: Optional[Callable[[Result], object]] = None
    ) -> TableT:
        """Waits for a batch that this or another process has submitted, and returns the same as `run`."""
        return _wait(self.batch(batch_id, table), on_result)

    def _submit(self, rows: _tables.Table, plan: Plan, form: Any, skipped: Mapping[int, str]) -> Batch[Any]:
        length = form.tell()
        try:
            upload = self._http.retried(
                lambda: self._http.upload("/v1/files", form, length, _CONTENT_TYPE), _SUBMIT_PATIENCE_S
            )
            metadata = {"table_rows": str(rows.length), "table_id": plan.id_column or "", "table_prefix": plan.prefix}
            body = {"input_file_id": upload["id"], "endpoint": plan.endpoint, "metadata": metadata, **plan.batch_fields}
            # A repeated request with the same key finds the batch of the first.
            key = {"Idempotency-Key": f"python-{uuid.uuid4()}"}
            batch = self._http.retried(lambda: self._http.json("POST", "/v1/batches", body, key), _SUBMIT_PATIENCE_S)
        except ConnectionLost as error:
            hint = "start a fleet with `ternfleet up`, or set base_url or TERNFLEET_BASE_URL"
            raise ConnectionLost(f"{error}; {hint}") from error
        return Batch(
            self._http, str(batch["id"]), rows, plan.shape, plan.id_column, plan.prefix, skipped, self._patience
        )

    def _schema(self, file: str) -> Optional[Mapping[str, Any]]:
        """The schema in the lines of an input; all lines have the same."""
        first = next(iter(self._http.lines(f"/v1/files/{file}/content")))
        wanted = json.loads(first)["body"].get("response_format")
        return wanted["json_schema"]["schema"] if wanted else None


def _wait(batch: Batch[TableT], on_result: Optional[Callable[[Result], object]]) -> TableT:
    if on_result is None:
        return batch.table()
    with batch._interruptible():
        results = []
        for result in batch.results():
            results.append(result)
            on_result(result)
        return batch._joined(iter(results))


_BOUNDARY = "ternfleet-" + uuid.uuid4().hex
_CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


def _write_form(plan: Plan, form: Any) -> Tuple[int, Mapping[int, str]]:
    """The upload as OpenAI's API takes it, with the lines as its file."""
    disposition = "Content-Disposition: form-data; name="
    form.write(f'--{_BOUNDARY}\r\n{disposition}"purpose"\r\n\r\nbatch\r\n'.encode())
    form.write(f'--{_BOUNDARY}\r\n{disposition}"file"; filename="table.jsonl"\r\n\r\n'.encode())
    lines, skipped = plan.write(form)
    form.write(f"\r\n--{_BOUNDARY}--\r\n".encode())
    return lines, skipped
