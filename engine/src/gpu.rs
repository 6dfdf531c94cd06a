//! A GPU behind the forward pass: the same graph, the same bits, on kernels of its own.
//!
//! [`Gpu`] keeps weights, activations, keys and values in the device's memory and launches a kernel an operation
//! (kernels.cu). The few tokens from which a draw chooses come back to the host, whose threads draw as for every step: the
//! noise itself is the CPU's. A [`device::Device`] is the driver of a card, or the interpreter that tests use.
//!
//! What has run: the interpreter alone. No card has run these kernels yet.

pub(crate) mod device;
#[cfg(any(all(feature = "cuda", not(target_feature = "crt-static")), test))]
mod driver;
pub(crate) mod interpreter;
mod ops;
pub(crate) mod ptx;
mod rates;
mod self_test;
#[cfg(test)]
#[allow(unsafe_code)] // The scalar kernels' products, which these are compared with, write by pointer.
mod tests;

use crate::LoadError;
use crate::cpu::Cpu;
use crate::forward::{self, Plan, Product};
use crate::gguf::Hyper;
use crate::head::Drawn;
use crate::kernel::{Layout, PAGE, ROWS};
use crate::kv::{PageId, page_bytes};
use crate::model::{FloatRows, Model};
use crate::options::{self, Head, Kv, Options};
use device::{Device, Fault, Pointer};
use interpreter::Interpreter;
use ops::{GpuOps, HeadBuffers};
use rates::Effort;
pub use rates::Rates;

/// The kernels, as `make ptx` compiles them from kernels.cu.
pub(crate) const PTX: &str = include_str!("gpu/kernels.ptx");

/// Columns that the widest product computes together: rows of activations are padded to them.
const TILE: usize = 32;
/// Bytes that are brought into the device's order at a time.
const PIECE: usize = 1 << 20;

/// A device with a model on it, and the CPU that draws from its scores.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) cpu: Cpu,
    device: Box<dyn Device>,
    weights: Weights,
    buffers: Buffers,
}

/// Where a matrix of a layer is.
#[derive(Debug, Clone, Copy)]
struct Place {
    lines: Pointer,
    scales: Pointer,
    /// Of its input.
    norm: Pointer,
    width: usize,
    n_groups: usize,
}

/// The model in the device's memory.
#[derive(Debug)]
struct Weights {
    /// (vocab, hidden) in half precision, as the file has them.
    embedding: Pointer,
    head: Pointer,
    /// The lines of the int8 copy of the head, and the scales of its rows.
    copy: [Pointer; 2],
    output_norm: Pointer,
    /// By layer, in the order of [`PRODUCTS`].
    layers: Vec<[Place; 4]>,
}

const PRODUCTS: [Product; 4] = [Product::Qkv, Product::Output, Product::GateUp, Product::Down];

/// Activations, keys and values. Shapes as in `ops::Work`.
#[derive(Debug)]
struct Buffers {
    /// Twice: rows are moved from one to the other.
    x: [Pointer; 2],
    acts: Pointer,
    quantised: Pointer,
    qkv: Pointer,
    attended: Pointer,
    gated: Pointer,
    /// (n_heads, hidden): normed, and those of them whose scores are wanted.
    input: [Pointer; 2],
    heads: HeadBuffers,
    /// All pages, each as `kv` lays it out.
    pages: Pointer,
    /// What a step brings along, as words.
    plan: Pointer,
    plan_words: usize,
    n_columns: usize,
    n_heads: usize,
    n_pages: usize,
}

/// A card that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Its name and the version of CUDA that its driver has.
    pub name: String,
    pub free_bytes: u64,
    pub rates: Rates,
}

/// Opens the first card as a worker does, runs the self-test of all kernels on it, and measures its rates.
///
/// # Errors
/// Where no card can be used, with what to do; a card that computes one bit differently is among them.
pub fn inspect_card() -> Result<Card, String> {
    let inspect = || {
        let mut card = open_card()?;
        self_test::check(&mut *card)?;
        let free_bytes = card.free_bytes()?;
        Ok(Card { name: card.name(), free_bytes, rates: rates::measure(&mut *card, Effort::CARD)? })
    };
    inspect().map_err(|Fault(reason)| reason)
}

/// The device that `options` ask for; none for the CPU.
pub(crate) fn open(device: options::Device) -> Result<Option<Box<dyn Device>>, LoadError> {
    match device {
        options::Device::Cpu => Ok(None),
        options::Device::Cuda => open_card().map(Some).map_err(refused),
        options::Device::Interpreter => Ok(Some(Box::new(Interpreter::new(PTX, false).map_err(refused)?))),
    }
}

#[cfg(all(feature = "cuda", not(target_feature = "crt-static")))]
fn open_card() -> Result<Box<dyn Device>, Fault> {
    Ok(Box::new(driver::Driver::new(driver::Functions::open()?, PTX)?))
}

