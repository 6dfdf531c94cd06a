//! What a worker is told at its start. Layering of file, environment and flags is the command line's business.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ternfleet_cloud::EndMyself;
use ternfleet_engine::{Device, Head, KernelChoice, Kv, Speculation};
use ternfleet_proto::{UsdMicro, WorkerId};

/// Options of one worker process. Every field has a default; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The GGUF file; its manifest is next to it.
    pub model: PathBuf,
    /// Threads of the engine; none takes the usable cores, at most 16.
    pub threads: Option<usize>,
    /// Jobs that generate at once; none takes 8, or with `engine = "openai"` as many as the server is measured to gain from.
    pub slots: Option<usize>,
    /// `1`, or `auto`: one engine process for each socket or large cache group ([`crate::engines`]).
    pub engines: String,
    /// Memory for keys and values; none lets the engine decide.
    pub kv_budget_bytes: Option<u64>,
    /// How keys and values are kept: `f16`, or `int8`, an approximation in half the memory, under another numerics id.
    pub kv: String,
    /// What computes: `cpu`, or `cuda` for an NVIDIA card, which is experimental: no card has run it yet. Answers do not change.
    pub device: String,
    /// Positions a job may have; none takes the model's context.
    pub max_context: Option<usize>,
    /// Keep the pages of prompts that begin alike.
    pub prefix_cache: bool,
    /// `screened` and `full` give the same tokens; `q8` and `q6` are approximations that read less memory, under another
    /// numerics id: no batch mixes them with exact answers.
    pub head: String,
    /// The ternary kernel: `auto` measures once a machine and remembers, `i2s` and `tl2` are what they say. Answers do not
    /// change.
    pub kernel: String,
    /// Tokens guessed ahead of a job when at most two run, and checked in one step; 0 guesses none. Answers do not change.
    pub speculate_tokens: usize,
    /// What an hour of this pod costs, in US dollars. Passed on unread.
    pub price_usd_per_hour: f64,
    /// The pod's class, as the fleet's owner names it. Passed on unread.
    pub pod_class: String,
    /// Id of this worker; made up unless given. A worker with credentials has the id that they were made out to.
    pub worker: Option<WorkerId>,
    /// Name of the pod; engines of one pod share it. Empty takes the host's name.
    pub pod: String,
    /// A checkpoint goes out after so many tokens of a job …
    pub checkpoint_tokens: usize,
    /// … or after this time, whichever comes first.
    pub checkpoint_ms: u64,
    pub heartbeat_ms: u64,
    /// From the first signal to the exit, at most.
    pub drain_ms: u64,
    /// How long calibration may take at the start; 0 leaves it out.
    pub calibrate_ms: u64,
    /// End the pod when nothing was heard of a coordinator for so long, 0 never: an orphan costs money.
    pub dead_man_ms: u64,
    /// From the start of the process until it works, at most; beyond that the pod ends itself. 0 never, unless
    /// `end_myself` is `runpod`: then 15 minutes.
    pub start_limit_ms: u64,
    /// How the dead-man timer ends the pod: `exit` leaves the process, `runpod` terminates the rented pod.
    pub end_myself: EndMyself,
    /// Another address than RunPod's own, to end the pod at.
    pub runpod_base: Option<String>,
    /// Serve `/metrics`, `/healthz` and `/readyz` here.
    pub http: Option<SocketAddr>,
    /// `model`: our own engine runs it. `openai`: the server at `upstream` computes. For measurements of everything but the engine `instant`, which answers at once with made-up
    /// letters, or `instant:N`, which takes N milliseconds a step. No model file is read then.
    pub engine: String,
    /// With `engine = "openai"`: the address of a server with OpenAI's API, such as `http://127.0.0.1:8000/v1`.
    pub upstream: String,
    /// Holds the key that the server wants.
    pub upstream_key_file: Option<PathBuf>,
    /// The model to ask the server for; needed where it serves several.
    pub upstream_model: Option<String>,
    /// Starts the server. It is watched, started again when it dies, and ended with the worker.
    pub upstream_command: Option<String>,
    /// How long the server may take until it answers.
    pub upstream_start_s: u64,
    /// A server that sends nothing for so long, although something is asked of it, hangs.
    pub upstream_silence_s: u64,
    /// Number format and device of the server, for the numerics id; none takes what can be found out.
    pub upstream_precision: Option<String>,
    pub upstream_device: Option<String>,
    /// The server is set up to give the same answer to the same request each time, whatever else it computes.
    pub upstream_deterministic: bool,
    /// Digest of the server's model, where the server tells none: with it, workers of several servers have the same model.
    pub model_digest: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            model: PathBuf::new(),
            threads: None,
            slots: None,
            engines: "1".to_owned(),
            kv_budget_bytes: None,
            kv: Kv::F16.to_string(),
            device: Device::Cpu.to_string(),
            max_context: None,
            prefix_cache: true,
            head: Head::Screened.to_string(),
            kernel: KernelChoice::Auto.to_string(),
            speculate_tokens: Speculation::TAIL.draft_tokens,
            price_usd_per_hour: 0.0,
            pod_class: "default".to_owned(),
            worker: None,
            pod: String::new(),
            checkpoint_tokens: 32,
            checkpoint_ms: 2000,
            heartbeat_ms: 1000,
            drain_ms: 3500,
            calibrate_ms: 2000,
            dead_man_ms: 0,
            start_limit_ms: 0,
            end_myself: EndMyself::Exit,
            runpod_base: None,
            http: None,
            engine: "model".to_owned(),
            upstream: String::new(),
            upstream_key_file: None,
            upstream_model: None,
            upstream_command: None,
            upstream_start_s: 900,
            upstream_silence_s: 60,
            upstream_precision: None,
            upstream_device: None,
            upstream_deterministic: false,
            model_digest: None,
        }
    }
}

