//! Multiple-choice data in the formats that it is published in, one JSON object a line, turned into the same
//! questions that the LM Evaluation Harness asks.

use std::str::FromStr;

use serde_json::Value;

use super::Error;
use super::scoring::Continuation;

/// A published format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// {"activity_label", "ctx_a", "ctx_b", "endings": […], "label"}
    HellaSwag,
    /// {"sentence" with one `_`, "option1", "option2", "answer": "1" or "2"}
    WinoGrande,
    /// {"goal", "sol1", "sol2", "label"}
    Piqa,
    /// {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}, or as Hugging Face has it
    Arc,
    /// {"context", "choices": […], "answer": index from 0}
    Plain,
}

/// A text that names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a format; use hellaswag, winogrande, piqa, arc or plain")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Ok(match text {
            "hellaswag" => Self::HellaSwag,
            "winogrande" => Self::WinoGrande,
            "piqa" => Self::Piqa,
            "arc" => Self::Arc,
            "plain" => Self::Plain,
            other => return Err(UnknownFormat(other.to_owned())),
        })
    }
}

/// A question with its possible continuations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// At least two.
    pub choices: Vec<Continuation>,
    /// The index of the right one.
    pub answer: usize,
}

impl Format {
    /// Reads a whole file's text; empty lines are passed over.
    pub fn read(self, text: &str) -> Result<Vec<Question>, Error> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let questions = lines.map(|(index, line)| {
            let fault = |reason: String| Error::Line { line: index + 1, reason };
            let json = serde_json::from_str(line).map_err(|reason| fault(reason.to_string()))?;
            self.question(&json).map_err(fault)
        });
        questions.collect()
    }

    /// Reads one question; what is missing or wrong, otherwise.
    pub fn question(self, json: &Value) -> Result<Question, String> {
        let question = match self {
            Self::HellaSwag => hellaswag(json)?,
            Self::WinoGrande => winogrande(json)?,
            Self::Piqa => {
                let context = format!("Question: {}\nAnswer:", text(json, "goal")?);
                let answers = [text(json, "sol1")?, text(json, "sol2")?];
                after(&context, answers, index(json, "label")?)
            }
            Self::Arc => arc(json)?,
            Self::Plain => after(text(json, "context")?, texts(json, "choices")?, index(json, "answer")?),
        };
        let n = question.choices.len();
        if n < 2 || question.answer >= n {
            return Err(format!("answer {} of {n} choices", question.answer));
        }
        Ok(question)
    }
}

/// Choices that each follow the same context after a space.
fn after<'a>(context: &str, choices: impl IntoIterator<Item = &'a str>, answer: usize) -> Question {
    let choice = |text: &str| Continuation { context: context.to_owned(), text: format!(" {text}") };
    Question { choices: choices.into_iter().map(choice).collect(), answer }
}

fn hellaswag(json: &Value) -> Result<Question, String> {
    let (label, start, rest) = (text(json, "activity_label")?, text(json, "ctx_a")?, text(json, "ctx_b")?);
    let context = plain(&format!("{label}: {start} {}", capitalised(rest)));
    let endings: Vec<String> = texts(json, "endings")?.into_iter().map(plain).collect();
    Ok(after(&context, endings.iter().map(String::as_str), index(json, "label")?))
}

/// Both options are in the gap in turn, and what follows the gap is scored.
fn winogrande(json: &Value) -> Result<Question, String> {
    let sentence = text(json, "sentence")?;
    let (before, behind) = sentence.split_once('_').ok_or("the sentence has no gap '_'")?;
    let option = |name| -> Result<Continuation, String> {
        let context = format!("{before}{}", text(json, name)?);
        Ok(Continuation { context, text: format!(" {}", behind.trim()) })
    };
    let answer = index(json, "answer")?.checked_sub(1).ok_or("the answer is neither 1 nor 2")?;
    Ok(Question { choices: vec![option("option1")?, option("option2")?], answer })
}

/// The published form nests the question; Hugging Face's has parallel lists.
fn arc(json: &Value) -> Result<Question, String> {
    let (stem, answers, labels) = if json["question"].is_object() {
        let question = &json["question"];
        let choices = question["choices"].as_array().ok_or("question.choices is missing")?;
        let field = |name| choices.iter().map(|choice| text(choice, name)).collect::<Result<Vec<_>, _>>();
        (text(question, "stem")?, field("text")?, field("label")?)
    } else {
        let choices = &json["choices"];
        (text(json, "question")?, texts(choices, "text")?, texts(choices, "label")?)
    };
    let key = text(json, "answerKey")?;
    let answer = labels.iter().position(|label| *label == key);
    let answer = answer.ok_or_else(|| format!("answerKey '{key}' is not one of {labels:?}"))?;
    Ok(after(&format!("Question: {stem}\nAnswer:"), answers, answer))
}

