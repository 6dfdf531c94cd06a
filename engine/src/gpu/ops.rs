//! The operations of a forward step as launches of kernels.

mod heads;

use super::{Buffers, PRODUCTS, Place, TILE, Weights, rows_of};
use crate::cpu::Cpu;
use crate::forward::{Operations, Plan, Product};
use crate::gguf::Hyper;
use crate::gguf::architecture::Activation;
use crate::gpu::device::{Arg, Device, Fault, Grid, Pointer};
use crate::gpu::upload_words;
use crate::kernel::PAGE;
pub(super) use heads::HeadBuffers;

/// Query heads that a block of `attend` takes together.
const HEADS_A_BLOCK: usize = 4;
/// Tokens up to which the narrow product is used.
const FEW: usize = 8;

/// One step on a device. After the first fault nothing more is launched.
pub(super) struct GpuOps<'a> {
    device: &'a mut dyn Device,
    weights: &'a Weights,
    buffers: &'a Buffers,
    cpu: &'a mut Cpu,
    plan: &'a Plan<'a>,
    words: Words,
    /// Which of both holds x.
    x: usize,
    /// Rows of x, and the column of each.
    n_rows: usize,
    columns: Pointer,
    fault: Option<Fault>,
}

/// Where the parts of a step's words are.
#[derive(Debug, Clone, Copy)]
struct Words {
    tokens: Pointer,
    places: Pointer,
    contexts: Pointer,
    turns: Pointer,
    columns: Pointer,
    head_columns: Pointer,
    tables: Pointer,
    /// For the heads whose scores are wanted, which are known later.
    wanted: Pointer,
}

impl<'a> GpuOps<'a> {
    pub(super) fn new(
        device: &'a mut dyn Device,
        weights: &'a Weights,
        buffers: &'a Buffers,
        cpu: &'a mut Cpu,
        plan: &'a Plan<'a>,
    ) -> GpuOps<'a> {
        assert!(plan.columns.len() <= buffers.n_columns && plan.heads.len() <= buffers.n_heads);
        let (words, all) = lay_out(plan, cpu, buffers);
        let fault = upload_words(device, buffers.plan, all.into_iter()).err();
        let (n_rows, columns) = (plan.columns.len(), words.columns);
        GpuOps { device, weights, buffers, cpu, plan, words, x: 0, n_rows, columns, fault }
    }

    /// What went wrong first is the fault of all.
    pub(super) fn end(self) -> Result<(), Fault> {
        self.fault.map_or(Ok(()), Err)
    }

    fn hyper(&self) -> &Hyper {
        &self.cpu.model.hyper
    }

    fn place(&self, layer: usize, product: Product) -> Place {
        let index = PRODUCTS.iter().position(|&other| other == product);
        self.weights.layers[layer][index.expect("because all products are listed")]
    }

    fn launch(&mut self, kernel: &'static str, blocks: [usize; 3], threads: u32, args: &[Arg]) {
        if self.fault.is_none() {
            let blocks = blocks.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            self.fault = self.device.launch(kernel, Grid { blocks, threads }, args).err();
        }
    }

    fn rows_of_x(&self) -> Pointer {
        self.buffers.x[self.x]
    }

    fn keep_rows(&mut self, from: Pointer, to: Pointer, columns: Pointer, n_rows: usize) {
        let width = self.hyper().hidden;
        self.launch(
            "keep_rows",
            [n_rows, 1, 1],
            256,
            &[from.into(), to.into(), columns.into(), width.into()],
        );
    }

    fn store(&mut self, layer: usize) {
        let hyper = self.hyper();
        let (n_heads, n_kv_heads) = (hyper.n_heads, hyper.n_kv_heads);
        let sizes = [n_heads, n_kv_heads, hyper.head_dim, hyper.n_layers, layer].map(Arg::from);
        let (words, buffers) = (self.words, self.buffers);
        let arrays = [buffers.qkv, words.turns, words.places, buffers.pages].map(Arg::from);
        let blocks = [self.plan.columns.len(), n_heads + 2 * n_kv_heads, 1];
        self.launch("rotate_store", blocks, 128, &[&arrays[..], &sizes].concat());
    }

    fn attend(&mut self, layer: usize) {
        let hyper = self.hyper();
        let sizes = [hyper.n_heads, hyper.n_kv_heads, hyper.head_dim, hyper.n_layers, layer].map(Arg::from);
        let scale = 1.0 / (hyper.head_dim as f32).sqrt();
        let group = hyper.n_heads / hyper.n_kv_heads;
        let blocks = [self.n_rows, hyper.n_kv_heads, group.div_ceil(HEADS_A_BLOCK)];
        let (words, buffers) = (self.words, self.buffers);
        let arrays =
            [buffers.qkv, buffers.pages, self.columns, words.contexts, words.tables, buffers.attended];
        self.launch("attend", blocks, 128, &[&arrays.map(Arg::from)[..], &sizes, &[scale.into()]].concat());
    }
}

fn download_words(device: &mut dyn Device, from: Pointer, n: usize) -> Result<Vec<u32>, Fault> {
    let mut bytes = vec![0; 4 * n];
    if n > 0 {
        device.download(from, &mut bytes)?;
    }
    Ok(bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect())
}

