//! JSON Schema as callers write it, into the part of it that `llguidance` keeps to; the rest is refused by name and place.
//!
//! The crate leaves out what it does not know and knows drafts apart; here every keyword of every draft is kept to, put in
//! other words, or refused. What is no keyword of any draft says nothing, by the standard. References are looked up here,
//! and what they point to becomes a list of definitions, so that a schema may be put in other words in any place.

mod negation;
mod reference;

use serde_json::{Map, Value, json};

use super::{Fault, limits};
use reference::References;

pub(super) const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// Keywords with a number or a text that the crate keeps to as they are.
const PLAIN: [&str; 12] = [
    "const",
    "enum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "multipleOf",
    "minimum",
    "maximum",
];

/// Keywords that nothing here keeps to.
const UNSUPPORTED: [&str; 7] =
    ["contains", "minContains", "maxContains", "unevaluatedItems", "$dynamicRef", "$recursiveRef", "extends"];

/// Formats of strings that are kept to.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Formats that the standard defines and nothing here keeps to. Other names are the caller's own and say nothing.
const OTHER_FORMATS: [&str; 9] = [
    "idn-email",
    "idn-hostname",
    "uri-reference",
    "iri",
    "iri-reference",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
    "regex",
];

/// What stands between the parts of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Nothing.
    Compact,
    /// A space after each comma and colon, as Python writes JSON and templates show calls to models.
    Spaced,
}

/// Any object.
pub(super) fn any_object() -> Value {
    let mut schema = json!({ "type": "object" });
    set_style(&mut schema, Style::Compact);
    schema
}

/// The schema that the crate compiles.
pub(super) fn translate(text: &str, style: Style) -> Result<Value, Fault> {
    let root: Value = serde_json::from_str(text).map_err(|error| match error.to_string() {
        deep if deep.contains("recursion limit") => too_deep("", 128),
        other => Fault::invalid(format!("the schema is not JSON: {other}")),
    })?;
    let mut translator = Translator { references: References::new(&root), n_schemas: 0 };
    let mut schema = match translator.schema(&root, &Place::ROOT)? {
        Value::Bool(true) => json!({}),
        schema => schema,
    };
    let mut definitions = Map::new();
    // What a definition refers to is added to the list meanwhile.
    while let Some((pointer, target)) = translator.references.target(definitions.len()) {
        let definition = translator.schema(target, &Place { path: pointer, depth: 0 })?;
        definitions.insert(definitions.len().to_string(), definition);
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    set_style(&mut schema, style);
    Ok(schema)
}

/// How JSON is written. The key is the crate's own, and a caller's is written over.
pub(super) fn set_style(schema: &mut Value, style: Style) {
    if let Some(schema) = schema.as_object_mut() {
        let (item_separator, key_separator) = match style {
            Style::Compact => (",", ":"),
            Style::Spaced => (", ", ": "),
        };
        let style = json!({
            "whitespace_flexible": false,
            "item_separator": item_separator,
            "key_separator": key_separator,
            "coerce_one_of": true,
        });
        schema.insert("x-guidance".to_owned(), style);
    }
}

/// Where a schema is in the caller's.
#[derive(Debug, Clone)]
struct Place {
    /// A JSON pointer.
    path: String,
    depth: usize,
}

impl Place {
    const ROOT: Place = Place { path: String::new(), depth: 0 };

    fn at(&self, keyword: &str) -> Place {
        Place { path: format!("{}/{}", self.path, reference::escaped(keyword)), depth: self.depth + 1 }
    }

    fn shown(&self) -> String {
        format!("#{}", self.path)
    }

    fn invalid(&self, reason: impl Into<String>) -> Fault {
        Fault::Invalid { reason: reason.into(), path: self.shown() }
    }

    fn unsupported(&self, keyword: &str, why: &str) -> Fault {
        Fault::Unsupported { keyword: keyword.to_owned(), path: self.shown(), why: why.to_owned() }
    }

    fn object<'a>(&self, value: &'a Value) -> Result<&'a Map<String, Value>, Fault> {
        value.as_object().ok_or_else(|| self.invalid("it must be an object"))
    }

    fn array<'a>(&self, value: &'a Value) -> Result<&'a Vec<Value>, Fault> {
        value.as_array().ok_or_else(|| self.invalid("it must be an array"))
    }

    fn names<'a>(&self, value: &'a Value) -> Result<Vec<&'a str>, Fault> {
        let names = self.array(value)?.iter().map(Value::as_str).collect::<Option<_>>();
        names.ok_or_else(|| self.invalid("it must be an array of strings"))
    }
}

