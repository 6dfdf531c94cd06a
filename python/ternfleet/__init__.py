"""Runs a prompt over every row of a table, on a Ternfleet fleet, and returns the table with the answers.

    import ternfleet

    answered = ternfleet.Client().run(table, prompt="Classify: {text}")

A table is a list of dicts, a pandas or polars DataFrame, a pyarrow Table, or any object with Arrow's C stream interface.
Nothing but the standard library is needed. Files, single completions and streams of tokens are not here: OpenAI's clients
do those, with the fleet's address and `/v1` as `base_url`.
"""

from ._batch import Batch, Result
from ._client import Client
from ._errors import (
    ApiError,
    BatchFailed,
    BudgetSpent,
    ConnectionLost,
    Interrupted,
    TableError,
    TernfleetError,
)
from ._request import Request

__all__ = [
    "ApiError",
    "Batch",
    "BatchFailed",
    "BudgetSpent",
    "Client",
    "ConnectionLost",
    "Interrupted",
    "Request",
    "Result",
    "TableError",
    "TernfleetError",
]
