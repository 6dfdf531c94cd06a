//! What a server is and what it can do, as it shows when asked. Nothing is assumed from its name but where its version lies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use ternfleet_proto::message::{Abilities, Constraint};

use super::ask::{CHAT, COMPLETIONS, held_to};
use super::client::{Client, Trouble};
use crate::options::Options;

/// One question may take so long; a server that needs longer is taken to be unable.
const WITHIN: Duration = Duration::from_secs(60);
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const TRIES: u32 = 3;
/// Where a server does not say how much fits.
const CONTEXT_TOKENS: usize = 4096;
/// Names in a message.
const NAMES_MAX: usize = 10;

/// What is known of a server and its model.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// What the server calls itself, such as `vllm`.
    pub engine: String,
    pub digest: String,
    pub numerics: String,
    pub context: usize,
    pub abilities: Abilities,
    /// It is another fleet of ours: its ids come with their text, and its model's defaults are those of our manifests.
    pub own: bool,
    /// The beginning of an assistant's message is continued where that is asked for.
    pub continues_chat: bool,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Of the entry in the server's list, to notice another model under the same name.
    pub(super) identity: String,
}

/// An entry of the server's list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    pub(super) id: String,
    entry: Value,
}

impl Listed {
    /// What does not change as long as the model is the same. Times and permissions do, and what a fleet says of the one or
    /// the other of its workers.
    fn identity(&self) -> String {
        let own = ["/id", "/ternfleet/digest", "/ternfleet/numerics", "/ternfleet/deterministic"];
        let others = ["/id", "/root", "/parent", "/owned_by", "/max_model_len"];
        let places = if self.own("digest").is_some() { &own[..] } else { &others[..] };
        let parts = places.iter().filter_map(|place| self.entry.pointer(place));
        parts.map(Value::to_string).collect::<Vec<_>>().join(" ")
    }

    fn own(&self, name: &str) -> Option<&str> {
        self.entry["ternfleet"][name].as_str()
    }
}

/// The identity of this model by now, if the server lists it.
pub(super) async fn identity_of(client: &Client, model: &str) -> Result<Option<String>, Trouble> {
    Ok(listed(client.models().await?).into_iter().find(|one| one.id == model).map(|one| one.identity()))
}

fn listed(entries: Vec<Value>) -> Vec<Listed> {
    let one = |entry: Value| Some(Listed { id: entry["id"].as_str()?.to_owned(), entry });
    entries.into_iter().filter_map(one).collect()
}

/// The model to ask for: the one that is named, or the only one.
pub(super) async fn chosen(client: &Client, named: Option<&str>) -> anyhow::Result<Listed> {
    let told = client.models().await.map_err(|trouble| anyhow::anyhow!("{trouble}"))?;
    let mut models = listed(told);
    let names = models.iter().take(NAMES_MAX).map(|one| one.id.clone()).collect::<Vec<_>>().join(", ");
    match named {
        Some(name) => models
            .into_iter()
            .find(|one| one.id == name)
            .with_context(|| format!("the server has no model {name:?}; it lists: {names}")),
        None if models.len() == 1 => models.pop().context("because one is there"),
        None if models.is_empty() => anyhow::bail!("the server lists no model; load one"),
        None => anyhow::bail!("the server has several models: name one with `upstream_model`: {names}"),
    }
}

