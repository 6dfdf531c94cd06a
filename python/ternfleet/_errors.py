"""What can go wrong, named for what the caller can do about it."""

from __future__ import annotations

from typing import Optional


class TernfleetError(Exception):
    """Base class of all errors of this module, except `Interrupted`."""


class TableError(TernfleetError, ValueError):
    """The table and the request do not fit together. Nothing was submitted."""


class ApiError(TernfleetError):
    """The server refused a request; the text is its own message."""

    def __init__(
        self,
        status: int,
        message: str,
        code: Optional[str] = None,
        param: Optional[str] = None,
        retry_after: Optional[float] = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


class ConnectionLost(TernfleetError):
    """Nothing answers. With `batch_id`, the batch goes on: `Client.resume` waits for it again."""

    def __init__(self, message: str, batch_id: Optional[str] = None) -> None:
        super().__init__(message)
        self.batch_id = batch_id


class BatchFailed(TernfleetError):
    """The batch failed as a whole. A row that fails alone is a row with `error` instead."""

    def __init__(self, message: str, batch_id: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id


class BudgetSpent(TernfleetError):
    """The batch is paused because its budget is spent. It goes on with `Batch.set(budget=…)`, or ends with `Batch.cancel()`."""

    def __init__(self, message: str, batch_id: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while waiting. The batch goes on."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"{batch_id} goes on; wait for it again with client.resume({batch_id!r}, table)")
        self.batch_id = batch_id
