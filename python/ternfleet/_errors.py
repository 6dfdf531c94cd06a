"""The errors, named for what the caller can do about them."""

from __future__ import annotations

from typing import Optional


class TernfleetError(Exception):
    """Base class of all errors of this module, except `Interrupted`."""


class TableError(TernfleetError, ValueError):
    """The request does not match the table. Nothing was submitted."""


class ApiError(TernfleetError):
    """The server rejected a request; the text is the server's message."""

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
    """The server does not reply. With `batch_id`, the batch continues: `Client.resume` waits for it again."""

    def __init__(self, message: str, batch_id: Optional[str] = None) -> None:
        super().__init__(message)
        self.batch_id = batch_id


class BatchFailed(TernfleetError):
    """The batch failed as a whole. If single rows fail, they have an `error` instead."""

    def __init__(self, message: str, batch_id: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id


class BudgetSpent(TernfleetError):
    """The batch is paused because its budget is spent. It continues with `Batch.set(budget=…)`, or ends with `Batch.cancel()`."""

    def __init__(self, message: str, batch_id: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while waiting. The batch continues."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"{batch_id} continues; follow it again with client.resume({batch_id!r}, table)")
        self.batch_id = batch_id