/// Asks a server what it is and what it can do. `None` when it left questions open: it is busy or away, and may be able to
/// do what it did not show.
///
/// # Errors
/// When it answers neither of the two kinds of request.
pub(super) async fn facts(
    client: &Client,
    model: &Listed,
    options: &Options,
) -> anyhow::Result<Option<Facts>> {
    let own = model.own("digest").is_some();
    let (engine, version) = engine(client, model, own).await;
    let mut notes = Vec::new();
    let context = context(client, model, options).await.unwrap_or_else(|| {
        notes.push(format!(
            "the server does not say how many tokens fit: {CONTEXT_TOKENS} are assumed, set `max_context`"
        ));
        CONTEXT_TOKENS
    });
    let deterministic = match own {
        true => model.entry["ternfleet"]["deterministic"].as_bool().unwrap_or(true),
        false => options.upstream_deterministic,
    };
    let mut questions = Questions { client, answered: None, left_open: AtomicBool::new(false) };
    let abilities = abilities(&mut questions).await;
    let questions = &questions;
    if questions.left_open.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let abilities = Abilities { deterministic, ..abilities? };
    if !seeded(questions, &abilities).await {
        notes.push(
            "the server does not follow `seed`: two requests with the same one got different answers"
                .to_owned(),
        );
    }
    let digest = options.model_digest.clone().or_else(|| model.own("digest").map(str::to_owned));
    let numerics = model.own("numerics").map(str::to_owned).unwrap_or_else(|| {
        let precision = options.upstream_precision.as_deref().unwrap_or("default");
        let device = options.upstream_device.clone().or_else(device);
        let device = device.unwrap_or_else(|| "unknown".to_owned());
        format!("{engine}/{version}/{precision}/{device}").replace(' ', "-")
    });
    let facts = Facts {
        digest: digest.unwrap_or_else(|| {
            let of = format!("{} {}", model.id, model.entry["root"]);
            format!("server:{}", &blake3::hash(of.as_bytes()).to_hex()[..32])
        }),
        continues_chat: !own && abilities.chat && continues_chat(questions).await,
        engine,
        numerics,
        context,
        abilities,
        own,
        notes,
        identity: model.identity(),
    };
    Ok((!questions.left_open.load(Ordering::Relaxed)).then_some(facts))
}

/// Name and version.
async fn engine(client: &Client, model: &Listed, own: bool) -> (String, String) {
    if own {
        return ("ternfleet".to_owned(), String::new());
    }
    let owner = model.entry["owned_by"].as_str().unwrap_or_default().to_lowercase();
    for (path, place) in
        [("/version", "/version"), ("/props", "/build_info"), ("/get_server_info", "/version")]
    {
        let told = client.beside(path).await;
        if let Some(version) = told.as_ref().and_then(|told| told.pointer(place)).and_then(Value::as_str) {
            return (named(&owner), version.to_owned());
        }
    }
    (named(&owner), "unknown".to_owned())
}

/// Servers write their own name as the owner of the model; others write whose the model is.
fn named(owner: &str) -> String {
    let known = ["vllm", "sglang", "llamacpp", "transformers", "lmdeploy", "tensorrt"];
    known.into_iter().find(|name| owner.contains(name)).unwrap_or("openai").to_owned()
}

async fn context(client: &Client, model: &Listed, options: &Options) -> Option<usize> {
    let told = ["/ternfleet/context_tokens", "/max_model_len", "/meta/n_ctx"]
        .iter()
        .find_map(|place| model.entry.pointer(place).and_then(Value::as_u64));
    let told = match told {
        Some(told) => Some(told),
        None => client
            .beside("/props")
            .await
            .and_then(|props| props.pointer("/default_generation_settings/n_ctx").and_then(Value::as_u64)),
    };
    let told = told.map(|tokens| tokens as usize);
    match (told, options.max_context) {
        (Some(told), Some(most)) => Some(told.min(most)),
        (told, most) => told.or(most),
    }
}

/// The graphics card of this machine, as its driver writes it.
fn device() -> Option<String> {
    let cards = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let mut names: Vec<String> = cards
        .flatten()
        .filter_map(|card| std::fs::read_to_string(card.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned()))
        .collect();
    names.sort();
    (!names.is_empty()).then(|| names.join("+"))
}

/// What is asked of a server, and whether it has answered everything.
struct Questions<'a> {
    client: &'a Client,
    /// Where it answers a plain question.
    answered: Option<(&'static str, Value)>,
    /// Some question got neither an answer nor a clear no.
    left_open: AtomicBool,
}

