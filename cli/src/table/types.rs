//! Types of columns: of JSON values, of what a JSON schema allows, and the Arrow arrays that hold them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, Float64Builder, Int64Builder, StringBuilder};
use arrow_array::{ArrayRef, ListArray, StructArray};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field, Fields};
use serde_json::Value;

/// Marks a column of JSON texts, so that JSONL and templates have the values and not their text.
const JSON_KEY: &str = "ternfleet:type";
const JSON_MARK: &str = "json";
/// A schema that contains itself ends here.
const DEPTH_MAX: usize = 16;
/// Integers up to here are exact as a float.
const EXACT_MAX: u64 = 1 << 53;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    /// 64 bits, signed.
    Integer,
    Number,
    Boolean,
    List(Box<Type>),
    Struct(Vec<(String, Type)>),
    /// What has no one type, as JSON text.
    Json,
}

impl Type {
    /// The type of one value; none of a null.
    pub(crate) fn of(value: &Value) -> Option<Type> {
        Some(match value {
            Value::Null => return None,
            Value::Bool(_) => Type::Boolean,
            Value::String(_) => Type::Text,
            Value::Number(number) if number.is_i64() => Type::Integer,
            Value::Number(number) if number.is_f64() => Type::Number,
            Value::Number(_) | Value::Array(_) | Value::Object(_) => Type::Json,
        })
    }

    /// A type that holds values of both.
    pub(crate) fn with(self, other: Type) -> Type {
        match (self, other) {
            (one, other) if one == other => one,
            (Type::Integer, Type::Number) | (Type::Number, Type::Integer) => Type::Number,
            _ => Type::Json,
        }
    }

    /// The type of the values that a JSON schema allows.
    pub(crate) fn of_schema(schema: &Value) -> Type {
        of_schema(schema, schema, 0)
    }

    pub(crate) fn field(&self, name: &str) -> Field {
        let field = Field::new(name, self.arrow(), true);
        match self {
            Type::Json => field.with_metadata(HashMap::from([(JSON_KEY.to_owned(), JSON_MARK.to_owned())])),
            _ => field,
        }
    }

    fn arrow(&self) -> DataType {
        match self {
            Type::Text | Type::Json => DataType::Utf8,
            Type::Integer => DataType::Int64,
            Type::Number => DataType::Float64,
            Type::Boolean => DataType::Boolean,
            Type::List(item) => DataType::List(Arc::new(item.field("item"))),
            Type::Struct(fields) => DataType::Struct(fields_of(fields)),
        }
    }

    /// Whether a value is of this type; the fault otherwise.
    pub(crate) fn check(&self, value: &Value) -> Result<(), String> {
        let fits = match (self, value) {
            (_, Value::Null) | (Type::Json, _) => true,
            (Type::Text, value) => value.is_string(),
            (Type::Boolean, value) => value.is_boolean(),
            (Type::Number, value) => value.is_number(),
            (Type::Integer, value) => integer(value).is_some(),
            (Type::List(item), Value::Array(values)) => {
                return values.iter().try_for_each(|value| item.check(value));
            }
            (Type::Struct(fields), Value::Object(map)) => {
                return fields.iter().try_for_each(|(name, kind)| match map.get(name) {
                    Some(value) => kind.check(value),
                    None => Ok(()),
                });
            }
            _ => false,
        };
        let shown: String = value.to_string().chars().take(60).collect();
        if fits { Ok(()) } else { Err(format!("{shown} is no {}", self.word())) }
    }

    fn word(&self) -> &'static str {
        match self {
            Type::Text => "text",
            Type::Integer => "integer of 64 bits",
            Type::Number => "number",
            Type::Boolean => "boolean",
            Type::List(_) => "list",
            Type::Struct(_) => "object",
            Type::Json => "JSON value",
        }
    }

    /// The array of values that were checked; what is of another type is null.
    pub(crate) fn array(&self, values: &[&Value]) -> ArrayRef {
        match self {
            Type::Text => {
                let mut built = StringBuilder::new();
                values.iter().for_each(|value| built.append_option(value.as_str()));
                Arc::new(built.finish())
            }
            Type::Json => {
                let mut built = StringBuilder::new();
                for value in values {
                    built.append_option((!value.is_null()).then(|| value.to_string()));
                }
                Arc::new(built.finish())
            }
            Type::Integer => {
                let mut built = Int64Builder::new();
                values.iter().for_each(|value| built.append_option(integer(value)));
                Arc::new(built.finish())
            }
            Type::Number => {
                let mut built = Float64Builder::new();
                values.iter().for_each(|value| built.append_option(value.as_f64()));
                Arc::new(built.finish())
            }
            Type::Boolean => {
                let mut built = BooleanBuilder::new();
                values.iter().for_each(|value| built.append_option(value.as_bool()));
                Arc::new(built.finish())
            }
            Type::List(item) => {
                let lists: Vec<Option<&Vec<Value>>> = values.iter().map(|value| value.as_array()).collect();
                let items: Vec<&Value> = lists.iter().flatten().flat_map(|list| list.iter()).collect();
                let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| list.map_or(0, Vec::len)));
                let nulls = NullBuffer::from_iter(lists.iter().map(Option::is_some));
                let field = Arc::new(item.field("item"));
                Arc::new(ListArray::new(field, offsets, item.array(&items), Some(nulls)))
            }
            Type::Struct(fields) => {
                let columns = fields.iter().map(|(name, kind)| {
                    let values: Vec<&Value> = values.iter().map(|value| &value[name.as_str()]).collect();
                    kind.array(&values)
                });
                let nulls = NullBuffer::from_iter(values.iter().map(|value| value.is_object()));
                Arc::new(StructArray::new(fields_of(fields), columns.collect(), Some(nulls)))
            }
        }
    }
}