fn too_deep(path: &str, most: usize) -> Fault {
    Fault::TooMuch { what: "the depth of the schema", found: most + 1, most, path: path.to_owned() }
}

struct Translator<'a> {
    references: References<'a>,
    n_schemas: usize,
}

impl<'a> Translator<'a> {
    /// One schema in other words.
    fn schema(&mut self, schema: &'a Value, place: &Place) -> Result<Value, Fault> {
        self.count(place)?;
        match schema {
            Value::Bool(_) => Ok(schema.clone()),
            Value::Object(keywords) => self.keywords(keywords, place),
            _ => Err(place.invalid("a schema is an object, true or false")),
        }
    }

    fn count(&mut self, place: &Place) -> Result<(), Fault> {
        self.n_schemas += 1;
        if self.n_schemas > limits::MAX_SCHEMAS {
            let (found, most, path) = (self.n_schemas, limits::MAX_SCHEMAS, place.shown());
            return Err(Fault::TooMuch { what: "the number of schemas in the schema", found, most, path });
        }
        if place.depth > limits::MAX_DEPTH {
            return Err(too_deep(&place.shown(), limits::MAX_DEPTH));
        }
        Ok(())
    }

    fn keywords(&mut self, keywords: &'a Map<String, Value>, place: &Place) -> Result<Value, Fault> {
        let mut out = Map::new();
        // What must hold besides, as schemas of their own.
        let mut also: Vec<Value> = Vec::new();
        // Up to draft 7, what is next to a reference says nothing.
        let alone = self.references.stand_alone() && keywords.contains_key("$ref");
        for (keyword, value) in keywords.iter().filter(|(keyword, _)| !alone || *keyword == "$ref") {
            let here = place.at(keyword);
            match keyword.as_str() {
                "$ref" => also.push(self.reference(value, &here)?),
                "type" => {
                    out.insert("type".to_owned(), types(value, &here)?);
                }
                "properties" | "patternProperties" => {
                    out.insert(keyword.clone(), self.schemas(value, &here)?);
                }
                "required" => {
                    here.names(value)?;
                    out.insert(keyword.clone(), value.clone());
                }
                "additionalProperties" => {
                    out.insert(keyword.clone(), self.schema(value, &here)?);
                }
                "prefixItems" => {
                    out.insert(keyword.clone(), Value::Array(self.list(value, &here)?));
                }
                "items" => match value {
                    Value::Array(_) => {
                        out.insert("prefixItems".to_owned(), Value::Array(self.list(value, &here)?));
                    }
                    one => {
                        out.insert("items".to_owned(), self.schema(one, &here)?);
                    }
                },
                // It says something only beside an array of items.
                "additionalItems" if keywords.get("items").is_some_and(Value::is_array) => {
                    out.insert("items".to_owned(), self.schema(value, &here)?);
                }
                "exclusiveMinimum" | "exclusiveMaximum" => match value {
                    Value::Bool(false) => {}
                    // In draft 4 it turns the limit beside it into an exclusive one; without that it says nothing.
                    Value::Bool(true) => {
                        if let Some(limit) =
                            keywords.get(if keyword.ends_with("Minimum") { "minimum" } else { "maximum" })
                        {
                            out.insert(keyword.clone(), limit.clone());
                        }
                    }
                    limit => {
                        out.insert(keyword.clone(), limit.clone());
                    }
                },
                "allOf" => also.extend(self.list(value, &here)?),
                "anyOf" | "oneOf" => {
                    out.insert(keyword.clone(), Value::Array(self.list(value, &here)?));
                }
                "not" => also.push(self.negated(value, &here)?),
                "if" => also.extend(self.conditional(keywords, value, place)?),
                "dependencies" | "dependentRequired" | "dependentSchemas" => {
                    also.extend(self.dependencies(value, &here)?);
                }
                "propertyNames" => also.extend(self.property_names(value, &here)?),
                "format" => {
                    if let Some(format) = format(keywords, value, &here)? {
                        out.insert(keyword.clone(), format);
                    }
                }
                "uniqueItems" if *value != Value::Bool(false) => {
                    let one = keywords.get("maxItems").and_then(Value::as_u64).is_some_and(|most| most < 2);
                    if !one {
                        return Err(place.unsupported(keyword, ""));
                    }
                }
                "unevaluatedProperties" => {
                    let in_place = ["$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas"];
                    if in_place.iter().any(|keyword| keywords.contains_key(*keyword)) {
                        return Err(place.unsupported(keyword, "beside keywords that evaluate properties"));
                    }
                    out.entry("additionalProperties").or_insert(self.schema(value, &here)?);
                }
                other if PLAIN.contains(&other) => {
                    out.insert(keyword.clone(), value.clone());
                }
                other if UNSUPPORTED.contains(&other) => return Err(place.unsupported(other, "")),
                _ => {}
            }
        }
        Ok(joined(out, also))
    }

