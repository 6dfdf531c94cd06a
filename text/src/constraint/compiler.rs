//! From a grammar to something that matches: compiled once for a vocabulary, shared by all who ask, bounded.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{ParserFactory, TokenParser};

use super::matcher::{DeadEnd, Matcher};
use super::schema::Style;
use super::{Fault, Grammar, limits, schema, vocabulary};
use crate::Tokenizer;

/// Compiles grammars for one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
    end: u32,
    /// The latest first.
    kept: Mutex<Vec<Arc<Constraint>>>,
}

/// A grammar for one vocabulary, compiled when its first matcher is made.
pub struct Constraint {
    grammar: Grammar,
    compiler: Arc<Compiler>,
    /// A matcher at the start and the tokens that must come first, of which all others are clones.
    compiled: OnceLock<Result<(Matcher, VecDeque<u32>), DeadEnd>>,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compiler")
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Constraint").field(&self.grammar).finish()
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Constraint) -> bool {
        self.grammar == other.grammar
    }
}

impl Compiler {
    /// A compiler for this tokenizer's vocabulary; `None` if that has no token to end with. Takes some hundred
    /// milliseconds for a large vocabulary.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Option<Compiler> {
        let end = *vocabulary::ends(&tokenizer).first()?;
        Compiler::of(&vocabulary::of(tokenizer)?, end)
    }

    pub(super) fn of(vocabulary: &TokEnv, end: u32) -> Option<Compiler> {
        let able = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(vocabulary, able, &slices).ok()?;
        factory.quiet();
        *factory.limits_mut() = limits::parser();
        Some(Compiler { factory, end, kept: Mutex::default() })
    }

    /// The constraint of a grammar: the one that others have, if it was asked for lately. Nothing is compiled here.
    pub fn constraint(self: &Arc<Compiler>, grammar: Grammar) -> Arc<Constraint> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.iter().position(|constraint| constraint.grammar == grammar) {
            Some(at) => kept[..=at].rotate_right(1),
            None => {
                let compiler = Arc::clone(self);
                kept.insert(0, Arc::new(Constraint { grammar, compiler, compiled: OnceLock::new() }));
                let mut bytes = 0;
                let fits = kept.iter().take(limits::KEPT).take_while(|constraint| {
                    bytes += constraint.grammar.bytes();
                    bytes <= limits::KEPT_BYTES
                });
                let n = fits.count().max(1);
                kept.truncate(n);
            }
        }
        Arc::clone(&kept[0])
    }

    fn compile(&self, grammar: &Grammar) -> Result<TokenParser, Fault> {
        let trie = self.factory.tok_env().tok_trie();
        let grammar = translate(grammar, |text| trie.get_special_token(text))?;
        let parser = self.factory.create_parser(TopLevelGrammar::from_grammar(grammar));
        parser.map_err(|error| fault_of(&format!("{error:#}")))
    }
}

impl Constraint {
    /// A matcher that has taken `output`, and the tokens that must come next. The first one compiles, which takes up to
    /// some hundred milliseconds.
    pub fn matcher(&self, output: &[u32]) -> Result<(Matcher, VecDeque<u32>), DeadEnd> {
        let (start, forced) = self.compiled.get_or_init(|| self.compile()).clone()?;
        start.follow(forced, output)
    }

    /// The same with automata of its own, where the shared ones have grown too large.
    pub fn matcher_alone(&self, output: &[u32]) -> Result<(Matcher, VecDeque<u32>), DeadEnd> {
        let (start, forced) = self.compile()?;
        start.follow(forced, output)
    }

    fn compile(&self) -> Result<(Matcher, VecDeque<u32>), DeadEnd> {
        let parser = compiled(Arc::clone(&self.compiler), &self.grammar, limits::COMPILE_HERE);
        Matcher::new(parser.map_err(|_| DeadEnd::Uncompiled)?, self.compiler.end)
    }

