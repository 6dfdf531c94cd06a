//! Checks of the language: sentences in documents are short, and unclear phrases are used nowhere.

use super::{files, read, relative, report};

/// A sentence with more words needs a second reading. Code spans do not count.
const WORDS_MAX: usize = 35;

/// Phrases that have a standard term, each with its replacement.
const UNCLEAR: &[(&str, &str)] = &[
    ("now and then", "periodically"),
    ("the word of", "what … reports"),
    ("handed out", "assigned"),
    ("hands out", "assigns"),
    ("hand-out", "assignment"),
    ("the house", "the code base"),
    ("of the rooms", "of the crates"),
    ("mend", "fix, repair"),
    ("mends", "fixes, corrects"),
    ("mended", "fixed, repaired"),
    ("mending", "repair"),
    ("said aloud", "logged"),
    ("thrown away", "discarded"),
    ("from the wild", "public"),
    ("for ever", "forever, without end"),
    ("is reckoned", "is estimated, is computed"),
    ("goes on where", "continues where"),
    ("a word of", "a report of"),
    ("out of the way", "moved, removed"),
    ("by and by", "gradually"),
];

/// Phrases that comments may have, and messages may not: each has a shorter standard form.
const UNCLEAR_IN_MESSAGES: &[(&str, &str)] = &[
    ("goes on", "continues"),
    ("go on", "continue"),
    ("given back", "returned"),
    ("gives back", "returns"),
    ("give back", "return"),
    ("unless given", "[default: …], by default"),
    ("is not understood", "cannot be parsed"),
    ("is told", "is reported"),
    ("anew", "again, from the beginning"),
    ("trying again", "retrying"),
    ("left alone", "ignored"),
];

/// A sentence of a document, with the line on which its paragraph begins.
struct Sentence {
    line: usize,
    text: String,
}

/// Sentences of running text: no code blocks, tables and headings.
fn sentences(markdown: &str) -> Vec<Sentence> {
    let mut paragraphs: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    let mut in_code = false;
    for (at, line) in markdown.lines().enumerate() {
        let text = line.trim();
        let is_fence = text.starts_with("```");
        if is_fence {
            in_code = !in_code;
        }
        let is_indented_code = !open && line.starts_with("    ");
        if in_code || is_fence || is_indented_code || text.is_empty() || text.starts_with(['|', '#']) {
            open = false;
            continue;
        }
        let item = list_item(text);
        if open && item.is_none() {
            let (_, paragraph) = paragraphs.last_mut().expect("because a paragraph is open");
            paragraph.push(' ');
            paragraph.push_str(text);
        } else {
            paragraphs.push((at + 1, item.unwrap_or(text).to_owned()));
            open = true;
        }
    }
    paragraphs
        .iter()
        .flat_map(|(line, text)| split(&plain(text)).into_iter().map(|text| Sentence { line: *line, text }))
        .collect()
}

/// The text of a list item, without its bullet or number.
fn list_item(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let numbered = (rest.len() < text.len()).then(|| rest.strip_prefix(". ")).flatten();
    numbered.or_else(|| ["- ", "* ", "> "].iter().find_map(|bullet| text.strip_prefix(bullet)))
}

/// Code spans become one mark each, and links lose their targets.
fn plain(text: &str) -> String {
    let without_code: String =
        text.split('`').enumerate().map(|(at, part)| if at % 2 == 0 { part } else { "`" }).collect();
    let mut left = without_code.as_str();
    let mut plain = String::new();
    while let Some((before, rest)) = left.split_once("](") {
        plain.push_str(before);
        left = rest.split_once(')').map_or("", |(_, after)| after);
    }
    plain + left
}