    fn schemas(&mut self, value: &'a Value, place: &Place) -> Result<Value, Fault> {
        let schemas = place.object(value)?.iter();
        let schemas = schemas.map(|(name, schema)| Ok((name.clone(), self.schema(schema, &place.at(name))?)));
        Ok(Value::Object(schemas.collect::<Result<_, Fault>>()?))
    }

    fn list(&mut self, value: &'a Value, place: &Place) -> Result<Vec<Value>, Fault> {
        let schemas = place.array(value)?.iter().enumerate();
        schemas.map(|(i, schema)| self.schema(schema, &place.at(&i.to_string()))).collect()
    }

    fn reference(&mut self, value: &Value, place: &Place) -> Result<Value, Fault> {
        let number = self.references.number(value, place)?;
        Ok(json!({ "$ref": format!("#/$defs/{number}") }))
    }

    /// `if` with `then` and `else`: one of the two cases holds.
    fn conditional(
        &mut self,
        keywords: &'a Map<String, Value>,
        condition: &'a Value,
        place: &Place,
    ) -> Result<Option<Value>, Fault> {
        let (then, otherwise) = (keywords.get("then"), keywords.get("else"));
        if then.is_none() && otherwise.is_none() {
            return Ok(None);
        }
        let mut holds = vec![self.schema(condition, &place.at("if"))?];
        let mut fails = vec![self.negated(condition, &place.at("if"))?];
        if let Some(then) = then {
            holds.push(self.schema(then, &place.at("then"))?);
        }
        if let Some(otherwise) = otherwise {
            fails.push(self.schema(otherwise, &place.at("else"))?);
        }
        Ok(Some(json!({ "anyOf": [joined(Map::new(), holds), joined(Map::new(), fails)] })))
    }

    /// Each property that calls for others or for a schema: it is absent, or that holds.
    fn dependencies(&mut self, value: &'a Value, place: &Place) -> Result<Vec<Value>, Fault> {
        let each = place.object(value)?.iter().map(|(name, wanted)| {
            let here = place.at(name);
            let wanted = match wanted {
                Value::Array(_) => json!({ "required": here.names(wanted)? }),
                schema => self.schema(schema, &here)?,
            };
            let present = json!({ "type": "object", "required": [name] });
            Ok(json!({ "anyOf": [absent(name), joined(Map::new(), vec![present, wanted])] }))
        });
        each.collect()
    }