/// The words of a step, and where their parts are.
fn lay_out(plan: &Plan<'_>, cpu: &Cpu, buffers: &Buffers) -> (Words, Vec<u32>) {
    let mut all: Vec<u32> = Vec::new();
    let mut part = |words: &mut dyn Iterator<Item = u32>| {
        let start = buffers.plan.plus(4 * all.len());
        all.extend(words);
        start
    };
    let tokens = part(&mut plan.columns.iter().map(|column| column.token));
    let page = |segment: usize, position: usize| plan.segments[segment].pages[position / PAGE].0;
    let places = part(
        &mut plan
            .columns
            .iter()
            .flat_map(|column| [page(column.segment, column.position), (column.position % PAGE) as u32]),
    );
    let starts: Vec<usize> = plan
        .segments
        .iter()
        .scan(0, |next, segment| {
            *next += segment.pages.len();
            Some(*next - segment.pages.len())
        })
        .collect();
    let contexts = part(
        &mut plan
            .columns
            .iter()
            .flat_map(|column| [column.position as u32 + 1, starts[column.segment] as u32]),
    );
    let turns = part(&mut plan.columns.iter().flat_map(|column| {
        let (cosines, sines) = cpu.model.rotary.at(column.position);
        cosines.iter().chain(sines).map(|value| value.to_bits())
    }));
    let columns = part(&mut (0..plan.columns.len() as u32));
    let head_columns = part(&mut plan.heads.iter().map(|head| head.column as u32));
    let tables = part(&mut plan.segments.iter().flat_map(|segment| &segment.pages).map(|page| page.0));
    let wanted = part(&mut std::iter::empty());
    assert!(all.len() + plan.heads.len() <= buffers.plan_words);
    assert!(
        plan.segments
            .iter()
            .flat_map(|segment| &segment.pages)
            .all(|page| (page.0 as usize) < buffers.n_pages)
    );
    (Words { tokens, places, contexts, turns, columns, head_columns, tables, wanted }, all)
}

impl Operations for GpuOps<'_> {
    fn n_layers(&self) -> usize {
        self.weights.layers.len()
    }

    fn embed(&mut self) {
        let hidden = self.hyper().hidden;
        let arrays = [self.rows_of_x(), self.weights.embedding, self.words.tokens].map(Arg::from);
        self.launch("embed", [self.n_rows, 1, 1], 256, &[&arrays[..], &[hidden.into()]].concat());
    }

    fn round(&mut self, layer: usize, product: Product) {
        let (place, eps) = (self.place(layer, product), self.hyper().rms_eps);
        let from = match product {
            Product::Qkv | Product::GateUp => self.rows_of_x(),
            Product::Output => self.buffers.attended,
            Product::Down => self.buffers.gated,
        };
        let (acts, quantised) = (self.buffers.acts, self.buffers.quantised);
        let args =
            [from.into(), place.norm.into(), eps.into(), place.width.into(), acts.into(), quantised.into()];
        self.launch("round_rows", [self.n_rows, 1, 1], 256, &args);
    }

    fn product(&mut self, layer: usize, product: Product) {
        let place = self.place(layer, product);
        let is_gate = product == Product::GateUp;
        let silu = self.hyper().graph.activation == Activation::Silu;
        let (out, stride, mode) = match product {
            Product::Qkv => (self.buffers.qkv, rows_of(place.n_groups), 0),
            Product::Output | Product::Down => (self.rows_of_x(), rows_of(place.n_groups), 1),
            Product::GateUp => (self.buffers.gated, rows_of(place.n_groups / 2), usize::from(silu)),
        };
        let (kernel, tile) = match (is_gate, self.n_rows <= FEW) {
            (false, true) => ("product_few", FEW),
            (false, false) => ("product_many", TILE),
            (true, true) => ("gate_few", FEW),
            (true, false) => ("gate_many", TILE),
        };
        let units = if is_gate { place.n_groups / 2 } else { place.n_groups };
        let arrays = [place.lines, place.scales, self.buffers.acts, self.buffers.quantised, out];
        let sizes = [place.width, self.n_rows, stride, mode].map(Arg::from);
        let blocks = [units, self.n_rows.div_ceil(tile), 1];
        self.launch(kernel, blocks, 256, &[&arrays.map(Arg::from)[..], &sizes].concat());
    }

    fn attention(&mut self, layer: usize) {
        self.store(layer);
        self.attend(layer);
    }

    fn attention_of_heads(&mut self, layer: usize) -> bool {
        self.store(layer);
        self.n_rows = self.plan.heads.len();
        if self.n_rows == 0 {
            return false;
        }
        let (from, to) = (self.buffers.x[self.x], self.buffers.x[1 - self.x]);
        self.columns = self.words.head_columns;
        self.keep_rows(from, to, self.columns, self.n_rows);
        self.x = 1 - self.x;
        self.attend(layer);
        true
    }

    fn heads(&mut self) {
        if self.fault.is_none() {
            self.fault = self.fetch_heads().err();
        }
    }
}