    /// Whether an output ends with this token.
    pub fn ends_with(&self, token: u32) -> bool {
        self.compiler.factory.tok_env().tok_trie().eos_tokens().contains(&token)
    }

    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.compiler.factory.tok_env().tok_trie().vocab_size()
    }
}

impl Grammar {
    fn bytes(&self) -> usize {
        match self {
            Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
            Grammar::Choice(texts) => texts.iter().map(String::len).sum(),
            Grammar::JsonObject => 0,
            Grammar::Calls(calls) => calls.bytes(),
        }
    }
}

/// The grammar in the form that the crate compiles, within this program's limits. `control` finds a control token by its
/// text.
fn translate(grammar: &Grammar, control: impl Fn(&str) -> Option<u32>) -> Result<GrammarWithLexer, Fault> {
    match grammar {
        Grammar::JsonSchema(text) => {
            limits::at_most("the schema's size in bytes", text.len(), limits::MAX_SCHEMA_BYTES)?;
            Ok(GrammarWithLexer::from_json_schema(schema::translate(text, Style::Compact)?))
        }
        Grammar::JsonObject => Ok(GrammarWithLexer::from_json_schema(schema::any_object())),
        Grammar::Calls(calls) => calls.translate(control),
        Grammar::Regex(text) => {
            limits::at_most("the expression's size in bytes", text.len(), limits::MAX_GRAMMAR_BYTES)?;
            Ok(GrammarWithLexer::from_regex(text))
        }
        Grammar::Choice(texts) => {
            limits::at_most("the number of choices", texts.len(), limits::MAX_CHOICES)?;
            limits::at_most("the choices' size in bytes", grammar.bytes(), limits::MAX_GRAMMAR_BYTES)?;
            if texts.is_empty() || texts.iter().any(String::is_empty) {
                return Err(Fault::invalid("a choice needs at least one text, and no text may be empty"));
            }
            let texts: Vec<String> = texts.iter().map(|text| escaped(text)).collect();
            Ok(GrammarWithLexer::from_regex(&texts.join("|")))
        }
        Grammar::Lark(text) => {
            limits::at_most("the grammar's size in bytes", text.len(), limits::MAX_GRAMMAR_BYTES)?;
            Ok(GrammarWithLexer::from_lark(text.clone()))
        }
    }
}

/// A regular expression for the text itself.
fn escaped(text: &str) -> String {
    let mut result = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            result.push('\\');
        }
        match character {
            '\n' => result.push_str("\\n"),
            '\r' => result.push_str("\\r"),
            other => result.push(other),
        }
    }
    result
}

/// An error of the crate as one of ours. Its messages are for people, and some repeat what they are about.
fn fault_of(message: &str) -> Fault {
    let message = message.replace("<non-verbose/>", "");
    let first: String = message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
    let complex = ["too large", "too complex", "fuel", "limit", "exceeded", "panic"];
    match complex.iter().any(|word| first.contains(word)) {
        true => Fault::TooComplex(first),
        false => Fault::invalid(first),
    }
}

/// Compilers that were left behind, still at work on something hostile.
static LEFT_BEHIND: AtomicUsize = AtomicUsize::new(0);

/// A compiler at work. It has ended, or it is left behind: whichever comes second takes it off the count.
#[derive(Clone, Default)]
struct Work(Arc<AtomicBool>);

impl Work {
    fn leave_behind(&self) {
        LEFT_BEHIND.fetch_add(1, Ordering::SeqCst);
        self.finish();
    }

