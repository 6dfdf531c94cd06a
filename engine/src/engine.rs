//! The engine that callers drive: submit, step, cancel. One caller thread; the pool does the work.
//!
//! Here: loading, what a step is made of, and what comes of it. Which sequence takes part with how many tokens is
//! `schedule`'s affair, the computation `forward`'s.

use crate::cpu::Cpu;
use crate::forward::{Column, HeadColumn, Plan, Segment};
use crate::gguf::Hyper;
use crate::gguf::architecture::Rounding;
use crate::gpu::{self, Gpu};
use crate::head::{Bits, Drawn, HeadCounters, HeadWork, Screen};
use crate::kernel::{Kernels, PAGE};
use crate::kv::{self, Pages, Storage};
use crate::machine::Machine;
use crate::model::Model;
use crate::ops::Work;
use crate::options::{Head, KernelChoice, Kv, Options, Speculation};
use crate::pool::Pool;
use crate::profile::Profile;
use crate::request::{Event, Request, SequenceId, SpeculationCounters, StepStats};
use crate::schedule::{Schedule, Turn};
use crate::{Isa, LoadError, Refused, choose, host, options};
use std::path::Path;
use std::time::Instant;

/// Names the arithmetic of everything that decides a token. Change it whenever a bit of any result changes. The screened
/// head and the full one draw the same tokens.
fn numerics(head: Head, rounding: Rounding, kv: Kv) -> &'static str {
    macro_rules! id {
        ($($part:literal)*) => { concat!("ternfleet-3", $("/", $part),*) };
    }
    macro_rules! of_kv {
        ($kv:literal) => {
            match (rounding, head) {
                (Rounding::Token, Head::Screened | Head::Full) => id!($kv),
                (Rounding::Token, Head::Q8) => id!($kv "q8head"),
                (Rounding::Token, Head::Q6) => id!($kv "q6head"),
                (Rounding::Groups, Head::Screened | Head::Full) => id!($kv "int8x128"),
                (Rounding::Groups, Head::Q8) => id!($kv "int8x128" "q8head"),
                (Rounding::Groups, Head::Q6) => id!($kv "int8x128" "q6head"),
            }
        };
    }
    match kv {
        Kv::F16 => of_kv!("f16kv"),
        Kv::Int8 => of_kv!("int8kv"),
    }
}

/// What was loaded, and how it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    pub hyper: Hyper,
    pub threads: usize,
    pub isa: Isa,
    /// The kernel that runs: `i2s`, `tl2`, or `grouped` for models with a scale for each group of inputs.
    pub kernel: &'static str,
    pub head: Head,
    /// `cpu`, or the GPU by its name.
    pub device: String,
    /// Seconds from the start of loading to the first step being possible.
    pub load_s: f64,
    /// Anonymous memory of the packed weights and the screening head.
    pub weights_bytes: u64,
    /// Bytes read for one token of a single stream, attention not counted.
    pub bytes_per_token: u64,
    /// Multiply-adds of one token, attention not counted.
    pub macs_per_token: u64,
    /// Memory that keys and values may take in all.
    pub kv_bytes: u64,
    pub kv_pages: usize,
    /// Positions in a page.
    pub page_tokens: usize,
    /// Positions that a sequence may have.
    pub max_context: usize,
    pub max_sequences: usize,
    /// Names the arithmetic: two engines with the same id compute the same bits from the same file.
    pub numerics: &'static str,
    /// What a person should know, such as a thread that could not be pinned.
    pub warnings: Vec<String>,
}

/// One loaded model with its threads, caches and running sequences.
#[derive(Debug)]
pub struct Engine {
    info: Info,
    machine: Machine,
    pages: Pages,
    schedule: Schedule,
}

