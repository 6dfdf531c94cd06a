"""The kinds of tables: rows out, columns in, the same kind back. The libraries are imported only for their own tables."""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence

from ._errors import TableError
from ._schema import Type

Row = Dict[str, Any]


class Column(NamedTuple):
    name: str
    type: Type
    values: List[Any]


class Table:
    """A table of one kind. `None` stands for what is missing, whatever the library has for that."""

    columns: List[str]
    length: int

    def rows(self, names: Optional[Sequence[str]] = None) -> Iterator[Row]:
        """Each row as a dict; with `names`, of these columns alone."""
        names = self.columns if names is None else names
        if not names:
            return iter([{} for _ in range(self.length)])
        return self._rows(list(names))

    def _rows(self, names: List[str]) -> Iterator[Row]:
        raise NotImplementedError

    def joined(self, columns: Iterable[Column]) -> Any:
        """A new table of the same kind, with these columns at its end."""
        raise NotImplementedError


class _Dicts(Table):
    def __init__(self, table: Sequence[Row]) -> None:
        for number, row in enumerate(table):
            if not isinstance(row, dict):
                raise TableError(f"row {number} of the list is no dict but a {type(row).__name__}")
        self._table, self.length = table, len(table)
        self.columns = list(dict.fromkeys(str(name) for row in table for name in row))

    def _rows(self, names: List[str]) -> Iterator[Row]:
        for row in self._table:
            yield {name: row.get(name) for name in names}

    def joined(self, columns: Iterable[Column]) -> Any:
        columns = list(columns)
        return [{**row, **{one.name: one.values[at] for one in columns}} for at, row in enumerate(self._table)]


class _Pandas(Table):
    def __init__(self, table: Any) -> None:
        self._pandas = importlib.import_module("pandas")
        self._table, self.length = table, len(table)
        self.columns = [str(name) for name in table.columns]

    def _rows(self, names: List[str]) -> Iterator[Row]:
        series = [self._table.iloc[:, self.columns.index(name)] for name in names]
        cells = [[None if gone else value for value, gone in zip(one.tolist(), one.isna())] for one in series]
        for values in zip(*cells):
            yield dict(zip(names, values))

    def joined(self, columns: Iterable[Column]) -> Any:
        dtypes = {"string": "string", "json": "string", "integer": "Int64", "number": "Float64", "boolean": "boolean"}
        table = self._table.copy(deep=False)
        for one in columns:
            # An array has no index of its own that rows could be matched by.
            if one.type.name in dtypes:
                table[one.name] = self._pandas.array(one.values, dtype=dtypes[one.type.name])
            else:
                table[one.name] = self._pandas.Series(one.values, index=table.index, dtype=object)
        return table


class _Polars(Table):
    def __init__(self, table: Any) -> None:
        self._polars = importlib.import_module("polars")
        self._table, self.length, self.columns = table, table.height, list(table.columns)

    def _rows(self, names: List[str]) -> Iterator[Row]:
        rows: Iterator[Row] = self._table.select(names).iter_rows(named=True)
        return rows

    def joined(self, columns: Iterable[Column]) -> Any:
        made = [self._polars.Series(one.name, one.values, dtype=self._dtype(one.type)) for one in columns]
        return self._table.with_columns(made)

    def _dtype(self, kind: Type) -> Any:
        polars = self._polars
        if kind.item is not None:
            return polars.List(self._dtype(kind.item))
        if kind.name == "struct":
            return polars.Struct([polars.Field(name, self._dtype(one)) for name, one in kind.fields])
        names = {"integer": polars.Int64, "number": polars.Float64, "boolean": polars.Boolean}
        return names.get(kind.name, polars.String)


class _Arrow(Table):
    def __init__(self, table: Any) -> None:
        self._arrow = importlib.import_module("pyarrow")
        self._table, self.length, self.columns = table, table.num_rows, list(table.column_names)

    def _rows(self, names: List[str]) -> Iterator[Row]:
        for batch in self._table.select(names).to_batches(max_chunksize=1024):
            yield from batch.to_pylist()

    def joined(self, columns: Iterable[Column]) -> Any:
        table = self._table
        for one in columns:
            kind = self._type(one.type)
            table = table.append_column(self._arrow.field(one.name, kind), self._arrow.array(one.values, type=kind))
        return table

    def _type(self, kind: Type) -> Any:
        arrow = self._arrow
        if kind.item is not None:
            return arrow.list_(self._type(kind.item))
        if kind.name == "struct":
            return arrow.struct([(name, self._type(one)) for name, one in kind.fields])
        names = {"integer": arrow.int64, "number": arrow.float64, "boolean": arrow.bool_}
        return names.get(kind.name, arrow.string)()


def _is_a(table: Any, library: str, name: str) -> bool:
    classes = type(table).__mro__
    return any(one.__name__ == name and one.__module__.split(".")[0] == library for one in classes)


def _of_stream(table: Any) -> Table:
    """An object that hands its rows over through Arrow's C interface, taken by the library that is there."""
    makers: Dict[str, Callable[[Any], Table]] = {
        "pyarrow": lambda library: _Arrow(library.table(table)),
        "polars": lambda library: _Polars(library.DataFrame(table)),
    }
    for name, make in makers.items():
        try:
            library = importlib.import_module(name)
        except ImportError:
            continue
        return make(library)
    raise TableError(f"a {type(table).__name__} is read with pyarrow or polars: install one of them")


def of(table: Any) -> Table:
    """The table behind what a caller gave.

    Raises `TableError` for what is no table, and for two columns of one name.
    """
    found: Table
    if isinstance(table, (list, tuple)):
        found = _Dicts(table)
    elif _is_a(table, "pandas", "DataFrame"):
        found = _Pandas(table)
    elif _is_a(table, "polars", "DataFrame"):
        found = _Polars(table)
    elif _is_a(table, "pyarrow", "Table"):
        found = _Arrow(table)
    elif hasattr(table, "__arrow_c_stream__"):
        found = _of_stream(table)
    else:
        hint = ": call .collect() first" if _is_a(table, "polars", "LazyFrame") else ""
        raise TableError(
            "a table is a list of dicts, a pandas or polars DataFrame, a pyarrow Table or an object with "
            f"__arrow_c_stream__, not a {type(table).__name__}{hint}"
        )
    twice = sorted({name for name in found.columns if found.columns.count(name) > 1})
    if twice:
        raise TableError(f"the table has several columns {twice[0]!r}")
    return found