/// HellaSwag's texts come from WikiHow with marks left in: the harness takes them out in this order.
fn plain(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, inside)) = rest.split_once('[') {
        cleaned.push_str(before);
        match inside.split_once(']') {
            Some((_, behind)) => rest = behind,
            None => {
                cleaned.push('[');
                rest = inside;
            }
        }
    }
    cleaned.push_str(rest);
    cleaned.replace("  ", " ")
}

/// As Python's `capitalize`: the first letter large, all others small.
fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().collect::<String>()).unwrap_or_default();
    first + &characters.as_str().to_lowercase()
}

fn text<'a>(json: &'a Value, field: &str) -> Result<&'a str, String> {
    json[field].as_str().ok_or_else(|| format!("'{field}' is missing or not a text"))
}

fn texts<'a>(json: &'a Value, field: &str) -> Result<Vec<&'a str>, String> {
    let list =
        json[field].as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    list.ok_or_else(|| format!("'{field}' is missing or not a list of texts"))
}

/// An index, which some data writes as text.
fn index(json: &Value, field: &str) -> Result<usize, String> {
    let number = match &json[field] {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    };
    let number = number.and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| format!("'{field}' is missing or not an index"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(format: &str, json: &Value) -> Question {
        format.parse::<Format>().unwrap().question(json).unwrap()
    }

    fn whole(question: &Question) -> Vec<String> {
        question.choices.iter().map(|choice| format!("{}|{}", choice.context, choice.text)).collect()
    }

    #[test]
    fn hellaswag_is_asked_as_the_harness_asks_it() {
        let line = json!({
            "activity_label": "Washing a dog", "ctx_a": "[header] How to wash [title] Begin.", "ctx_b": "then HE",
            "endings": ["runs  off. [step] Now.", "sings"], "label": "1",
        });
        let question = question("hellaswag", &line);
        let context = "Washing a dog: How to wash. Begin. Then he";
        let expected = [format!("{context}| runs off. Now."), format!("{context}| sings")];
        assert_eq!((whole(&question), question.answer), (expected.to_vec(), 1));
    }

    #[test]
    fn winogrande_scores_what_follows_the_gap() {
        let line = json!({"sentence": "The cup fell off the shelf as _ was wet .", "option1": "it", "option2": "that", "answer": "2"});
        let question = question("winogrande", &line);
        let expected =
            ["The cup fell off the shelf as it| was wet .", "The cup fell off the shelf as that| was wet ."];
        assert_eq!((whole(&question), question.answer), (expected.map(str::to_owned).to_vec(), 1));
    }

    #[test]
    fn piqa_and_arc_and_plain_are_read() {
        let piqa = question("piqa", &json!({"goal": "Dry it", "sol1": "sun", "sol2": "rain", "label": 0}));
        assert_eq!((whole(&piqa)[0].as_str(), piqa.answer), ("Question: Dry it\nAnswer:| sun", 0));
        let choices = json!([{"text": "air", "label": "A"}, {"text": "rock", "label": "B"}]);
        let arc =
            question("arc", &json!({"question": {"stem": "Hard?", "choices": choices}, "answerKey": "B"}));
        let flat = json!({"question": "Hard?", "choices": {"text": ["air", "rock"], "label": ["A", "B"]}, "answerKey": "B"});
        assert_eq!((&arc, arc.answer), (&question("arc", &flat), 1));
        let plain =
            question("plain", &json!({"context": "One and", "choices": ["two", "tree"], "answer": 0}));
        assert_eq!(whole(&plain), ["One and| two", "One and| tree"]);
    }

    #[test]
    fn a_bad_line_is_told_with_its_number() {
        for (line, part) in [
            ("{", "EOF"),
            ("{\"goal\": 1}", "'goal' is missing"),
            ("{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\", \"label\": 2}", "answer 2 of 2"),
        ] {
            let fault = Format::Piqa.read(&format!("\n{line}\n")).unwrap_err().to_string();
            assert!(fault.starts_with("line 2") && fault.contains(part), "{fault}");
        }
        assert!("mmlu".parse::<Format>().unwrap_err().to_string().contains("hellaswag"));
    }
}