impl Engine {
    /// Loads the model at `path`.
    pub fn load(path: &Path, options: &Options) -> Result<Engine, LoadError> {
        let start = Instant::now();
        check(options)?;
        let isa = match options.isa {
            Some(isa) => isa.checked()?,
            None => Isa::detect()?,
        };
        let kernels = Kernels::new(isa).expect("because the instruction set was checked");
        let topology = host::Topology::read();
        let threads = options.threads.unwrap_or_else(|| topology.default_threads());
        let mut pool = Pool::new(threads, &topology.pins()).map_err(LoadError::Thread)?;
        let device = gpu::open(options.device)?;
        let kernel = if device.is_some() { KernelChoice::I2s } else { options.kernel };
        let n_tokens = options.max_sequences;
        let choose = |hyper: &Hyper, pool: &mut Pool| {
            if !kernel.runs(hyper) {
                let reason = "tl2 does not support group scales, which this architecture needs; use auto";
                return Err(LoadError::Option { name: "kernel", reason: reason.to_owned() });
            }
            Ok(choose::layout(kernel, hyper, n_tokens, &topology.cpu_model, kernels, pool))
        };
        let model = Model::load(path, options.max_context, choose, &mut pool, options.huge_pages)?;
        let kernels = kernels.with_layout(model.layout);
        let hyper = model.hyper.clone();
        if device.is_some()
            && let Some(reason) = gpu::refusal(&model, options)
        {
            return Err(LoadError::Option { name: "device", reason });
        }
        let max_context = options.max_context.unwrap_or(hyper.context).min(hyper.context);
        let n_guesses = options.speculation.draft_tokens * options.speculation.sequences;
        let n_columns = (options.prefill_chunk + options.max_sequences + n_guesses).max(LOGITS_CHUNK);
        // Guesses are made only while few sequences run, so that those fit as well.
        let n_heads = (options.max_sequences + LOOKED_AT).max(LOGITS_CHUNK);
        let spare_bytes = match &device {
            None => topology.usable_memory_bytes() / 4,
            Some(device) => gpu::spare_bytes(&**device, &model, n_columns, n_heads)?,
        };
        let kv_pages = kv_pages(options, &hyper, max_context, spare_bytes)?;
        let kv_bytes = kv_pages as u64 * kv::page_bytes(&hyper, options.kv);
        let refused = |source| LoadError::Memory { what: "keys and values", bytes: kv_bytes, source };
        // A GPU keeps keys and values itself.
        let host_pages = if device.is_some() { 0 } else { kv_pages };
        let storage = Storage::new(&hyper, options.kv, host_pages, options.huge_pages).map_err(refused)?;
        let ternary_head = model.head_matrix.is_some();
        if ternary_head && matches!(options.head, Head::Q8 | Head::Q6) {
            let reason = "the output matrix of this model is ternary, and a copy would be larger; use full";
            return Err(LoadError::Option { name: "head", reason: reason.to_owned() });
        }
        let bits = match options.head {
            _ if ternary_head => None,
            // The full head, which is also a GPU's, needs the copy for nuclei and for sums of log-probabilities.
            Head::Full | Head::Screened | Head::Q8 => Some(Bits::Eight),
            Head::Q6 => Some(Bits::Six),
        };
        let screen = match bits {
            None => None,
            Some(bits) => Some(Screen::build(&model, bits, kernels, &mut pool, options.huge_pages)?),
        };
        let head_kind = if device.is_some() { Head::Full } else { options.head };
        let head = HeadWork::new(&model, head_kind, device.is_some(), screen, n_heads, threads)?;
        let head_bytes = match head_kind {
            // It is one of the packed matrices.
            _ if ternary_head => 0,
            Head::Full => model.head().bytes() as u64,
            Head::Screened | Head::Q8 | Head::Q6 => head.screen_bytes(),
        };
        let anonymous_bytes = model.ternary_bytes as u64 + head.screen_bytes();
        let work = Work::new(&model, n_columns, n_heads, threads, head)?;
        model.release_rows();
        let ternary_macs = hyper.n_ternary_weights();
        let head_macs = (hyper.vocab * hyper.hidden) as u64;
        let schedule = Schedule::new(
            options.max_sequences,
            options.prefill_chunk,
            n_heads - options.max_sequences,
            max_context,
            hyper.vocab,
            options.speculation,
            options.prefix_cache,
            threads,
        );
        let info = Info {
            threads,
            isa,
            kernel: model.layout.name(),
            head: head_kind,
            device: device.as_ref().map_or_else(|| options::Device::Cpu.to_string(), |device| device.name()),
            load_s: start.elapsed().as_secs_f64(),
            weights_bytes: anonymous_bytes,
            bytes_per_token: model.ternary_bytes as u64 + head_bytes,
            macs_per_token: ternary_macs + head_macs,
            kv_bytes,
            kv_pages,
            page_tokens: PAGE,
            max_context,
            max_sequences: options.max_sequences,
            numerics: numerics(options.head, hyper.graph.rounding, options.kv),
            warnings: pool.warnings().to_vec(),
            hyper,
        };
        tracing::info!(isa = %info.isa, threads, kv_pages, kv_bytes, load_s = info.load_s, "model loaded");
        let cpu = Cpu { pool, kernels, model, storage, work };
        let machine = match device {
            None => Machine::Cpu(Box::new(cpu)),
            Some(device) => {
                let gpu = Gpu::new(device, cpu, n_columns, n_heads, options.max_sequences, kv_pages)?;
                Machine::Gpu(Box::new(gpu))
            }
        };
        Ok(Engine { info, machine, pages: Pages::new(kv_pages), schedule })
    }

    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Queues a sequence; it joins the running batch as soon as its pages fit.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, Refused> {
        self.schedule.submit(request, self.pages.n_pages())
    }

