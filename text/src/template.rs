//! Templates over the columns of a table: Jinja as in chat templates, but strict. A name that is not there is an error, and so
//! is printing a null.

use std::collections::BTreeSet;

use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde::Serialize;

use crate::chat;

/// Templates by name.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
}

impl Default for Templates {
    fn default() -> Self {
        let mut environment = chat::environment();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(|out, state, value| {
            if value.is_none() {
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "a null was printed"));
            }
            minijinja::escape_formatter(out, state, value)
        });
        Self { environment }
    }
}

impl Templates {
    /// Adds a template; answers the names that it reads.
    pub fn add(&mut self, name: &str, text: &str) -> Result<BTreeSet<String>, String> {
        self.environment
            .add_template_owned(name.to_owned(), text.to_owned())
            .map_err(|fault| fault.to_string())?;
        let template = self.environment.get_template(name).map_err(|fault| fault.to_string())?;
        let own: BTreeSet<&str> = self.environment.globals().map(|(name, _)| name).collect();
        let read = template.undeclared_variables(false);
        Ok(read.into_iter().filter(|name| !own.contains(name.as_str())).collect())
    }

    /// The text of a template that was added.
    pub fn render(&self, name: &str, values: impl Serialize) -> Result<String, String> {
        let template = self.environment.get_template(name).map_err(|fault| fault.to_string())?;
        template.render(minijinja::value::Serde(values)).map_err(|fault| fault.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_names_what_it_reads_and_has_the_methods_of_texts() {
        let mut templates = Templates::default();
        let text = "{% for n in range(2) %}{{ n }} {{ text.upper() }} {% endfor %}{{ row['a b'] }}";
        let read = templates.add("--prompt", text).unwrap();
        assert_eq!(read.into_iter().collect::<Vec<_>>(), ["row", "text"]);
        let values = json!({ "text": "<a>", "row": { "a b": 3 } });
        assert_eq!(templates.render("--prompt", values).unwrap(), "0 <A> 1 <A> 3");
    }

    #[test]
    fn a_null_can_be_tested_and_not_printed() {
        let mut templates = Templates::default();
        templates.add("tested", "{% if text is none %}empty{% else %}{{ text }}{% endif %}").unwrap();
        templates.add("printed", "{{ text }}").unwrap();
        assert_eq!(templates.render("tested", json!({ "text": null })).unwrap(), "empty");
        assert!(templates.render("printed", json!({ "text": null })).unwrap_err().contains("null"));
        assert!(templates.render("printed", json!({})).is_err());
        assert!(templates.add("broken", "{{ text").is_err());
    }
}