/// Splits after a full stop, question or exclamation mark that is followed by the beginning of a sentence.
fn split(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut sentences = vec![Vec::new()];
    for (at, word) in words.iter().enumerate() {
        sentences.last_mut().expect("because one is there from the start").push(*word);
        let ends = word.trim_end_matches([')', '*', '"', ']']).ends_with(['.', '?', '!']);
        let begins = |next: &&str| {
            let first = next.trim_start_matches(['(', '*', '"', '[']).chars().next();
            first.is_some_and(|c| c.is_uppercase() || c.is_ascii_digit() || c == '`')
        };
        if ends && words.get(at + 1).is_some_and(begins) {
            sentences.push(Vec::new());
        }
    }
    sentences.iter().map(|words| words.join(" ")).collect()
}

fn long_sentences(name: &str, markdown: &str) -> Vec<String> {
    let count = |text: &str| text.split_whitespace().filter(|word| !word.contains('`')).count();
    let long = sentences(markdown).into_iter().filter(|sentence| count(&sentence.text) > WORDS_MAX);
    let tell = |sentence: Sentence| {
        let words = count(&sentence.text);
        let begin: String = sentence.text.chars().take(70).collect();
        format!(
            "{name}:{} has a sentence of {words} words, at most {WORDS_MAX} are allowed: {begin}…",
            sentence.line
        )
    };
    long.map(tell).collect()
}

#[test]
fn sentences_in_documents_are_short() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for path in files(&[".md"]) {
        let name = relative(&path);
        if !name.contains("/corpus/") && name != "CHANGELOG.md" {
            faults.extend(long_sentences(&name, &read(&path)));
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} documents");
    report(faults);
}

#[test]
fn a_long_sentence_is_found_and_code_does_not_count() {
    let long = vec!["word"; WORDS_MAX + 1].join(" ");
    assert_eq!(long_sentences("a.md", &format!("Short.\n\n- {long}.\n")).len(), 1);
    assert_eq!(long_sentences("a.md", &format!("| {long} |\n\n```sh\n{long}\n```\n")).len(), 0);
    let two_sentences =
        format!("{}. And [one](target more). `code` {}.", long.replacen("word ", "", 1), "`x` ".repeat(40));
    assert_eq!(long_sentences("a.md", &two_sentences), Vec::<String>::new());
}

/// Whether a text has a phrase, as whole words.
fn has(text: &str, phrase: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(phrase).any(|(at, _)| {
        !inside(text[..at].chars().next_back()) && !inside(text[at + phrase.len()..].chars().next())
    })
}

#[test]
fn unclear_phrases_are_used_nowhere() {
    let mut faults = Vec::new();
    for path in files(&[".md", ".rs", ".sh", ".toml", ".yml", ".yaml", ".py", ".js", ".mjs", ".css", ".html"])
    {
        let name = relative(&path);
        // This list itself, texts of others, and the record of what earlier versions changed.
        if name.ends_with("tidy/words.rs") || name.contains("/corpus/") || name == "CHANGELOG.md" {
            continue;
        }
        for (at, line) in read(&path).lines().enumerate() {
            let text = line.to_lowercase();
            let found = UNCLEAR.iter().filter(|(phrase, _)| has(&text, phrase));
            faults.extend(
                found.map(|(phrase, better)| format!("{name}:{} says {phrase:?}; better: {better}", at + 1)),
            );
        }
    }
    report(faults);
}

/// Code without comments: what is left of prose is messages.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn messages_use_the_standard_terms() {
    let mut faults = Vec::new();
    for path in files(&[".rs", ".js"]) {
        let name = relative(&path);
        if !name.contains("/src/") || name.starts_with("tests/") || name.contains("tests") {
            continue;
        }
        for (at, line) in code_lines(&read(&path)).filter(|(_, line)| line.contains('"')) {
            let text = line.to_lowercase();
            let found = UNCLEAR_IN_MESSAGES.iter().filter(|(phrase, _)| has(&text, phrase));
            faults.extend(
                found.map(|(phrase, better)| format!("{name}:{} says {phrase:?}; better: {better}", at + 1)),
            );
        }
    }
    report(faults);
}
