//! As much of JSON Schema as the provider's OpenAPI text uses, so that a request is refused for what the text forbids
//! and an answer is held against the text before it goes out.

use std::collections::BTreeSet;

use serde_json::Value;

/// The provider's text, and what is newer than it.
#[derive(Debug)]
pub struct Text {
    root: Value,
    newer: Value,
}

impl Text {
    /// Those of the client's own contract test.
    ///
    /// # Errors
    /// When they are not JSON.
    pub fn read() -> anyhow::Result<Text> {
        let root = serde_json::from_str(include_str!("../../../cloud/tests/runpod/openapi.json"))?;
        let newer = serde_json::from_str(include_str!("../../../cloud/tests/runpod/newer.json"))?;
        Ok(Text { root, newer })
    }

    /// Every fault of `value` against the schema of that name, in the provider's own words as far as they are known.
    pub fn faults(&self, name: &str, value: &Value) -> Vec<String> {
        let newer =
            self.newer[name].as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default();
        let mut check = Check { text: self, newer, faults: Vec::new() };
        let schema = serde_json::json!({ "$ref": format!("#/components/schemas/{name}") });
        check.value(&schema, value, "", true);
        check.faults
    }

    fn named<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(pointer) => self.root.pointer(&pointer[1..]).unwrap_or(&Value::Null),
            None => schema,
        }
    }

    /// The names of all properties, through references and compositions.
    fn properties(&self, schema: &Value) -> BTreeSet<String> {
        let schema = self.named(schema);
        let own = schema["properties"].as_object().into_iter().flat_map(|all| all.keys().cloned());
        let parts = schema["allOf"].as_array().into_iter().flatten().flat_map(|part| self.properties(part));
        own.chain(parts).collect()
    }
}

struct Check<'a> {
    text: &'a Text,
    /// Fields that are known and not in the text, as `outer.inner`.
    newer: BTreeSet<String>,
    faults: Vec<String>,
}

impl Check<'_> {
    /// `whole` is false for a part of a composition, which knows its own properties alone.
    fn value(&mut self, schema: &Value, value: &Value, path: &str, whole: bool) {
        let schema = self.text.named(schema).clone();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.value(part, value, path, false);
        }
        if let Some(choices) = schema["anyOf"].as_array() {
            let fits = |choice: &Value| {
                let mut check = Check { text: self.text, newer: self.newer.clone(), faults: Vec::new() };
                check.value(choice, value, path, true);
                check.faults.is_empty()
            };
            if !choices.iter().any(fits) {
                self.fault(path, "fits none of the choices");
            }
        }
        if !is_of_type(&schema["type"], value) {
            return self.fault(path, &format!("{value} is not of type {}", schema["type"]));
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            self.fault(path, &format!("{value} is not one of {}", schema["enum"]));
        }
        if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
            && number < least
        {
            self.fault(path, &format!("{number} is below {least}"));
        }
        if let (Some(least), Some(text)) = (schema["minLength"].as_u64(), value.as_str())
            && (text.chars().count() as u64) < least
        {
            self.fault(path, "is too short");
        }
        if let Some(items) = value.as_array() {
            if schema["maxItems"].as_u64().is_some_and(|most| items.len() as u64 > most) {
                self.fault(path, "has too many items");
            }
            for item in items.iter().filter(|_| schema["items"].is_object()) {
                self.value(&schema["items"], item, path, true);
            }
        }
        if let Some(fields) = value.as_object() {
            self.fields(&schema, fields, path, whole);
        }
    }

    fn fields(&mut self, schema: &Value, fields: &serde_json::Map<String, Value>, path: &str, whole: bool) {
        let mut required: Vec<&Value> = schema["required"].as_array().into_iter().flatten().collect();
        if schema["if"]["not"]["required"][0].as_str().is_some_and(|name| !fields.contains_key(name)) {
            required.extend(schema["then"]["required"].as_array().into_iter().flatten());
        }
        for name in required.into_iter().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                self.fault(path, &format!("missing property '{name}'"));
            }
        }
        let closed = schema["additionalProperties"] == false || schema["unevaluatedProperties"] == false;
        let known = self.text.properties(schema);
        for (name, value) in fields {
            let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if schema["properties"][name].is_object() {
                self.value(&schema["properties"][name], value, &inner, true);
            } else if schema["additionalProperties"].is_object() {
                self.value(&schema["additionalProperties"], value, &inner, true);
            } else if whole && closed && !known.contains(name) && !self.newer.contains(&inner) {
                self.fault(path, &format!("additional properties '{name}' not allowed"));
            }
        }
    }

    fn fault(&mut self, path: &str, why: &str) {
        self.faults.push(format!("${}{path}: {why}", if path.is_empty() { "" } else { "." }));
    }
}

fn is_of_type(wanted: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => true,
    };
    match wanted {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_order_is_refused_for_what_the_text_forbids_and_for_nothing_else() {
        let text = Text::read().unwrap();
        let faults = |order: Value| text.faults("CreatePodRequest", &order);
        let order = json!({
            "name": "a", "image": "i", "disk": 5, "cpu": {"id": "cpu5c", "vcpuCount": 4}, "ports": ["4222/tcp"],
            "env": {"A": "b"}, "cmd": ["x"], "mounts": {"network": [{"volumeId": "v", "path": "/models"}]},
        });
        assert_eq!(faults(order.clone()), [""; 0]);
        let with = |name: &str, value: Value| {
            let mut changed = order.clone();
            changed[name] = value;
            faults(changed)
        };
        for (name, wrong, said) in [
            ("bogus", json!(1), "'bogus' not allowed"),
            ("cpu", json!({"id": "cpu5c", "vcpuCount": 1}), "below 2"),
            ("cpu", json!({"id": "cpu5c", "vcpuCount": 4, "memory": 3}), "'memory' not allowed"),
            ("env", json!({"A": 1}), "not of type"),
            ("cloud", json!("CHEAP"), "not one of"),
            ("mounts", json!({"persistent": {"size": 5, "path": "/m"}}), "below 10"),
            ("name", json!(""), "too short"),
        ] {
            let found = with(name, wrong);
            assert!(found.iter().any(|fault| fault.contains(said)), "{name}: {found:?}");
        }
        assert!(faults(json!({"name": "a"})).iter().any(|fault| fault.contains("missing property 'image'")));
        let gpu = json!({"id": "g", "count": 1, "minVcpuCountPerGpu": 16, "minRamPerGpu": 32});
        assert_eq!(with("gpu", gpu), [""; 0], "what is newer than the text");
    }
}
