//! The contrary of a schema as another schema, where JSON Schema without `not` can say it.

use serde_json::{Map, Value, json};

use super::{Place, TYPES, Translator, absent, joined, says_something, types};
use crate::constraint::Fault;

/// Cases of a `oneOf` whose contrary is written out.
const MOST_CASES: usize = 4;
/// Bytes of texts that are excluded one by one.
const MOST_EXCLUDED: usize = 4096;

impl<'a> Translator<'a> {
    /// The schema of all that `schema` does not take.
    pub(super) fn negated(&mut self, schema: &'a Value, place: &Place) -> Result<Value, Fault> {
        self.count(place)?;
        let keywords = match schema {
            Value::Bool(all) => return Ok(Value::Bool(!all)),
            Value::Object(keywords) => keywords,
            _ => return Err(place.invalid("a schema is an object, true or false")),
        };
        let mut ways = Vec::new();
        for (keyword, value) in keywords.iter().filter(|(keyword, _)| says_something(keyword)) {
            ways.extend(self.violations(keywords, keyword, value, place)?);
        }
        Ok(any(ways))
    }

    /// The ways not to keep to one keyword.
    fn violations(
        &mut self,
        keywords: &'a Map<String, Value>,
        keyword: &str,
        value: &'a Value,
        place: &Place,
    ) -> Result<Vec<Value>, Fault> {
        let here = place.at(keyword);
        let no = |why: &str| Err(place.unsupported("not", &format!("of `{keyword}`{why}")));
        // The nearest whole number on the other side; none if there is none.
        let count = |by: i64| value.as_i64().map(|n| n + by).filter(|&n| n >= 0);
        let beyond = |kind: &str, keyword: &str, n: Option<i64>| {
            n.map(|n| json!({ "type": kind, keyword: n })).into_iter().collect::<Vec<_>>()
        };
        Ok(match keyword {
            "type" => {
                types(value, &here)?;
                let named: Vec<&str> = match value {
                    Value::String(name) => vec![name.as_str()],
                    _ => here.names(value)?,
                };
                if named.contains(&"integer") && !named.contains(&"number") {
                    return no(" integer");
                }
                let others: Vec<&str> = TYPES.into_iter().filter(|name| !named.contains(name)).collect();
                if others.is_empty() { vec![] } else { vec![json!({ "type": others })] }
            }
            "required" => here
                .names(value)?
                .into_iter()
                .map(|name| {
                    joined(Map::from_iter([("type".to_owned(), json!("object"))]), vec![absent(name)])
                })
                .collect(),
            "properties" => {
                let mut ways = Vec::new();
                for (name, schema) in here.object(value)? {
                    match self.negated(schema, &here.at(name))? {
                        Value::Bool(false) => {}
                        contrary => ways.push(json!({
                            "type": "object", "properties": { name: contrary }, "required": [name]
                        })),
                    }
                }
                ways
            }
            "additionalProperties" | "patternProperties" | "items" | "prefixItems" | "additionalItems"
                if says_nothing(value) =>
            {
                vec![]
            }
            "propertyNames" if *value == Value::Bool(false) => {
                vec![json!({ "type": "object", "minProperties": 1 })]
            }
            "propertyNames" => match excluded_names(value) {
                Some(names) => {
                    names.into_iter().map(|name| json!({ "type": "object", "required": [name] })).collect()
                }
                None => return no(""),
            },
            "const" => excluded(std::slice::from_ref(value), place)?,
            "enum" => excluded(here.array(value)?, place)?,
            "minProperties" => beyond("object", "maxProperties", count(-1)),
            "maxProperties" => beyond("object", "minProperties", count(1)),
            "minItems" => beyond("array", "maxItems", count(-1)),
            "maxItems" => beyond("array", "minItems", count(1)),
            "minLength" => beyond("string", "maxLength", count(-1)),
            "maxLength" => beyond("string", "minLength", count(1)),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                let turned = keywords.get("exclusiveMinimum").is_some_and(Value::is_boolean)
                    || keywords.get("exclusiveMaximum").is_some_and(Value::is_boolean);
                let contrary = match keyword {
                    _ if turned => return no(" as draft 4 has it"),
                    "minimum" => "exclusiveMaximum",
                    "maximum" => "exclusiveMinimum",
                    "exclusiveMinimum" => "maximum",
                    _ => "minimum",
                };
                vec![json!({ "type": "number", contrary: value })]
            }
            "not" => vec![self.schema(value, &here)?],
            "allOf" => self.each_negated(value, &here)?,
            "anyOf" => vec![joined(Map::new(), self.each_negated(value, &here)?)],
            "oneOf" => {
                let cases = self.list(value, &here)?;
                if cases.len() > MOST_CASES {
                    return no(" of many cases");
                }
                let mut ways = vec![joined(Map::new(), self.each_negated(value, &here)?)];
                for (i, one) in cases.iter().enumerate() {
                    let pairs = cases[i + 1..].iter();
                    ways.extend(pairs.map(|other| joined(Map::new(), vec![one.clone(), other.clone()])));
                }
                ways
            }
            "$ref" => {
                let (target, target_place) = self.references.resolve(value, &here)?;
                vec![self.negated(target, &target_place)?]
            }
            "uniqueItems" | "dependencies" | "dependentRequired" | "dependentSchemas"
                if says_nothing(value) || *value == Value::Bool(false) =>
            {
                vec![]
            }
            _ => return no(""),
        })
    }

    fn each_negated(&mut self, value: &'a Value, place: &Place) -> Result<Vec<Value>, Fault> {
        let schemas = place.array(value)?.iter().enumerate();
        schemas.map(|(i, schema)| self.negated(schema, &place.at(&i.to_string()))).collect()
    }
}

