//! What is asked of each row: templates that are held against the columns first, and the request line of a row.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use serde_json::{Map, Value, json};

use ternfleet_text::Templates;

use super::asked::Asked;
use super::cell;
use super::shape::Shape;

/// The whole row, for names that are no identifiers.
const ROW: &str = "row";
const ID_BYTES_MAX: usize = 512;

/// Templates over the columns of one table.
#[derive(Debug)]
pub(crate) struct Plan {
    templates: Templates,
    ask: Ask,
    /// Columns that templates read.
    read: Vec<usize>,
    reads_row: bool,
    id: Option<usize>,
    body: Map<String, Value>,
    pub(crate) shape: Shape,
}

/// Templates are called by the flag that they come from.
#[derive(Debug)]
enum Ask {
    Prompt,
    /// Messages, each with the name of its template.
    Chat(Vec<(Map<String, Value>, String)>),
}

impl Plan {
    pub(crate) fn new(asked: &Asked, table: &str, schema: &SchemaRef) -> anyhow::Result<Plan> {
        let mut texts = Vec::new();
        let ask = match (&asked.prompt, &asked.messages) {
            (Some(prompt), _) => {
                texts.push(("--prompt".to_owned(), prompt.clone()));
                match &asked.system {
                    None => Ask::Prompt,
                    Some(system) => {
                        texts.push(("--system".to_owned(), system.clone()));
                        let one = |role: &str, name: &str| {
                            (Map::from_iter([("role".to_owned(), role.into())]), name.to_owned())
                        };
                        Ask::Chat(vec![one("system", "--system"), one("user", "--prompt")])
                    }
                }
            }
            (None, Some(file)) => Ask::Chat(messages(file, &mut texts)?),
            (None, None) => bail!(
                "{table} is a table: say what is asked of each row with --prompt or --messages. Its columns \
                 are {}",
                names(schema)
            ),
        };
        let mut templates = Templates::default();
        let mut used = BTreeSet::new();
        for (name, text) in &texts {
            let read = templates.add(name, text).map_err(|fault| anyhow!("{name}: {fault}"))?;
            used.extend(read.into_iter().map(|column| (column, name)));
        }
        let reads_row = used.iter().any(|(column, _)| column == ROW) && schema.index_of(ROW).is_err();
        let mut read: BTreeSet<usize> = BTreeSet::new();
        for (column, name) in used.iter().filter(|(column, _)| column != ROW || !reads_row) {
            read.insert(column_of(schema, column, name, table)?);
        }
        if reads_row {
            read.extend(0..schema.fields().len());
        }
        let id = asked.id_column.as_deref().map(|column| column_of(schema, column, "--id", table));
        let id = id.transpose()?;
        for at in read.iter().chain(&id) {
            let field = schema.field(*at);
            if !cell::is_readable(field.data_type()) {
                bail!(
                    "column {:?} has the type {}, which cannot be used as text",
                    field.name(),
                    field.data_type()
                );
            }
        }
        let schema_file = asked.schema.as_deref().map(read_json).transpose()?;
        let shape = Shape::new(schema_file, &asked.prefix);
        if let Some(name) = shape.names().find(|name| schema.index_of(name).is_ok()) {
            bail!("{table} already has a column {name:?}: rename it, or name the new columns with --prefix");
        }
        let mut body = asked.body();
        if let Some(schema) = shape.schema() {
            let format = json!({ "name": "answer", "schema": schema });
            body.insert(
                "response_format".to_owned(),
                json!({ "type": "json_schema", "json_schema": format }),
            );
        }
        Ok(Plan { templates, ask, read: read.into_iter().collect(), reads_row, id, body, shape })
    }

    /// The request of a row as a line, without its end; why there is none otherwise.
    pub(crate) fn line(&self, rows: &RecordBatch, at: usize, id: &str) -> Result<String, String> {
        let schema = rows.schema_ref();
        let one = |column: &usize| {
            let field = schema.field(*column);
            (field.name().clone(), cell::value(field, rows.column(*column), at))
        };
        let mut values: Map<String, Value> = self.read.iter().map(one).collect();
        if self.reads_row {
            values.insert(ROW.to_owned(), Value::Object(values.clone()));
        }
        let render = |name: &str| {
            self.templates.render(name, &values).map_err(|fault| {
                match values.iter().find(|(_, value)| value.is_null()) {
                    Some((column, _)) => format!("column {column:?} is null"),
                    None => fault,
                }
            })
        };
        let (url, ask, text) = match &self.ask {
            Ask::Prompt => ("/v1/completions", "prompt", Value::String(render("--prompt")?)),
            Ask::Chat(messages) => {
                let messages = messages.iter().map(|(message, name)| {
                    let mut message = message.clone();
                    message.insert("content".to_owned(), Value::String(render(name)?));
                    Ok(Value::Object(message))
                });
                let messages = messages.collect::<Result<Vec<_>, String>>()?;
                ("/v1/chat/completions", "messages", Value::Array(messages))
            }
        };
        let mut body = Map::from_iter([(ask.to_owned(), text)]);
        body.extend(self.body.clone());
        Ok(json!({ "custom_id": id, "method": "POST", "url": url, "body": body }).to_string())
    }

    pub(crate) fn id_column(&self) -> Option<usize> {
        self.id
    }

    /// What a row is called on the server; the number counts all rows of the table from 0.
    pub(crate) fn id(&self, rows: &RecordBatch, at: usize, number: u64) -> Result<String, String> {
        row_id(self.id, rows, at, number)
    }
}

/// As [`Plan::id`], by the place of the column.
pub(crate) fn row_id(
    column: Option<usize>,
    rows: &RecordBatch,
    at: usize,
    number: u64,
) -> Result<String, String> {
    let Some(column) = column else { return Ok(number.to_string()) };
    let field = rows.schema_ref().field(column);
    let id = cell::text(&cell::value(field, rows.column(column), at));
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(format!("the id in column {:?} must have 1 to {ID_BYTES_MAX} bytes", field.name()));
    }
    Ok(id)
}

/// The place of a column that `user` names.
pub(crate) fn column_of(schema: &SchemaRef, name: &str, user: &str, table: &str) -> anyhow::Result<usize> {
    schema
        .index_of(name)
        .map_err(|_| anyhow!("{user}: {table} has no column {name:?}. Its columns are {}", names(schema)))
}

fn names(schema: &SchemaRef) -> String {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn read_json(file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
}

/// The messages of a file. Their texts go to `texts`, under the names that they have here.
fn messages(
    file: &Path,
    texts: &mut Vec<(String, String)>,
) -> anyhow::Result<Vec<(Map<String, Value>, String)>> {
    let shape = || {
        let name = file.display();
        format!("{name} must be a list of messages, such as [{{\"role\": \"user\", \"content\": \"…\"}}]")
    };
    let Value::Array(messages) = read_json(file)? else { bail!(shape()) };
    if messages.is_empty() {
        bail!(shape());
    }
    let one = |(number, message): (usize, Value)| {
        let name = format!("message {} of --messages", number + 1);
        let Value::Object(mut message) = message else { bail!(shape()) };
        let Some(Value::String(text)) = message.shift_remove("content") else { bail!(shape()) };
        if !message.get("role").is_some_and(Value::is_string) {
            bail!(shape());
        }
        texts.push((name.clone(), text));
        Ok((message, name))
    };
    messages.into_iter().enumerate().map(one).collect()
}
