//! The columns that answers add to a table, and the cells that one answer has in them.

use std::sync::Arc;

use anyhow::Context;
use arrow_array::ArrayRef;
use arrow_schema::Field;
use serde_json::{Value, json};

use super::types::{Type, properties};
use crate::answers::choices;

/// After the columns of the answer itself.
static FACTS: [(&str, Type); 5] = [
    ("finish_reason", Type::Text),
    ("prompt_tokens", Type::Integer),
    ("completion_tokens", Type::Integer),
    ("cost_usd_micro", Type::Integer),
    ("error", Type::Text),
];
const ANSWER: &str = "answer";

/// New columns: the properties of a schema or `answer`, then the facts.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    schema: Option<Value>,
    /// Of the answer, by their names in it.
    columns: Vec<(String, Type)>,
    is_object: bool,
    prefix: String,
}

/// One answer of a batch.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) id: Option<String>,
    /// By which the cost of the batch is divided.
    pub(crate) engine_us: u64,
    line: Value,
}

impl Shape {
    pub(crate) fn new(schema: Option<Value>, prefix: &str) -> Shape {
        let found = schema.as_ref().and_then(properties);
        let is_object = found.is_some();
        let columns = found.unwrap_or_else(|| {
            vec![(ANSWER.to_owned(), schema.as_ref().map_or(Type::Text, Type::of_schema))]
        });
        Shape { schema, columns, is_object, prefix: prefix.to_owned() }
    }

    /// Of the first line of a batch that came from a table.
    pub(crate) fn of_request(line: &Value, prefix: &str) -> Shape {
        let schema = &line["body"]["response_format"]["json_schema"]["schema"];
        Shape::new((!schema.is_null()).then(|| schema.clone()), prefix)
    }

    pub(crate) fn schema(&self) -> Option<&Value> {
        self.schema.as_ref()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        let own = self.columns.iter().map(|(name, _)| name.as_str());
        own.chain(FACTS.iter().map(|(name, _)| *name)).map(|name| format!("{}{name}", self.prefix))
    }

    fn types(&self) -> impl Iterator<Item = &Type> {
        self.columns.iter().map(|(_, kind)| kind).chain(FACTS.iter().map(|(_, kind)| kind))
    }

    pub(crate) fn fields(&self) -> Vec<Field> {
        self.names().zip(self.types()).map(|(name, kind)| kind.field(&name)).collect()
    }

    /// The arrays of rows of cells.
    pub(crate) fn arrays(&self, rows: &[Vec<Value>]) -> Vec<ArrayRef> {
        let one = |(at, kind): (usize, &Type)| {
            let values: Vec<&Value> = rows.iter().map(|row| &row[at]).collect();
            kind.array(&values)
        };
        self.types().enumerate().map(one).collect()
    }

    /// The cells of a row without an answer.
    pub(crate) fn failed(&self, why: &str) -> Vec<Value> {
        let mut cells = vec![Value::Null; self.columns.len() + FACTS.len()];
        cells[self.columns.len() + FACTS.len() - 1] = why.into();
        cells
    }

    /// The cells of an answer. One that does not follow the schema has an error beside its other facts.
    pub(crate) fn cells(&self, answer: &Answer, cost_usd_micro: i64) -> Vec<Value> {
        let (body, error) = (&answer.line["response"]["body"], &answer.line["error"]);
        if !error.is_null() {
            let word = |name: &str| error[name].as_str().unwrap_or_default();
            let mut cells = self.failed(&format!("{}: {}", word("code"), word("message")));
            cells[self.columns.len() + 3] = cost_usd_micro.into();
            return cells;
        }
        let choice = choices(body).into_iter().next().unwrap_or_default();
        let usage = |names: [&str; 2]| {
            names.iter().find_map(|name| body["usage"][*name].as_u64()).map_or(Value::Null, Value::from)
        };
        let (mut cells, error) = match self.read(&choice.text) {
            Ok(values) => (values, Value::Null),
            Err(_) if choice.finish == "length" => {
                let why = "the answer does not follow the schema: it was cut off at max_tokens";
                (vec![Value::Null; self.columns.len()], why.into())
            }
            Err(why) => {
                let why = format!("the answer does not follow the schema: {why}");
                (vec![Value::Null; self.columns.len()], why.into())
            }
        };
        cells.extend([
            json!(choice.finish),
            usage(["prompt_tokens", "input_tokens"]),
            usage(["completion_tokens", "output_tokens"]),
            cost_usd_micro.into(),
            error,
        ]);
        cells
    }