/// A static program crashes in the first call into a library that it opened, so it opens none.
#[cfg(not(all(feature = "cuda", not(target_feature = "crt-static"))))]
fn open_card() -> Result<Box<dyn Device>, Fault> {
    const NO_CUDA: &str = "this program has no GPU support: use the program ternfleet-gpu, which `make release-gpu` \
                           builds, or its image (docs/gpu.md), or the device cpu";
    Err(Fault(NO_CUDA.to_owned()))
}

/// Why this backend does not compute a model, or not in the way that is asked for; `None` if it does.
pub(crate) fn refusal(model: &Model, options: &Options) -> Option<String> {
    let hyper = &model.hyper;
    let halves = |rows: FloatRows<'_>| rows.halves(0..hyper.vocab).is_some();
    let rules = [
        (model.layout == Layout::I2s, "models with scales for groups of inputs"),
        (model.layers.iter().all(|layer| layer.qk_norms.is_none()), "models with norms over heads"),
        (hyper.head_stride() == hyper.head_dim, "heads whose size is no multiple of 16"),
        (halves(model.embedding()) && halves(model.head()), "an embedding or output matrix other than f16"),
        // Blocks of a grid in its second dimension, of 16 tokens each.
        (hyper.vocab <= 1 << 19, "vocabularies of more than half a million tokens"),
        (options.kv == Kv::F16, "keys and values in int8"),
        (matches!(options.head, Head::Screened | Head::Full), "the approximate heads q8 and q6"),
    ];
    let missing = rules.into_iter().find(|(holds, _)| !holds)?.1;
    Some(format!("the GPU backend does not support {missing}; use the device cpu"))
}

/// Bytes for keys and values: nine tenths of what the rest leaves.
pub(crate) fn spare_bytes(
    device: &dyn Device,
    model: &Model,
    n_columns: usize,
    n_heads: usize,
) -> Result<u64, LoadError> {
    let hyper = &model.hyper;
    let column = 4 * (2 * hyper.hidden + hyper.qkv_rows() + hyper.q_width() + 2 * hyper.ffn);
    let heads = n_heads * 4 * 2 * hyper.hidden + HeadBuffers::bytes(hyper.vocab, hyper.hidden, n_heads);
    let copy = hyper.vocab.next_multiple_of(ROWS) * (hyper.hidden + 4);
    let rows = model.embedding().bytes() + model.head().bytes();
    let fixed = model.ternary_bytes + rows + n_columns.next_multiple_of(TILE) * column + heads + copy;
    let free = device.free_bytes().map_err(refused)?;
    Ok(free.saturating_sub(fixed as u64) / 10 * 9)
}

impl Gpu {
    /// Brings the model of `cpu` to a device, with `n_pages` pages for keys and values.
    pub(crate) fn new(
        mut device: Box<dyn Device>,
        cpu: Cpu,
        n_columns: usize,
        n_heads: usize,
        n_sequences: usize,
        n_pages: usize,
    ) -> Result<Gpu, LoadError> {
        self_test::check(&mut *device).map_err(refused)?;
        let weights = Weights::upload(&mut *device, &cpu).map_err(refused)?;
        let buffers = Buffers::new(&mut *device, &cpu.model, n_columns, n_heads, n_sequences, n_pages);
        Ok(Gpu { cpu, weights, buffers: buffers.map_err(refused)?, device })
    }

    /// Copies a page of keys and values.
    ///
    /// # Panics
    /// As [`Gpu::step`].
    pub(crate) fn copy_page(&mut self, from: PageId, to: PageId) {
        let bytes = page_bytes(&self.cpu.model.hyper, Kv::F16) as usize;
        let [from, to] = [from, to].map(|page| self.buffers.pages.plus(page.0 as usize * bytes));
        trusted(self.device.copy(from, to, bytes));
    }

    /// Runs one step; what was drawn for each head.
    ///
    /// # Panics
    /// Where the device fails: nothing that it holds can be trusted then, and the process must start again.
    pub(crate) fn step(&mut self, plan: &Plan<'_>) -> Vec<Option<Drawn>> {
        let Gpu { cpu, device, weights, buffers } = self;
        let mut ops = GpuOps::new(&mut **device, weights, buffers, cpu, plan);
        forward::pass(&mut ops);
        trusted(ops.end());
        if plan.heads.is_empty() { Vec::new() } else { cpu.draw(plan) }
    }
}

/// Ends the process' work where the device has failed.
fn trusted(result: Result<(), Fault>) {
    if let Err(fault) = result {
        panic!("the GPU failed: {fault}; restart the worker, whose jobs continue elsewhere meanwhile");
    }
}

fn refused(fault: Fault) -> LoadError {
    LoadError::Device(fault.0)
}