    /// What the names of properties may be, said by properties.
    fn property_names(&mut self, value: &'a Value, place: &Place) -> Result<Option<Value>, Fault> {
        let only = |key: &str, names: Map<String, Value>| {
            Ok(Some(json!({ key: names, "additionalProperties": false })))
        };
        let each = |names: &[&str], schema: bool| {
            names.iter().map(|&name| (name.to_owned(), json!(schema))).collect()
        };
        let Value::Object(keywords) = value else {
            return if *value == Value::Bool(false) { only("properties", Map::new()) } else { Ok(None) };
        };
        let said: Vec<(&str, &'a Value)> = keywords
            .iter()
            .map(|(keyword, value)| (keyword.as_str(), value))
            .filter(|&(keyword, value)| says_something(keyword) && !(keyword == "type" && value == "string"))
            .collect();
        match said[..] {
            [] => Ok(None),
            [("enum", names)] => only("properties", each(&place.names(names)?, true)),
            [("const", Value::String(name))] => only("properties", each(&[name], true)),
            [("pattern", Value::String(pattern))] => only("patternProperties", each(&[pattern], true)),
            [("$ref", reference)] => {
                let (target, place) = self.references.resolve(reference, place)?;
                self.count(&place)?;
                self.property_names(target, &place)
            }
            [("not", Value::Object(not))] => match not.iter().collect::<Vec<_>>()[..] {
                [(key, names)] if key == "enum" => {
                    Ok(Some(json!({ "properties": each(&place.names(names)?, false) as Map<_, _> })))
                }
                [(key, Value::String(name))] if key == "const" => Ok(Some(absent(name))),
                [(key, Value::String(pattern))] if key == "pattern" => {
                    Ok(Some(json!({ "patternProperties": { pattern: false } })))
                }
                _ => Err(place.unsupported("propertyNames", "with this negation")),
            },
            ref lengths
                if lengths.iter().all(|(keyword, _)| ["minLength", "maxLength"].contains(keyword)) =>
            {
                let length = |name: &str| keywords.get(name).and_then(Value::as_u64).map(|n| n.to_string());
                let (least, most) = (length("minLength"), length("maxLength"));
                let pattern =
                    format!("^(?s:.){{{},{}}}$", least.unwrap_or("0".into()), most.unwrap_or_default());
                only("patternProperties", each(&[pattern.as_str()], true))
            }
            _ => Err(place.unsupported("propertyNames", "with anything but enum, const, pattern or lengths")),
        }
    }
}

/// Holds where an object has no property of this name, and for whatever is no object.
fn absent(name: &str) -> Value {
    json!({ "properties": { name: false } })
}

/// A schema that says all of it.
fn joined(mut out: Map<String, Value>, mut also: Vec<Value>) -> Value {
    also.retain(|schema| *schema != Value::Bool(true) && *schema != json!({}));
    match (out.is_empty(), also.len()) {
        (_, 0) => Value::Object(out),
        (true, 1) => also.remove(0),
        _ => {
            out.insert("allOf".to_owned(), Value::Array(also));
            Value::Object(out)
        }
    }
}

/// Whether a keyword says anything about values, in any draft.
fn says_something(keyword: &str) -> bool {
    const OTHERS: [&str; 23] = [
        "$ref",
        "type",
        "properties",
        "patternProperties",
        "required",
        "additionalProperties",
        "prefixItems",
        "items",
        "additionalItems",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "propertyNames",
        "format",
        "uniqueItems",
        "unevaluatedProperties",
    ];
    OTHERS.contains(&keyword) || PLAIN.contains(&keyword) || UNSUPPORTED.contains(&keyword)
}

fn types(value: &Value, place: &Place) -> Result<Value, Fault> {
    let names = match value {
        Value::String(name) => vec![name.as_str()],
        _ => place.names(value)?,
    };
    match names.iter().find(|name| !TYPES.contains(name) && **name != "integer") {
        Some(name) => Err(place.invalid(format!("unknown type {name:?}"))),
        None if names.is_empty() => Err(place.invalid("it has no type")),
        None => Ok(value.clone()),
    }
}

/// The format, if it says something about these values and is kept to.
fn format(keywords: &Map<String, Value>, value: &Value, place: &Place) -> Result<Option<Value>, Fault> {
    let name = value.as_str().ok_or_else(|| place.invalid("it must be a string"))?;
    let for_strings = match keywords.get("type") {
        None => true,
        Some(Value::Array(types)) => types.iter().any(|one| one == "string"),
        Some(one) => one == "string",
    };
    match name {
        _ if !for_strings => Ok(None),
        known if FORMATS.contains(&known) => Ok(Some(value.clone())),
        other if OTHER_FORMATS.contains(&other) => {
            Err(place.unsupported("format", &format!("for {other:?}")))
        }
        _ => Ok(None),
    }
}