/// A schema that takes what one of these takes.
fn any(mut ways: Vec<Value>) -> Value {
    ways.retain(|way| *way != Value::Bool(false));
    match ways.len() {
        0 => Value::Bool(false),
        1 => ways.remove(0),
        _ if ways.iter().any(|way| *way == Value::Bool(true)) => Value::Bool(true),
        _ => json!({ "anyOf": ways }),
    }
}

/// A schema, or schemas by name, that take everything.
fn says_nothing(value: &Value) -> bool {
    let all = |schema: &Value| match schema {
        Value::Bool(all) => *all,
        Value::Object(keywords) => !keywords.keys().any(|keyword| says_something(keyword)),
        _ => false,
    };
    match value {
        Value::Object(schemas)
            if schemas.values().all(|schema| schema.is_object() || schema.is_boolean()) =>
        {
            all(value) && schemas.values().all(all)
        }
        other => all(other),
    }
}

/// The names in `{"not": {"enum": […]}}`.
fn excluded_names(schema: &Value) -> Option<Vec<&str>> {
    let keywords = schema.as_object().filter(|keywords| keywords.len() == 1)?;
    let not = keywords.get("not")?.as_object().filter(|not| not.len() == 1)?;
    not.get("enum")?.as_array()?.iter().map(Value::as_str).collect()
}

/// All values but these, by type.
fn excluded(values: &[Value], place: &Place) -> Result<Vec<Value>, Fault> {
    let no = |why: &str| Err(place.unsupported("not", why));
    let mut whole: Vec<&str> = TYPES.to_vec();
    let mut ways = Vec::new();
    let of = |kind: fn(&Value) -> bool| values.iter().filter(move |value| kind(value));
    let mut without = |kind: &str| whole.retain(|name| *name != kind);
    if of(Value::is_null).next().is_some() {
        without("null");
    }
    let booleans: Vec<bool> = of(Value::is_boolean).filter_map(Value::as_bool).collect();
    if let Some(&first) = booleans.first() {
        without("boolean");
        if booleans.iter().all(|&other| other == first) {
            ways.push(json!({ "const": !first }));
        }
    }
    let mut numbers: Vec<&Value> = of(Value::is_number).collect();
    if !numbers.is_empty() {
        without("number");
        let size = |number: &Value| number.as_f64().unwrap_or_default();
        numbers.sort_by(|a, b| size(a).total_cmp(&size(b)));
        numbers.dedup_by(|a, b| size(a) == size(b));
        ways.push(json!({ "type": "number", "exclusiveMaximum": numbers[0] }));
        for pair in numbers.windows(2) {
            ways.push(json!({ "type": "number", "exclusiveMinimum": pair[0], "exclusiveMaximum": pair[1] }));
        }
        ways.push(json!({ "type": "number", "exclusiveMinimum": numbers[numbers.len() - 1] }));
    }
    let texts: Vec<&str> = of(Value::is_string).filter_map(Value::as_str).collect();
    if !texts.is_empty() {
        without("string");
        if texts.iter().map(|text| text.len()).sum::<usize>() > MOST_EXCLUDED {
            return no("of many texts");
        }
        ways.push(json!({ "type": "string", "pattern": format!("^{}$", all_but(&texts)) }));
    }
    for value in of(|value| value.is_array() || value.is_object()) {
        let (kind, least) =
            if value.is_array() { ("array", "minItems") } else { ("object", "minProperties") };
        let before = ways.len();
        without(kind);
        match value {
            Value::Object(object) if object.len() == 1 && of(Value::is_object).count() == 1 => {
                for (name, value) in object {
                    ways.push(json!({ "type": "object", "properties": { name: false } }));
                    for other in excluded(std::slice::from_ref(value), place)? {
                        ways.push(json!({
                            "type": "object", "properties": { name: other }, "required": [name]
                        }));
                    }
                    ways.push(json!({
                        "type": "object", "properties": { name: true }, "required": [name], "minProperties": 2
                    }));
                }
            }
            Value::Array(items) if !items.is_empty() => return no("of a constant array"),
            Value::Object(object) if !object.is_empty() => return no("of a constant object"),
            _ if of(|other| other.is_array()).count() > 1 => return no("of a constant array"),
            _ => ways.push(json!({ "type": kind, least: 1 })),
        }
        debug_assert!(ways.len() > before);
    }
    if !whole.is_empty() {
        ways.push(json!({ "type": whole }));
    }
    Ok(ways)
}

/// A regular expression for all texts but these.
fn all_but(texts: &[&str]) -> String {
    let mut expression = String::from("(");
    // The empty text, unless it is one of them.
    let mut ways: Vec<String> = if texts.contains(&"") { vec![] } else { vec![String::new()] };
    let mut firsts: Vec<char> = texts.iter().filter_map(|text| text.chars().next()).collect();
    firsts.sort_unstable();
    firsts.dedup();
    let set: String = firsts.iter().map(|first| format!("\\u{{{:x}}}", u32::from(*first))).collect();
    ways.push(if firsts.is_empty() { "(?s:.)(?s:.)*".to_owned() } else { format!("[^{set}](?s:.)*") });
    for first in firsts {
        let rests: Vec<&str> = texts.iter().filter_map(|text| text.strip_prefix(first)).collect();
        ways.push(format!("\\u{{{:x}}}{}", u32::from(first), all_but(&rests)));
    }
    expression.push_str(&ways.join("|"));
    expression.push(')');
    expression
}