/// Of an engine of our own, where nothing is said.
const SLOTS: usize = 8;

/// What computes the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    Model,
    /// Made-up letters, one a job and step; a step of no duration yields whole answers.
    Instant {
        step: Duration,
    },
    /// Somebody else's server, by OpenAI's API.
    Openai,
}

/// Options that cannot be used, all of them at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} of the worker's options are invalid:\n  - {}", faults.len(), faults.join("\n  - "))]
pub struct OptionsError {
    pub faults: Vec<String>,
}

impl Options {
    /// Checks every option and names each fault.
    pub fn check(&self) -> Result<EngineKind, OptionsError> {
        let mut faults = Vec::new();
        let mut require = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let device = self.device.parse().unwrap_or(Device::Cpu);
        let most = if self.engine == "model" { device.max_sequences() } else { 4096 };
        let slots = self.slots();
        require((1..=most).contains(&slots), format!("slots is {slots}: use 1 to {most}"));
        if let Err(fault) = self.head.parse::<Head>() {
            require(false, fault.to_string());
        }
        if let Err(fault) = self.kv.parse::<Kv>() {
            require(false, fault.to_string());
        }
        if let Err(fault) = self.device.parse::<Device>() {
            require(false, fault.to_string());
        }
        if let Err(fault) = self.kernel.parse::<KernelChoice>() {
            require(false, fault.to_string());
        }
        let guesses = Speculation::MAX_DRAFT_TOKENS;
        require(
            self.speculate_tokens <= guesses,
            format!("speculate_tokens is {}: use 0 to {guesses}", self.speculate_tokens),
        );
        require(self.threads != Some(0), "threads is 0: use at least 1, or leave it out".to_owned());
        let price = self.price_usd_per_hour;
        require(
            price.is_finite() && (0.0..=10_000.0).contains(&price),
            format!("price_usd_per_hour is {price}: use dollars from 0 to 10000"),
        );
        require(self.checkpoint_tokens > 0, "checkpoint_tokens is 0: use at least 1".to_owned());
        require(
            self.checkpoint_ms >= 50,
            format!("checkpoint_ms is {}: use at least 50", self.checkpoint_ms),
        );
        require(
            (100..=10_000).contains(&self.heartbeat_ms),
            format!("heartbeat_ms is {}: use 100 to 10000", self.heartbeat_ms),
        );
        require(
            self.dead_man_ms == 0 || self.dead_man_ms >= 10_000,
            format!("dead_man_ms is {}: use at least 10000, or 0 for never", self.dead_man_ms),
        );
        let class = &self.pod_class;
        require(
            !class.is_empty() && class.len() <= 64,
            format!("pod_class {class:?}: use 1 to 64 characters"),
        );
        require(self.pod.len() <= 64, format!("pod {:?}: use at most 64 characters", self.pod));
        let engines = self.engines.as_str();
        require(matches!(engines, "1" | "auto"), format!("engines {engines:?}: use 1 or auto"));
        let engine = self.engine_kind();
        require(
            engine.is_some(),
            format!("engine {:?}: use model, openai, instant or instant:MILLISECONDS", self.engine),
        );
        let served = self.upstream.starts_with("http://") || self.upstream.starts_with("https://");
        require(
            engine != Some(EngineKind::Openai) || served,
            format!("upstream {:?}: write the server's address, as http://127.0.0.1:8000/v1", self.upstream),
        );
        require(
            engine == Some(EngineKind::Openai) || self.upstream.is_empty(),
            "upstream is given, but engine is not openai: set engine = \"openai\"".to_owned(),
        );
        require(
            (1..=3600).contains(&self.upstream_silence_s),
            format!("upstream_silence_s is {}: use 1 to 3600", self.upstream_silence_s),
        );
        require(
            engine != Some(EngineKind::Model) || !self.model.as_os_str().is_empty(),
            "model is missing: set it to a GGUF file".to_owned(),
        );
        match engine {
            Some(engine) if faults.is_empty() => Ok(engine),
            _ => Err(OptionsError { faults }),
        }
    }