/// Uploads words.
fn upload_words(device: &mut dyn Device, to: Pointer, words: impl Iterator<Item = u32>) -> Result<(), Fault> {
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    device.upload(to, &bytes)
}

/// A new buffer with these floats.
fn floats(device: &mut dyn Device, values: &[f32]) -> Result<Pointer, Fault> {
    let to = device.allocate(size_of_val(values))?;
    upload_words(device, to, values.iter().map(|value| value.to_bits()))?;
    Ok(to)
}

/// A new buffer with the rows of a matrix in half precision.
fn upload_rows(device: &mut dyn Device, rows: &FloatRows<'_>, n_rows: usize) -> Result<Pointer, Fault> {
    let values = rows.halves(0..n_rows).ok_or_else(|| Fault("the embedding is not f16".to_owned()))?;
    let to = device.allocate(size_of_val(values))?;
    for (i, piece) in values.chunks(PIECE / 2).enumerate() {
        let bytes: Vec<u8> = piece.iter().flat_map(|half| half.to_le_bytes()).collect();
        device.upload(to.plus(i * PIECE), &bytes)?;
    }
    Ok(to)
}

impl Weights {
    fn upload(device: &mut dyn Device, cpu: &Cpu) -> Result<Weights, Fault> {
        let model = &cpu.model;
        let vocab = model.hyper.vocab;
        let embedding = upload_rows(device, &model.embedding(), vocab)?;
        let head = if model.is_tied() { embedding } else { upload_rows(device, &model.head(), vocab)? };
        let output_norm = floats(device, &model.output_norm)?;
        let (lines, scales) = match cpu.work.head.screen() {
            Some(screen) => screen.parts(),
            None => return Err(Fault("the int8 copy of the output matrix is missing".to_owned())),
        };
        let copy = [device.allocate(lines.len())?, floats(device, scales)?];
        device.upload(copy[0], lines)?;
        let mut layers = Vec::with_capacity(model.layers.len());
        for layer in &model.layers {
            let mut places = Vec::with_capacity(PRODUCTS.len());
            for product in PRODUCTS {
                let matrix = layer.matrix(product);
                let packed = model.groups(matrix, 0..matrix.n_groups);
                let lines = device.allocate(packed.len())?;
                device.upload(lines, packed)?;
                let scales = floats(device, matrix.scales(0..matrix.n_groups))?;
                let norm = match layer.norm(product) {
                    None => Pointer::NULL,
                    Some(norm) => floats(device, norm)?,
                };
                places.push(Place { lines, scales, norm, width: matrix.width, n_groups: matrix.n_groups });
            }
            layers.push(places.try_into().expect("because there are four products"));
        }
        Ok(Weights { embedding, head, copy, output_norm, layers })
    }
}

impl Buffers {
    fn new(
        device: &mut dyn Device,
        model: &Model,
        n_columns: usize,
        n_heads: usize,
        n_sequences: usize,
        n_pages: usize,
    ) -> Result<Buffers, Fault> {
        let hyper = &model.hyper;
        let padded = n_columns.next_multiple_of(TILE);
        let widest = hyper.hidden.max(hyper.ffn).max(hyper.q_width());
        let context_pages = model.rotary.context().div_ceil(PAGE);
        let plan_words = plan_words(hyper, n_columns, n_heads, n_sequences * context_pages);
        let mut float_rows = |rows: usize, width: usize| device.allocate(4 * rows * width);
        Ok(Buffers {
            x: [float_rows(padded, hyper.hidden)?, float_rows(padded, hyper.hidden)?],
            qkv: float_rows(padded, hyper.qkv_rows())?,
            attended: float_rows(padded, hyper.q_width())?,
            gated: float_rows(padded, hyper.ffn)?,
            input: [float_rows(n_heads, hyper.hidden)?, float_rows(n_heads, hyper.hidden)?],
            quantised: float_rows(padded, QUANTISED_WORDS)?,
            plan: float_rows(plan_words, 1)?,
            acts: device.allocate(padded * widest)?,
            heads: HeadBuffers::new(device, hyper.vocab, hyper.hidden, n_heads)?,
            pages: device.allocate(n_pages * page_bytes(hyper, Kv::F16) as usize)?,
            plan_words,
            n_columns,
            n_heads,
            n_pages,
        })
    }
}

/// Words of a row's scale, step and sum.
const QUANTISED_WORDS: usize = 3;

/// Words that a step brings along at most: a token, a place, a context, angles and a row a column, a row a head twice, and pages.
fn plan_words(hyper: &Hyper, n_columns: usize, n_heads: usize, n_pages: usize) -> usize {
    n_columns * (1 + 2 + 2 + hyper.head_dim + 1) + 2 * n_heads + n_pages
}

/// Output rows of some groups.
fn rows_of(n_groups: usize) -> usize {
    n_groups * ROWS
}