    /// Ends a sequence; its `Finished` event comes with the next step. False if it is not known or already finished.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.schedule.cancel(id)
    }

    /// Computes one forward step over all active sequences and appends what happened; does nothing when idle.
    pub fn step(&mut self, events: &mut Vec<Event>) -> StepStats {
        let start = Instant::now();
        self.schedule.drop_cancelled(&mut self.pages, events);
        self.schedule.admit(&mut self.pages);
        for (from, to) in self.schedule.take_copies() {
            self.machine.copy_page(from, to);
            self.pages.release(from);
        }
        let mut decode_tokens = self.schedule.follow_constraints(&mut self.pages, events);
        let mut turns = self.schedule.turns();
        if turns.is_empty() && self.schedule.await_constraint() {
            decode_tokens += self.schedule.follow_constraints(&mut self.pages, events);
            turns = self.schedule.turns();
        }
        if turns.is_empty() {
            return StepStats { decode_tokens, elapsed: start.elapsed(), ..StepStats::default() };
        }
        let plan = plan(&self.schedule, &turns);
        let began = Instant::now();
        let mut drawn = self.machine.step(&plan).into_iter();
        drop(plan);
        self.schedule.took(&turns, began.elapsed().as_secs_f64());
        let prefilling = turns.iter().filter(|turn| !turn.decodes);
        let prefill_tokens = prefilling.map(|turn| turn.positions.len()).sum();
        let before = self.schedule.speculation_counters();
        for turn in &turns {
            let looked: Vec<Option<Drawn>> = drawn.by_ref().take(turn.looks.len()).collect();
            self.schedule.looked(turn, looked.into_iter());
            let drawn: Vec<Option<Drawn>> = drawn.by_ref().take(turn.draws()).collect();
            decode_tokens += self.schedule.advance(turn, drawn.into_iter(), &mut self.pages, events);
        }
        self.schedule.drop_finished(&mut self.pages, events);
        let after = self.schedule.speculation_counters();
        StepStats {
            prefill_tokens,
            decode_tokens,
            sequences: turns.len(),
            speculation: SpeculationCounters {
                drafted: after.drafted - before.drafted,
                accepted: after.accepted - before.accepted,
            },
            elapsed: start.elapsed(),
        }
    }

    /// What speculation did so far.
    pub fn speculation_counters(&self) -> SpeculationCounters {
        self.schedule.speculation_counters()
    }

    /// What the output head did so far.
    pub fn head_counters(&self) -> HeadCounters {
        self.machine.head_counters()
    }

    /// Where the time of all steps so far went.
    pub fn profile(&self) -> Profile {
        self.machine.profile()
    }

    /// The pool and its kernels, for measuring what they could do at best.
    pub(crate) fn machine(&mut self) -> (&mut Pool, Kernels) {
        let cpu = self.machine.cpu_mut();
        (&mut cpu.pool, cpu.kernels)
    }

    /// Nothing is active and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.schedule.is_idle()
    }

    /// Pages that new sequences could have.
    pub fn free_pages(&self) -> usize {
        self.schedule.n_available(&self.pages)
    }

    /// Sequences that hold pages.
    pub fn active(&self) -> usize {
        self.schedule.active()
    }

    /// Sequences that wait for pages or for a place.
    pub fn waiting(&self) -> usize {
        self.schedule.waiting()
    }

    /// Scores of the next token after each of `ids`, (n_ids, vocab): by the full head, or by the copy that a declared
    /// approximation such as [`Head::Q8`] draws from.
    ///
    /// Needs free pages for `ids`; running sequences continue afterwards as if nothing had been.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, Refused> {
        self.schedule.check_ids(ids)?;
        let needed = ids.len().div_ceil(PAGE);
        if !self.schedule.make_room(needed, &mut self.pages) {
            return Err(Refused::Busy { needed, free: self.pages.n_free() });
        }
        let pages: Vec<_> = (0..needed).filter_map(|_| self.pages.take()).collect();
        let mut logits = Vec::with_capacity(ids.len() * self.info.hyper.vocab);
        let mut position = 0;
        for chunk in ids.chunks(LOGITS_CHUNK) {
            let columns = chunk.iter().enumerate().map(|(i, &token)| Column {
                token,
                position: position + i,
                segment: 0,
            });
            let plan = Plan {
                columns: columns.collect(),
                segments: vec![Segment { columns: 0..chunk.len(), pages: pages.clone() }],
                heads: (0..chunk.len())
                    .map(|column| HeadColumn { column, draw: None, allowed: None })
                    .collect(),
            };
            self.machine.step(&plan);
            for head in 0..chunk.len() {
                logits.extend_from_slice(self.machine.scores(head));
            }
            position += chunk.len();
        }
        for page in pages {
            self.pages.release(page);
        }
        Ok(logits)
    }
}

