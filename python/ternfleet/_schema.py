"""From a JSON schema to the types of columns, and from an answer to values of these types."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

_DEPTH_MAX = 16
_INTEGER_MAX = 2**63 - 1


class Type(NamedTuple):
    """`string`, `integer` (64 bits), `number`, `boolean`, `list` of `item`, `struct` of `fields`, or `json`: as text."""

    name: str
    item: Optional[Type] = None
    fields: Tuple[Tuple[str, Type], ...] = ()


STRING, INTEGER, NUMBER, BOOLEAN, JSON = (Type(name) for name in ("string", "integer", "number", "boolean", "json"))
_SCALARS = {"string": STRING, "integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN}


class Shape:
    """What an answer looks like in the table: its columns, and how a text becomes their values."""

    def __init__(self, schema: Optional[Mapping[str, Any]]) -> None:
        self.schema = schema
        self.columns: List[Tuple[str, Type]] = [("answer", STRING)]
        self._is_object = False
        if schema is not None:
            top = _resolved(schema, schema, 0)
            properties = top.get("properties")
            if isinstance(properties, dict) and properties:
                self.columns = [(name, _type(one, schema, 1)) for name, one in properties.items()]
                self._is_object = True
            else:
                self.columns = [("answer", _type(schema, schema, 0))]

    def read(self, text: str) -> Tuple[Any, List[Any]]:
        """The answer as a Python value, and the values of its columns.

        Raises ValueError for a text that does not follow the schema: one that was cut.
        """
        if self.schema is None:
            return text, [text]
        answer = json.loads(text)
        if not self._is_object:
            return answer, [_value(answer, self.columns[0][1])]
        if not isinstance(answer, dict):
            raise ValueError("it is no object")
        return answer, [_value(answer.get(name), kind) for name, kind in self.columns]


def _resolved(schema: Any, root: Mapping[str, Any], depth: int) -> Dict[str, Any]:
    """The schema itself, references within the document followed; what is no object says nothing."""
    while isinstance(schema, dict) and isinstance(schema.get("$ref"), str) and depth < _DEPTH_MAX:
        depth += 1
        path, schema = schema["$ref"], root
        if not path.startswith("#"):
            return {}
        for part in path[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(part) if isinstance(schema, dict) else None
    return schema if isinstance(schema, dict) else {}


def _type(schema: Any, root: Mapping[str, Any], depth: int) -> Type:
    if depth >= _DEPTH_MAX:
        return JSON  # A schema that contains itself.
    schema = _resolved(schema, root, depth)
    if "const" in schema or "enum" in schema:
        return _of_values(schema["enum"] if "enum" in schema else [schema["const"]])
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            cases = [case for case in schema[key] if _resolved(case, root, depth).get("type") != "null"]
            return _common([_type(case, root, depth + 1) for case in cases])
    names = schema.get("type")
    names = [name for name in (names if isinstance(names, list) else [names]) if name != "null"]
    if names == ["array"] and "prefixItems" not in schema and isinstance(schema.get("items"), dict):
        return Type("list", _type(schema["items"], root, depth + 1))
    properties = schema.get("properties")
    if names == ["object"] and isinstance(properties, dict) and properties and schema.get("additionalProperties") is False:
        return Type("struct", None, tuple((name, _type(one, root, depth + 1)) for name, one in properties.items()))
    return _common([_SCALARS.get(name, JSON) for name in names])


def _of_values(values: List[Any]) -> Type:
    def one(value: Any) -> Type:
        if isinstance(value, bool):
            return BOOLEAN
        return {str: STRING, int: INTEGER, float: NUMBER}.get(type(value), JSON)

    return _common([one(value) for value in values if value is not None])


def _common(types: List[Type]) -> Type:
    different = set(types)
    if len(different) == 1:
        return types[0]
    return NUMBER if different == {INTEGER, NUMBER} else JSON


def _value(value: Any, kind: Type) -> Any:
    if kind.name == "json":
        return None if value is None else json.dumps(value, ensure_ascii=False)
    if value is None:
        return None
    if kind.item is not None and isinstance(value, list):
        return [_value(one, kind.item) for one in value]
    if kind.name == "struct" and isinstance(value, dict):
        return {name: _value(value.get(name), one) for name, one in kind.fields}
    if kind.name == "boolean" and isinstance(value, bool):
        return value
    if kind.name == "string" and isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if kind.name == "number":
            return float(value)
        if kind.name == "integer" and value == int(value):
            if abs(value) > _INTEGER_MAX:
                raise ValueError(f"{value} does not fit into 64 bits")
            return int(value)
    raise ValueError(f"{value!r} is no {kind.name}")