impl Questions<'_> {
    /// An answer, or a no. What may be chance is tried again, and a busy server is waited for. A server that fails at this
    /// question alone cannot do what it asks for.
    async fn asked(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        let told = self.told(path, body).await;
        if let Err(Trouble::Busy(_) | Trouble::Broken(_)) = told
            && !self.is_well().await
        {
            self.left_open.store(true, Ordering::Relaxed);
        }
        told
    }

    async fn told(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        let asking = async {
            let mut broken = 0;
            loop {
                let wait = match self.client.ask(path, body).await {
                    Err(Trouble::Busy(wait)) => wait.unwrap_or(AGAIN_AFTER),
                    Err(Trouble::Broken(what)) if broken + 1 == TRIES => return Err(Trouble::Broken(what)),
                    Err(Trouble::Broken(_)) => {
                        broken += 1;
                        AGAIN_AFTER
                    }
                    told => return told,
                };
                tokio::time::sleep(wait).await;
            }
        };
        let silent = |_| Err(Trouble::Broken(format!("no answer within {} s", WITHIN.as_secs())));
        tokio::time::timeout(WITHIN, asking).await.unwrap_or_else(silent)
    }

    /// Whether it still answers what it has answered before.
    async fn is_well(&self) -> bool {
        match &self.answered {
            Some((path, body)) => self.told(path, body).await.is_ok(),
            None => false,
        }
    }

    async fn shows(&self, path: &str, body: &Value, good: impl Fn(&Value) -> bool) -> bool {
        self.asked(path, body).await.is_ok_and(|said| good(&said))
    }
}

/// Of two endpoints, those that are there, with what is asked of both.
struct Ways<'a> {
    questions: &'a Questions<'a>,
    completions: bool,
    chat: bool,
}

impl Ways<'_> {
    /// Whether each endpoint that is there answers so. `extra` is added to a small request.
    async fn shows(&self, extra: &Value, good: impl Fn(&Value) -> bool) -> bool {
        let mut all = self.completions || self.chat;
        if self.completions {
            all &= self.questions.shows(COMPLETIONS, &with(completion(), extra), &good).await;
        }
        if self.chat {
            all &= self.questions.shows(CHAT, &with(chat(), extra), &good).await;
        }
        all
    }
}