/// Positions that [`Engine::logits`] computes at a time.
const LOGITS_CHUNK: usize = 64;

/// Known tokens that a step can score or draw again, whatever else it draws.
const LOOKED_AT: usize = 16;

/// Lays the turns out as columns.
fn plan<'a>(schedule: &'a Schedule, turns: &[Turn]) -> Plan<'a> {
    let mut plan = Plan::default();
    for (segment, turn) in turns.iter().enumerate() {
        let sequence = schedule.sequence(turn);
        let first = plan.columns.len();
        for position in turn.positions.clone() {
            plan.columns.push(Column { token: sequence.tokens[position], position, segment });
        }
        for (i, &token) in turn.draft.iter().enumerate() {
            plan.columns.push(Column { token, position: turn.positions.end + i, segment });
        }
        plan.segments.push(Segment { columns: first..plan.columns.len(), pages: sequence.pages.clone() });
        for position in turn.looks.clone() {
            let column = first + position - turn.positions.start;
            let (draw, allowed) = sequence.look(position + 1);
            plan.heads.push(HeadColumn { column, draw: Some(draw), allowed });
        }
        let n_draws = turn.draws();
        for i in 0..n_draws {
            let draw = Some(sequence.draw(&turn.draft[..i]));
            let allowed = sequence.allowed();
            plan.heads.push(HeadColumn { column: plan.columns.len() - n_draws + i, draw, allowed });
        }
    }
    plan
}

fn check(options: &Options) -> Result<(), LoadError> {
    let fault = |name, reason: &str| Err(LoadError::Option { name, reason: reason.to_owned() });
    let most = options.device.max_sequences();
    if !(1..=most).contains(&options.max_sequences) {
        return fault("max_sequences", &format!("use 1 to {most} on the device {}", options.device));
    }
    if options.threads.is_some_and(|threads| !(1..=1024).contains(&threads)) {
        return fault("threads", "use 1 to 1024");
    }
    if !(1..=4096).contains(&options.prefill_chunk) {
        return fault("prefill_chunk", "use 1 to 4096");
    }
    if options.speculation.draft_tokens > Speculation::MAX_DRAFT_TOKENS {
        return fault("speculation", "use at most 15 draft tokens");
    }
    if !(1..=Speculation::MAX_SEQUENCES).contains(&options.speculation.sequences) {
        return fault("speculation", "use 1 to 4 sequences");
    }
    if options.max_context == Some(0) {
        return fault("max_context", "use at least 1");
    }
    Ok(())
}

/// Pages for keys and values, within the budget.
fn kv_pages(
    options: &Options,
    hyper: &Hyper,
    max_context: usize,
    spare_bytes: u64,
) -> Result<usize, LoadError> {
    let page_bytes = kv::page_bytes(hyper, options.kv);
    let wanted = options.max_sequences * max_context.div_ceil(PAGE);
    let budget = options.kv_budget_bytes.unwrap_or(spare_bytes.max(page_bytes));
    let pages = usize::try_from(budget / page_bytes).unwrap_or(usize::MAX).min(wanted);
    if pages == 0 {
        let reason = format!(
            "{budget} bytes are less than one page: a page of 128 positions has \
                              {page_bytes}"
        );
        return Err(LoadError::Option { name: "kv_budget_bytes", reason });
    }
    Ok(pages)
}