    fn engine_kind(&self) -> Option<EngineKind> {
        match self.engine.split_once(':') {
            None if self.engine == "model" => Some(EngineKind::Model),
            None if self.engine == "openai" => Some(EngineKind::Openai),
            None if self.engine == "instant" => Some(EngineKind::Instant { step: Duration::ZERO }),
            Some(("instant", step)) => {
                step.parse().ok().map(|ms| EngineKind::Instant { step: Duration::from_millis(ms) })
            }
            _ => None,
        }
    }

    /// Jobs that generate at once, of an engine of our own.
    pub fn slots(&self) -> usize {
        self.slots.unwrap_or(SLOTS)
    }

    /// The price as whole micro-dollars.
    pub fn price(&self) -> UsdMicro {
        UsdMicro::from_dollars(self.price_usd_per_hour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_are_reported_at_once() {
        let options = Options {
            slots: Some(0),
            threads: Some(0),
            price_usd_per_hour: -1.0,
            kv: "int4".to_owned(),
            ..Options::default()
        };
        let faults = options.check().unwrap_err().faults;
        assert_eq!(faults.len(), 5, "{faults:?}");
    }

    #[test]
    fn the_instant_engine_needs_no_model() {
        let options = Options { engine: "instant:5".to_owned(), ..Options::default() };
        assert_eq!(options.check(), Ok(EngineKind::Instant { step: Duration::from_millis(5) }));
    }

    #[test]
    fn a_price_is_whole_micro_dollars() {
        let options = Options { price_usd_per_hour: 0.34, ..Options::default() };
        assert_eq!(options.price(), UsdMicro(340_000));
    }

    #[test]
    fn options_survive_json() {
        let text = serde_json::to_string(&Options::default()).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), Options::default());
    }
}