async fn abilities(questions: &mut Questions<'_>) -> anyhow::Result<Abilities> {
    let mut text = questions.told(COMPLETIONS, &completion()).await;
    let said = questions.told(CHAT, &chat()).await;
    if let Err(Trouble::Busy(_) | Trouble::Broken(_)) = text {
        text = questions.told(COMPLETIONS, &completion()).await;
    }
    questions.answered = match (is_text(&text), is_text(&said)) {
        (true, _) => Some((COMPLETIONS, completion())),
        (false, true) => Some((CHAT, chat())),
        (false, false) => None,
    };
    let is_unclear = |told: &Result<_, _>| matches!(told, Err(Trouble::Busy(_) | Trouble::Broken(_)));
    if (is_unclear(&text) || is_unclear(&said)) && !questions.is_well().await {
        questions.left_open.store(true, Ordering::Relaxed);
    }
    let questions = &*questions;
    let ways = Ways { questions, completions: is_text(&text), chat: is_text(&said) };
    if let (false, false, Err(trouble)) = (ways.completions, ways.chat, &text) {
        anyhow::bail!("the server completes neither texts nor chats: {trouble}");
    }
    let (prompt_ids, ids) = ids_of(questions, &ways, json!(PROMPT)).await;
    let token_ids = !prompt_ids.is_empty() && !ids.is_empty();
    let id_prompts = match token_ids {
        true => ids_of(questions, &ways, json!(prompt_ids)).await == (prompt_ids.clone(), ids.clone()),
        false => ways.completions && counts_ids(questions).await,
    };
    let schema = Constraint::JsonSchema(
        r#"{"type":"object","properties":{"zq":{"type":"integer","enum":[7]}},"required":["zq"],"additionalProperties":false}"#
            .to_owned(),
    );
    let as_json = |said: &Value| {
        let value: Value = serde_json::from_str(&text_of(said)).unwrap_or_default();
        value == json!({ "zq": 7 })
    };
    let is_form = |said: &Value| {
        let text = text_of(said);
        text.strip_prefix("zq")
            .is_some_and(|rest| rest.len() == 3 && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let scored = |said: &Value| {
        let logprobs = &said["choices"][0]["logprobs"];
        ["tokens", "content"].iter().any(|name| logprobs[*name].as_array().is_some_and(|all| !all.is_empty()))
    };
    let held = |constraint: Constraint| {
        let (name, value) = held_to(&constraint);
        json!({ name: value, "max_tokens": 24 })
    };
    let regex = held(Constraint::Regex("zq[0-9]{3}".to_owned()));
    let lark = held(Constraint::Lark("start: \"zq\" /[0-9]{3}/".to_owned()));
    let choice = held(Constraint::Choice(vec!["zq123".to_owned(), "zq456".to_owned()]));
    Ok(Abilities {
        deterministic: false,
        chat: ways.chat,
        completions: ways.completions,
        id_prompts,
        token_ids,
        logprobs: scored_ways(&ways, scored).await,
        // The scores of a prompt, and its text, are not asked of servers.
        echo: false,
        schemas: ways.shows(&held(schema), as_json).await,
        grammars: ways.shows(&regex, is_form).await
            && ways.shows(&lark, is_form).await
            && ways.shows(&choice, is_form).await,
        tools: ways.chat && calls(questions).await,
        choices: ways
            .shows(&json!({ "n": 2, "temperature": 1 }), |said| {
                said["choices"].as_array().is_some_and(|choices| choices.len() == 2)
            })
            .await,
        cutoffs: cutoffs(&ways).await,
        logit_bias: token_ids && biased(questions, &prompt_ids).await,
    })
}

const PROMPT: &str = "One, two, three, four,";

fn completion() -> Value {
    json!({ "prompt": PROMPT, "max_tokens": 1, "temperature": 0 })
}

fn chat() -> Value {
    json!({ "messages": [{ "role": "user", "content": PROMPT }], "max_tokens": 1, "temperature": 0 })
}

fn with(mut body: Value, extra: &Value) -> Value {
    for (name, value) in extra.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

fn is_text(said: &Result<Value, Trouble>) -> bool {
    said.as_ref().is_ok_and(|said| {
        let choice = &said["choices"][0];
        choice["text"].is_string() || choice["message"].is_object()
    })
}

fn text_of(said: &Value) -> String {
    let choice = &said["choices"][0];
    let text = choice["text"].as_str().or_else(|| choice["message"]["content"].as_str());
    text.unwrap_or_default().to_owned()
}

/// Ids of a prompt and of the token after it; none where the server tells none. A chat is asked as well, if there is one.
async fn ids_of(questions: &Questions<'_>, ways: &Ways<'_>, prompt: Value) -> (Vec<u32>, Vec<u32>) {
    let wanted = json!({ "return_token_ids": true, "prompt": prompt });
    let Ok(said) = questions.asked(COMPLETIONS, &with(completion(), &wanted)).await else {
        return Default::default();
    };
    let Ok(pieces) = super::piece::pieces(&said) else { return Default::default() };
    let in_chats = !ways.chat
        || questions
            .shows(CHAT, &with(chat(), &json!({ "return_token_ids": true })), |said| {
                super::piece::pieces(said).is_ok_and(|pieces| {
                    pieces.first().is_some_and(|one| !one.ids.is_empty() && !one.prompt_ids.is_empty())
                })
            })
            .await;
    match pieces.into_iter().next().filter(|_| in_chats) {
        Some(piece) => (piece.prompt_ids, piece.ids),
        None => Default::default(),
    }
}

async fn counts_ids(questions: &Questions<'_>) -> bool {
    let three = with(completion(), &json!({ "prompt": [1, 2, 3] }));
    questions.shows(COMPLETIONS, &three, |said| said["usage"]["prompt_tokens"] == 3).await
}

async fn scored_ways(ways: &Ways<'_>, scored: impl Fn(&Value) -> bool) -> bool {
    let chat = with(chat(), &json!({ "logprobs": true, "top_logprobs": 1 }));
    let text = with(completion(), &json!({ "logprobs": 1 }));
    (!ways.chat || ways.questions.shows(CHAT, &chat, &scored).await)
        && (!ways.completions || ways.questions.shows(COMPLETIONS, &text, &scored).await)
}

async fn calls(questions: &Questions<'_>) -> bool {
    let tool = json!({ "name": "zq", "parameters": { "type": "object", "properties": {} } });
    let extra = json!({
        "tools": [{ "type": "function", "function": tool }], "max_tokens": 48,
        "tool_choice": { "type": "function", "function": { "name": "zq" } },
    });
    let called = |said: &Value| {
        said["choices"][0]["message"]["tool_calls"][0]["function"]["name"].as_str() == Some("zq")
    };
    questions.shows(CHAT, &with(chat(), &extra), called).await
}

/// Where only the likeliest token is left, a high temperature changes nothing.
async fn cutoffs(ways: &Ways<'_>) -> bool {
    let (path, body) = if ways.completions { (COMPLETIONS, completion()) } else { (CHAT, chat()) };
    let greedy = with(body.clone(), &json!({ "max_tokens": 6 }));
    let Ok(plain) = ways.questions.asked(path, &greedy).await else { return false };
    let same = |said: &Value| text_of(said) == text_of(&plain);
    let hot = with(greedy, &json!({ "temperature": 2 }));
    ways.questions.shows(path, &with(hot.clone(), &json!({ "top_k": 1 })), same).await
        && ways.questions.shows(path, &with(hot, &json!({ "min_p": 1.0 })), same).await
}

/// Two requests with the same seed, one after the other, get the same answer.
async fn seeded(questions: &Questions<'_>, abilities: &Abilities) -> bool {
    let (path, body) = if abilities.completions { (COMPLETIONS, completion()) } else { (CHAT, chat()) };
    let body = with(body, &json!({ "max_tokens": 12, "temperature": 1, "seed": 20_261_130 }));
    let (first, second) = (questions.asked(path, &body).await, questions.asked(path, &body).await);
    matches!((first, second), (Ok(first), Ok(second)) if text_of(&first) == text_of(&second))
}

/// Ids that are wanted enough come.
async fn biased(questions: &Questions<'_>, prompt_ids: &[u32]) -> bool {
    let Some(id) = prompt_ids.last() else { return false };
    let body = json!({ "return_token_ids": true, "logit_bias": { id.to_string(): 100 } });
    let forced = |said: &Value| said["choices"][0]["token_ids"] == json!([id]);
    questions.shows(COMPLETIONS, &with(completion(), &body), forced).await
}

/// A message that is continued needs fewer tokens than one after which a new one begins.
async fn continues_chat(questions: &Questions<'_>) -> bool {
    let begun = json!({ "messages": [{ "role": "user", "content": PROMPT }, { "role": "assistant", "content": "five, six" }] });
    let continued = json!({ "continue_final_message": true, "add_generation_prompt": false });
    let tokens = |said: Result<Value, Trouble>| said.ok()?["usage"]["prompt_tokens"].as_u64();
    let plain = tokens(questions.asked(CHAT, &with(chat(), &begun)).await);
    let shorter = tokens(questions.asked(CHAT, &with(with(chat(), &begun), &continued)).await);
    matches!((plain, shorter), (Some(plain), Some(shorter)) if shorter < plain)
}