    fn read(&self, text: &str) -> Result<Vec<Value>, String> {
        if self.schema.is_none() {
            return Ok(vec![text.into()]);
        }
        let answer: Value = serde_json::from_str(text).map_err(|fault| fault.to_string())?;
        let values = match self.is_object {
            false => vec![answer],
            true if !answer.is_object() => return Err("it is no object".to_owned()),
            true => self.columns.iter().map(|(name, _)| answer[name.as_str()].clone()).collect(),
        };
        self.columns.iter().zip(&values).try_for_each(|((_, kind), value)| kind.check(value))?;
        Ok(values)
    }
}

impl Answer {
    pub(crate) fn parse(line: &str) -> anyhow::Result<Answer> {
        let line: Value = serde_json::from_str(line).context("a line of the results cannot be parsed")?;
        let about = &line["ternfleet"];
        let copied = about["cached"] == true;
        Ok(Answer {
            id: line["custom_id"].as_str().map(str::to_owned),
            engine_us: if copied { 0 } else { about["engine_us"].as_u64().unwrap_or(0) },
            line,
        })
    }
}

/// Divides the cost of a batch among its lines, by the time of engines; the parts add up to the whole.
#[derive(Debug)]
pub(crate) struct Costs {
    cost_usd_micro: u128,
    all_us: u128,
    so_far_us: u128,
}

impl Costs {
    pub(crate) fn new(cost_usd_micro: i64, all_us: u128) -> Costs {
        Costs { cost_usd_micro: u128::try_from(cost_usd_micro).unwrap_or(0), all_us, so_far_us: 0 }
    }

    /// The next line's.
    pub(crate) fn next(&mut self, engine_us: u64) -> i64 {
        let up_to = |us: u128| self.cost_usd_micro * us / self.all_us.max(1);
        let part = up_to(self.so_far_us + u128::from(engine_us)) - up_to(self.so_far_us);
        self.so_far_us += u128::from(engine_us);
        i64::try_from(part).unwrap_or(i64::MAX)
    }
}

/// Arrays behind those of the input.
pub(crate) fn beside(own: &[ArrayRef], new: Vec<ArrayRef>) -> Vec<ArrayRef> {
    own.iter().map(Arc::clone).chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str, finish: &str) -> Answer {
        let body = json!({ "object": "text_completion",
            "choices": [{ "text": text, "finish_reason": finish }],
            "usage": { "prompt_tokens": 3, "completion_tokens": 4 } });
        let line = json!({ "custom_id": "a", "response": { "body": body }, "error": null,
            "ternfleet": { "index": 0, "engine_us": 7 } });
        Answer::parse(&line.to_string()).unwrap()
    }

    #[test]
    fn answers_have_the_columns_of_their_schema_or_an_error() {
        let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" }, "s": { "type": "string" } } });
        let shape = Shape::new(Some(schema), "p_");
        assert_eq!(
            shape.names().collect::<Vec<_>>(),
            [
                "p_n",
                "p_s",
                "p_finish_reason",
                "p_prompt_tokens",
                "p_completion_tokens",
                "p_cost_usd_micro",
                "p_error"
            ]
        );
        let good = shape.cells(&answer(r#"{"n": 3, "s": "x"}"#, "stop"), 5);
        assert_eq!(json!(good), json!([3, "x", "stop", 3, 4, 5, null]));
        let cut = shape.cells(&answer(r#"{"n": 3, "s"#, "length"), 5);
        assert!(cut[0].is_null() && cut[6].as_str().unwrap().contains("cut off"), "{cut:?}");
        let wrong = shape.cells(&answer(r#"{"n": 3.5}"#, "stop"), 5);
        assert!(wrong[6].as_str().unwrap().contains("3.5 is no integer"), "{wrong:?}");
        assert_eq!(shape.arrays(&[good, cut, wrong]).len(), shape.fields().len());
    }

    #[test]
    fn the_costs_of_lines_add_up_to_the_cost_of_the_batch() {
        let mut costs = Costs::new(100, 7);
        let parts: Vec<i64> = [1, 0, 2, 4].into_iter().map(|us| costs.next(us)).collect();
        assert_eq!((parts.iter().sum::<i64>(), parts[1]), (100, 0));
        assert_eq!(Costs::new(0, 0).next(0), 0);
    }
}