/// Whether a column holds JSON texts that this program wrote.
pub(crate) fn is_json(field: &Field) -> bool {
    field.metadata().get(JSON_KEY).is_some_and(|mark| mark == JSON_MARK)
}

fn fields_of(fields: &[(String, Type)]) -> Fields {
    fields.iter().map(|(name, kind)| kind.field(name)).collect()
}

/// `3.0` is an integer, as JSON schemas say.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|number| value.is_f64() && number.fract() == 0.0)?;
        (number.abs() <= EXACT_MAX as f64).then_some(number as i64)
    })
}

/// The schema itself, with references within the document followed; null for what is no object.
fn resolved<'a>(mut schema: &'a Value, root: &'a Value) -> &'a Value {
    for _ in 0..DEPTH_MAX {
        let Some(reference) = schema["$ref"].as_str() else { break };
        schema = reference.strip_prefix('#').and_then(|path| root.pointer(path)).unwrap_or(&Value::Null);
    }
    schema
}

/// The properties of a schema of objects, where it has some.
pub(crate) fn properties(schema: &Value) -> Option<Vec<(String, Type)>> {
    let properties = resolved(schema, schema)["properties"].as_object().filter(|map| !map.is_empty())?;
    let one = |(name, one): (&String, &Value)| (name.clone(), of_schema(one, schema, 1));
    Some(properties.iter().map(one).collect())
}

fn of_schema(schema: &Value, root: &Value, depth: usize) -> Type {
    if depth >= DEPTH_MAX {
        return Type::Json;
    }
    let schema = resolved(schema, root);
    if let Some(constant) = schema.get("const") {
        return Type::of(constant).unwrap_or(Type::Json);
    }
    if let Some(values) = schema["enum"].as_array() {
        return common(values.iter().filter_map(Type::of));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(cases) = schema[key].as_array() {
            let real = cases.iter().filter(|case| resolved(case, root)["type"] != "null");
            return common(real.map(|case| of_schema(case, root, depth + 1)));
        }
    }
    let names: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect()
        }
        _ => return Type::Json,
    };
    let simple = |name: &&str| match *name {
        "string" => Type::Text,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ => Type::Json,
    };
    match (names.as_slice(), schema["properties"].as_object()) {
        (["array"], _) if schema["items"].is_object() && schema.get("prefixItems").is_none() => {
            Type::List(Box::new(of_schema(&schema["items"], root, depth + 1)))
        }
        (["object"], Some(map)) if !map.is_empty() && schema["additionalProperties"] == false => {
            let one = |(name, one): (&String, &Value)| (name.clone(), of_schema(one, root, depth + 1));
            Type::Struct(map.iter().map(one).collect())
        }
        (names, _) => common(names.iter().map(simple)),
    }
}

fn common(types: impl Iterator<Item = Type>) -> Type {
    types.reduce(Type::with).unwrap_or(Type::Json)
}

#[cfg(test)]
mod tests {
    use arrow_array::Array;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_becomes_types_and_values_become_arrays_of_them() {
        let schema = json!({
            "type": "object",
            "$defs": { "tag": { "enum": ["a", "b"] }, "again": { "anyOf": [{ "$ref": "#/$defs/again" }] } },
            "properties": {
                "label": { "$ref": "#/$defs/tag" },
                "stars": { "anyOf": [{ "type": "integer" }, { "type": "null" }] },
                "share": { "type": ["number", "integer"] },
                "tags": { "type": "array", "items": { "$ref": "#/$defs/tag" } },
                "at": { "type": "object", "properties": { "x": { "type": "integer" } }, "additionalProperties": false },
                "open": { "type": "object" },
                "endless": { "$ref": "#/$defs/again" },
            },
        });
        let columns = properties(&schema).unwrap();
        let types: Vec<&Type> = columns.iter().map(|(_, kind)| kind).collect();
        let list = Type::List(Box::new(Type::Text));
        let point = Type::Struct(vec![("x".to_owned(), Type::Integer)]);
        let expected = [&Type::Text, &Type::Integer, &Type::Number, &list, &point, &Type::Json, &Type::Json];
        assert_eq!(types, expected);
        let values = [json!(["a", null]), json!(null), json!([])];
        let array = list.array(&values.iter().collect::<Vec<_>>());
        assert_eq!((array.len(), array.null_count()), (3, 1));
        let array = point.array(&[&json!({ "x": 3.0 }), &json!(null)]);
        assert_eq!(array.null_count(), 1);
        assert!(point.check(&json!({ "x": 3.5 })).unwrap_err().contains("3.5 is no integer"));
        assert!(Type::Integer.check(&json!(u64::MAX)).is_err());
    }

    #[test]
    fn values_of_different_types_are_json_and_numbers_are_numbers() {
        let of = |values: &[Value]| values.iter().filter_map(Type::of).reduce(Type::with);
        assert_eq!(of(&[json!(1), json!(0.5), json!(null)]), Some(Type::Number));
        assert_eq!(of(&[json!(1), json!("1")]), Some(Type::Json));
        assert_eq!(of(&[json!(null)]), None);
        assert!(is_json(&Type::Json.field("x")) && !is_json(&Type::Text.field("x")));
    }
}