    fn finish(&self) {
        if self.0.swap(true, Ordering::SeqCst) {
            LEFT_BEHIND.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Finishes its work when it is dropped, by a panic as well.
struct Finish(Work);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// Compiles on a thread of its own, since recursion goes as deep as an untrusted schema, and waits for it as long as is
/// allowed; then the thread is left to its fuel, which ends in time.
fn compiled(
    compiler: impl Deref<Target = Compiler> + Send + 'static,
    grammar: &Grammar,
    within: Duration,
) -> Result<TokenParser, Fault> {
    if LEFT_BEHIND.load(Ordering::SeqCst) >= limits::LEFT_BEHIND {
        return Err(Fault::TooComplex("other slow constraints are being compiled: retry later".into()));
    }
    let (answer, answers) = mpsc::channel();
    let grammar = grammar.clone();
    let work = Work::default();
    let finish = Finish(work.clone());
    let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(limits::STACK_BYTES);
    let begun = thread.spawn(move || {
        let _finish = finish;
        // Nobody waits for the answer of one that was left behind.
        let _ = answer.send(compiler.compile(&grammar));
    });
    begun.map_err(|error| Fault::TooComplex(format!("no thread for the compiler: {error}")))?;
    answers.recv_timeout(within).unwrap_or_else(|fault| match fault {
        RecvTimeoutError::Disconnected => Err(Fault::TooComplex("the compiler stopped".to_owned())),
        RecvTimeoutError::Timeout => {
            work.leave_behind();
            let most = within.as_millis() as usize;
            let what = "the time to compile it in milliseconds";
            Err(Fault::TooMuch { what, found: most + 1, most, path: String::new() })
        }
    })
}

/// The compiler that checks grammars without a model: its tokens are bytes.
fn of_bytes() -> Result<&'static Compiler, Fault> {
    static BYTES: OnceLock<Option<Compiler>> = OnceLock::new();
    let compiler = BYTES.get_or_init(|| Compiler::of(&vocabulary::bytes(), 256));
    compiler.as_ref().ok_or_else(|| Fault::TooComplex("the compiler stopped".to_owned()))
}

/// A grammar compiled without a model, which says what texts belong to it.
pub struct Recogniser {
    parser: TokenParser,
    end: u32,
}

impl std::fmt::Debug for Recogniser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recogniser")
    }
}

impl Recogniser {
    pub(super) fn new(grammar: &Grammar) -> Result<Recogniser, Fault> {
        let compiler = of_bytes()?;
        let parser = compiled(compiler, grammar, limits::COMPILE)?;
        let recogniser = Recogniser { parser, end: compiler.end };
        recogniser.start().map(|_| recogniser)
    }

    /// A matcher at the start, the text that every output begins with, and what may come after it.
    fn start(&self) -> Result<(Matcher, String), Fault> {
        let fault = |end| match end {
            DeadEnd::NoToken => Fault::invalid("no output matches it"),
            other => Fault::TooComplex(other.to_string()),
        };
        let (mut matcher, forced) = Matcher::new(self.parser.clone(), self.end).map_err(fault)?;
        matcher.mask().map_err(fault)?;
        let bytes: Vec<u8> = forced.iter().filter_map(|&token| u8::try_from(token).ok()).collect();
        Ok((matcher, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Whether `text` is a whole output.
    pub fn takes(&self, text: &str) -> bool {
        let bytes = text.bytes().map(u32::from).chain([self.end]).collect::<Vec<u32>>();
        let start = Matcher::new(self.parser.clone(), self.end);
        let followed = start.and_then(|(matcher, forced)| matcher.follow(forced, &bytes));
        let Ok((matcher, forced)) = followed else { return false };
        forced.is_empty() && matcher.taken().last() == Some(&self.end)
    }
}

pub(super) fn check_stops(grammar: &Grammar, stops: &[String]) -> Result<(), Fault> {
    let fault = |stop: &String, reason: String| Err(Fault::Stop { stop: stop.clone(), reason });
    if stops.is_empty() {
        return Ok(());
    }
    if let Grammar::Choice(texts) = grammar {
        return match stops
            .iter()
            .find_map(|stop| Some((stop, texts.iter().find(|text| text.contains(stop))?)))
        {
            Some((stop, text)) => fault(stop, format!("it is part of the choice {text:?}")),
            None => Ok(()),
        };
    }
    let (_, start) = Recogniser::new(grammar)?.start()?;
    match stops.iter().find(|stop| !stop.is_empty() && start.contains(stop.as_str())) {
        Some(stop) => fault(stop, format!("every output begins with {start:?}")),
        None => Ok(()),
    }
}
