//! Every message of the wire: it reads back as it was written, survives fields it does not know, and whatever bytes
//! come in its place are an error and never a panic.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

#[path = "wire/samples.rs"]
mod samples;

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ternfleet_proto::codec::{decode, encode};
use ternfleet_proto::message::*;
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::tag::{AssignmentKey, AssignmentTag};
use ternfleet_proto::{
    Attempt, BatchId, Digest, Epoch, JobKey, Lane, LeaderRevision, MonoMs, TenantId, TimeMs, UsdMicro,
    WorkerId,
};

use samples::{quote, view};

fn job() -> JobKey {
    JobKey { batch: batch_id(), index: 7 }
}

fn batch_id() -> BatchId {
    "batch_1".parse().unwrap()
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn worker() -> WorkerId {
    "w-1".parse().unwrap()
}

fn line() -> Line {
    Line { settings: "{}".into(), ..Line::new(Some("line-8".into()), Endpoint::ChatCompletions, None) }
}

fn logprobs() -> Vec<TokenLogprobs> {
    vec![TokenLogprobs {
        id: 5,
        text: "é".into(),
        logprob: -0.25,
        top: vec![(5, "é".into(), -0.25)],
        bytes: Some(vec![0xc3]),
        top_bytes: vec![(0, vec![0xc3])],
    }]
}

fn generation() -> Generation {
    let said = ("user".into(), "Wie geht's?\n".into());
    Generation {
        prompt: Prompt::Chat(vec![ChatMessage { role: said.0, content: said.1, ..ChatMessage::default() }]),
        max_tokens: Some(40),
        sampling: Sampling { logit_bias: vec![(3, -1.5)], ..Sampling::default() },
        seed: u64::MAX,
        stop: vec!["\n\n".into()],
        logprobs: Some(2),
        echo: false,
        stream: true,
        constraint: Some(Constraint::JsonSchema(r#"{"type":"object"}"#.into())),
        token_ids: true,
        deterministic: true,
        no_cache: true,
    }
}

fn conversation() -> Conversation {
    let call = PastCall { id: "c".into(), name: "f".into(), arguments: "{}".into() };
    let asked = ChatMessage { role: "assistant".into(), calls: vec![call], ..ChatMessage::default() };
    let answered = ChatMessage { role: "tool".into(), call_id: Some("c".into()), ..ChatMessage::default() };
    let (description, parameters) = (Some("d".into()), Some("{}".into()));
    let (function, choice) =
        (Function { name: "f".into(), description, parameters }, ToolChoice::Function("f".into()));
    let tools = Some(Tools { functions: vec![function], choice, parallel: true });
    Conversation { messages: vec![asked, answered], tools }
}

fn work() -> Work {
    Work {
        job: job(),
        tenant: tenant(),
        lane: Lane::Interactive,
        epoch: Epoch(4097),
        attempts_before: Attempt(1),
        leader: LeaderRevision(9),
        tag: AssignmentKey([3; 32]).sign(&job(), Epoch(4097), &worker()),
        model_digest: "d".into(),
        numerics: "n".into(),
        deadline: Some(TimeMs(99)),
        left_ms: Some(5),
        checkpoint_key: AssignmentKey([3; 32]).checkpoint_key(&job()),
        tokens_estimate: 52,
        line: line(),
        input: Input::Inline(generation()),
        traceparent: Some("00-x".into()),
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        job: job(),
        epoch: Epoch(4097),
        tag: None,
        attempt: Attempt(2),
        owner: worker(),
        host: "h".into(),
        leader: LeaderRevision(9),
        model_digest: "d".into(),
        numerics: "n".into(),
        generated: (0..300).collect(),
        logprobs: logprobs(),
        choices: vec![0, 3],
        generated_by: None,
        text: "drei".into(),
        claim: false,
        released: true,
        at: TimeMs(5),
    }
}

fn result(outcome: Outcome) -> JobResult {
    JobResult {
        job: job(),
        tenant: tenant(),
        epoch: Epoch(1),
        attempt: Attempt(1),
        worker: worker(),
        tag: AssignmentTag(u128::MAX),
        line: line(),
        outcome,
        usage: Usage { prompt_tokens: 3, completion_tokens: 4, engine_us: 5, ..Usage::default() },
        timing: Timing { queued_ms: 1, first_token_ms: 2, total_ms: 3 },
        nondeterministic: true,
        finished_at: TimeMs(1_700_000_000_123),
        traceparent: None,
        rejected: None,
    }
}

fn good() -> JobResult {
    let (ids_digest, digest) = (Generated::digest_of(&[1, 2, 3]), Digest::of(b"x"));
    let (model_digest, numerics) = ("d".into(), "n".into());
    let evidence = Evidence { model_digest, numerics, request: digest, seed: Some(u64::MAX), answer: digest };
    result(Outcome::Text(Generated {
        text: "gut".into(),
        finish: Finish::Stop,
        ids_digest,
        logprobs: logprobs(),
        prompt_logprobs: logprobs(),
        calls: vec![Call { name: "f".into(), arguments: "{}".into() }],
        ids: vec![1, 2],
        prompt_ids: vec![3],
        more: vec![Generated::default()],
        evidence: Some(evidence.into()),
        copy_of: Some(job()),
    }))
}

fn bad() -> JobResult {
    result(Outcome::Failed(Failure { code: FailureCode::PromptTooLong, message: "zu lang".into() }))
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        worker: worker(),
        pod: "p".into(),
        host: "h".into(),
        pod_class: "c".into(),
        price_usd_micro_per_hour: UsdMicro(340_000),
        state: WorkerState::Ready,
        model: "m".into(),
        model_digest: "d".into(),
        numerics: "n".into(),
        context_tokens: 4096,
        slots: 8,
        slots_in_use: 1,
        kv_pages: 64,
        kv_pages_free: 60,
        checkpoint_age_ms: 0,
        threads: 16,
        isa: "avx512".into(),
        calibration: vec![RatePoint { batch: 4, tok_s: 61.5 }],
        prefill_tok_s: 300.0,
        decode_tok_s: 20.79,
        counters: WorkerCounters { jobs_done: 3, ..WorkerCounters::default() },
        leader_seen: LeaderRevision(9),
        version: "0.1.0".into(),
        started_at: TimeMs(1),
        at: TimeMs(2),
        mono: MonoMs(3),
        running: vec![Running { job: job(), epoch: Epoch(1), tag: None, generated: 12, engine_us: 7 }],
        needs_queues: false,
        canary: "c1-5e1f".into(),
        thread_scaling: vec![ThreadPoint { threads: 16, tok_s: 30.5 }],
        abilities: Abilities { tools: false, ..Abilities::ALL },
    }
}

/// Runs the body for a sample of every message, with its type.
macro_rules! every_message {
    ($sample:ident => $body:expr) => {{
        macro_rules! with {
            ($value:expr) => {{
                let $sample = $value;
                $body
            }};
        }
        with!(work());
        with!(Work { input: Input::Object("request-1".into()), deadline: None, ..work() });
        with!(generation());
        let prompts = vec![Prompt::Text("a".into()), Prompt::Tokens(vec![1])];
        with!(Generation { prompt: Prompt::Several(Several { prompts, n: 2 }), ..generation() });
        with!(Generation { prompt: Prompt::Conversation(conversation()), ..generation() });
        with!(FileRef { tenant: tenant(), object: "in".into() });
        with!(checkpoint());
        with!(good());
        with!(bad());
        with!(TokenChunk {
            job: job(),
            epoch: Epoch(1),
            position: 4,
            count: 2,
            text: "x".into(),
            logprobs: logprobs(),
            choice: 1,
            prompt_logprobs: logprobs(),
            model: Some("m".into()),
            calls: vec![CallPiece { call: 1, name: Some("f".into()), arguments: "{".into() }],
            ids: vec![1],
            prompt_ids: vec![2],
        });
        with!(heartbeat());
        for order in [
            Order::Revoke { job: job(), epoch: Epoch(2) },
            Order::Cancel { batch: batch_id() },
            Order::Drain,
            Order::Assigned { shard: 3, interactive: "i".into(), batch: "b".into() },
            Order::Identify,
        ] {
            with!(Control { leader: LeaderRevision(9), order });
        }
        for what in [
            EventKind::BatchChanged { batch: batch_id(), tenant: tenant(), state: BatchState::Completed },
            EventKind::ClockStepped { by_ms: -7 },
            EventKind::WorkerLost { worker: worker(), pod: "p".into(), reason: "r".into() },
            EventKind::Spent(PodSpent {
                pod: "p".into(),
                from: TimeMs(1),
                to: TimeMs(2),
                idle_usd_micro: UsdMicro(1),
                over_budget_usd_micro: UsdMicro(3),
                by_batch: vec![(batch_id(), UsdMicro(2))],
            }),
            EventKind::SpentByPods { pods: Vec::new() },
        ] {
            with!(Event { at: TimeMs(1), leader: LeaderRevision(9), what });
        }
        with!(BatchCreate {
            tenant: tenant(),
            idempotency_key: "k".into(),
            input_object: "in".into(),
            name: None,
            endpoint: Some(Endpoint::Completions),
            options: BatchOptions::default(),
            metadata: Default::default(),
            traceparent: None,
            work: Some(WorkSample {
                lines: 10,
                sample: vec![LineSize {
                    prompt_tokens: 7,
                    max_tokens: Some(9),
                    endpoint: None,
                    wanted: Some(5)
                }],
                models: [("m".to_owned(), 10)].into(),
            }),
        });
        with!(QuoteAsk {
            tenant: tenant(),
            work: WorkSample::default(),
            deadline: Some(TimeMs(4)),
            budget_usd_micro: Some(UsdMicro(5)),
            classes: vec!["rtx4090".into()],
        });
        with!(quote());
        with!(Promise {
            quoted_at: TimeMs(1),
            work_tokens: 10.0,
            work_tokens_sd: 1.0,
            cost_p50_usd_micro: UsdMicro(1),
            cost_p95_usd_micro: UsdMicro(2),
            bill_p50_usd_micro: Some(UsdMicro(1)),
            bill_p95_usd_micro: Some(UsdMicro(2)),
            bill_factor: 1.0,
            finish_p50_ms: TimeMs(3),
            finish_p95_ms: TimeMs(4),
            binds: Some(Binds::FleetLimit),
            models: [("m".to_owned(), 10)].into(),
        });
        with!(CountTokens {
            tenant: tenant(),
            prompts: vec![Prompt::Text("Es war einmal".into())],
            model: Some("m".into()),
        });
        with!(CountAsk { prompts: vec![Prompt::Text("Es war einmal".into())] });
        with!(ScaleDials { pods_max: Some(2), classes: Some(vec!["a".into()]), ..ScaleDials::default() });
        with!(BatchList { tenant: tenant(), after: Some(batch_id()), limit: 20 });
        with!(BatchFind {
            tenant: tenant(),
            states: vec![BatchState::Failed],
            text: Some("tale".into()),
            after: Some("0.5.batch_1".into()),
            limit: 20
        });
        with!(BatchPage {
            batches: vec![view()],
            next: None,
            counts: [(BatchState::Failed, 1)].into(),
            open_lines: 3,
            oldest_open: Some(TimeMs(4))
        });
        with!(BatchRef { tenant: tenant(), id: batch_id() });
        with!(BatchSet {
            tenant: tenant(),
            id: batch_id(),
            budget_usd_micro: Some(UsdMicro(7)),
            deadline: None,
            priority: Some(1)
        });
        with!(ResultsRequest { tenant: tenant(), id: batch_id(), after: 3, limit: 100, wait_ms: 500 });
        with!(ResultsPage { lines: vec![good(), bad()], next: 2, end: true, batch: view() });
        with!(DeadList { tenant: tenant(), batch: Some(batch_id()), after: 7, limit: 10 });
        with!(DeadJob {
            job: job(),
            tenant: tenant(),
            line: work().line,
            attempts: 3,
            hosts: vec!["a".into()],
            reason: "gone".into(),
            at: TimeMs(1),
            log: vec![FailedAttempt {
                at: TimeMs(1),
                worker: None,
                host: Some("a".into()),
                generated: 3,
                reason: "killed".into(),
            }],
        });
        with!(JobCreate {
            tenant: tenant(),
            batch: batch_id(),
            line: line(),
            generation: generation(),
            deadline: TimeMs(4),
            traceparent: None,
            again: false,
            wait_for_model: true,
        });
        with!(PodView {
            heartbeat: heartbeat(),
            live: true,
            rate_tok_s: 20.0,
            usd_micro_per_million_tokens: Some(UsdMicro(4_540_000)),
            tokens: 9,
            cost_usd_micro: UsdMicro(3),
            busy_ratio: 0.5,
            queued_jobs: 2
        });
        with!(PodList { after: Some("w".parse().unwrap()) });
        with!(FleetView {
            pods: Vec::new(),
            next: Some("w".parse().unwrap()),
            classes: vec![ClassView { class: "c".into(), rate_tok_s: 1.5, ..ClassView::default() }],
            models: vec![ModelView {
                model: "m".into(),
                digest: "d".into(),
                numerics: "n".into(),
                context_tokens: 3,
                deterministic: true,
                since: TimeMs(4),
                workers: 5,
            }],
            tokens: 6,
            lost: vec![LostPod {
                pod: "p".into(),
                class: "c".into(),
                host: "h".into(),
                model: "m".into(),
                price_usd_micro_per_hour: UsdMicro(5),
                at: TimeMs(6),
                why: "no heartbeat".into(),
                tokens: 7,
                cost_usd_micro: UsdMicro(8),
            }],
            spent: Some(Spent { total_usd_micro: UsdMicro(9), ..Spent::default() }),
        });
        with!(PodRef { pod: "p".into() });
        with!(Reply::<BatchView>::Ok(view()));
        with!(Reply::<BatchView>::Err(Refusal {
            code: RefusalCode::Busy,
            message: "later".into(),
            retry_after_ms: Some(1)
        }));
    }};
}

fn reads_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(sample: &T) {
    assert_eq!(&decode::<T>(&encode(sample)).unwrap(), sample);
}

#[test]
fn every_message_reads_back_as_it_was_written() {
    every_message!(sample => reads_back(&sample));
}

/// A MessagePack map with one more field in front, as a newer version might send.
fn with_an_unknown_field(encoded: &[u8]) -> Option<Vec<u8>> {
    let (count, body) = match encoded {
        [first @ 0x80..=0x8f, body @ ..] => (u16::from(first & 0x0f), body),
        [0xde, high, low, body @ ..] => (u16::from_be_bytes([*high, *low]), body),
        _ => return None,
    };
    let mut more = vec![0xde];
    more.extend((count + 1).to_be_bytes());
    // "from_2031": [nil, {"a": 1.5}]
    more.extend(b"\xa9from_2031\x92\xc0\x81\xa1a\xcb\x3f\xf8\0\0\0\0\0\0");
    more.extend(body);
    Some(more)
}

fn skips_the_unknown<T: Serialize + DeserializeOwned + PartialEq + Debug>(sample: &T) -> bool {
    let Some(newer) = with_an_unknown_field(&encode(sample)) else { return false };
    match decode::<T>(&newer) {
        Ok(read) => assert_eq!(&read, sample),
        // An answer is either this or that, and has no fields of its own.
        Err(reason) => assert!(std::any::type_name::<T>().contains("Result<"), "{reason}"),
    }
    true
}

#[test]
fn a_reader_skips_fields_of_a_newer_version() {
    let mut tried = 0;
    every_message!(sample => tried += usize::from(skips_the_unknown(&sample)));
    assert!(tried > 20, "only {tried} messages are maps");
}

/// What a release wrote, one message a line: its type and its bytes in hexadecimal.
const FIRST_VERSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire-0.1.0.txt");

fn type_of<T>(_: &T) -> String {
    std::any::type_name::<T>().split('<').next().unwrap_or_default().rsplit("::").next().unwrap().to_owned()
}

fn still_reads<T: Serialize + DeserializeOwned>(sample: &T, pinned: &mut BTreeMap<String, Vec<Vec<u8>>>) {
    let Some(messages) = pinned.remove(&type_of(sample)) else { return };
    for (number, bytes) in messages.iter().enumerate() {
        if let Err(reason) = decode::<T>(bytes) {
            panic!(
                "message {number} of type {} was written by 0.1.0 and is not read: {reason}",
                type_of(sample)
            );
        }
    }
}

#[test]
fn messages_of_the_first_version_are_still_read() {
    let mut pinned: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for line in std::fs::read_to_string(FIRST_VERSION).unwrap().lines() {
        let (name, hex) = line.split_once(' ').unwrap();
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        pinned.entry(name.to_owned()).or_default().push(bytes.collect());
    }
    assert!(pinned.len() >= 15, "only {} types are pinned", pinned.len());
    every_message!(sample => still_reads(&sample, &mut pinned));
    assert!(pinned.is_empty(), "types that nobody reads any more: {:?}", pinned.keys());
}

/// Run by hand at a release, with the new version in the name: an old file is never written again.
#[test]
#[ignore = "writes the messages of this version"]
fn write_the_messages_of_this_version() {
    let mut text = String::new();
    every_message!(sample => {
        let hex: String = encode(&sample).iter().map(|byte| format!("{byte:02x}")).collect();
        // An answer's type does not tell what it answers with; its parts are pinned by themselves.
        if type_of(&sample) != "Result" {
            text.push_str(&format!("{} {hex}\n", type_of(&sample)));
        }
    });
    let path = format!("{}/tests/wire-{}.txt", env!("CARGO_MANIFEST_DIR"), env!("CARGO_PKG_VERSION"));
    assert!(!std::path::Path::new(&path).exists(), "{path} is there already");
    std::fs::write(path, text).unwrap();
}

/// xorshift64*: enough to break bytes with.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

fn broken(encoded: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = encoded.to_vec();
    for _ in 0..=chance.below(3) {
        let at = chance.below(bytes.len());
        match chance.below(6) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
            2 if !bytes.is_empty() => bytes[at] = chance.below(256) as u8,
            // Markers of arrays, maps, texts and bytes of four billion entries.
            3 => drop(
                bytes.splice(at..at, [[0xdd, 0xdf, 0xdb, 0xc6][chance.below(4)], 0xff, 0xff, 0xff, 0xff]),
            ),
            4 => {
                let part = bytes[at..].to_vec();
                bytes.splice(at..at, part);
            }
            _ => drop(bytes.splice(at..at, std::iter::repeat_n(0x91, chance.below(400)))),
        }
    }
    bytes
}

fn survives<T: Serialize + DeserializeOwned>(sample: &T, chance: &mut Chance) {
    let encoded = encode(sample);
    for _ in 0..3_000 {
        let bytes = broken(&encoded, chance);
        if let Err(reason) = decode::<T>(&bytes) {
            assert_eq!(reason.bytes, bytes.len());
            assert!(!reason.to_string().is_empty());
        }
    }
}

#[test]
fn broken_bytes_are_an_error_and_never_a_panic() {
    let mut chance = Chance(0x5eed);
    every_message!(sample => survives(&sample, &mut chance));
}

#[test]
fn a_message_in_anothers_place_is_refused_by_name() {
    let reason = decode::<Work>(&encode(&heartbeat())).unwrap_err();
    assert_eq!(reason.expected, "Work");
    assert!(decode::<Heartbeat>(b"").is_err() && decode::<Checkpoint>(&[0xc0]).is_err());
}
