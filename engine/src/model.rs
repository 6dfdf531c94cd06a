//! A model in memory: packed ternary matrices, norms, rotary tables, and the file that still holds the embedding.
//!
//! Weights are packed by the threads that will read them, so that their pages lie where they are used. Read-only
//! afterwards. The computation is in `forward`.
#![allow(unsafe_code)] // The pool's members pack disjoint groups of one region.

use crate::LoadError;
use crate::forward::Product;
use crate::gguf::architecture::RowOrder;
use crate::gguf::ternary::{self, Fault};
use crate::gguf::{self, File, Hyper, Kind, Part};
use crate::kernel::{Layout, MAX_HEAD_DIM, ROWS};
use crate::memory::{Region, release_file_pages};
use crate::pack::{Rows, Scratch, Source, pack_group};
use crate::pool::{Pool, Shared};
use crate::rotary::Rotary;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Several ternary tensors of one width as one matrix of groups of 16 rows.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// Inputs.
    pub(crate) width: usize,
    /// Groups of 16 output rows.
    pub(crate) n_groups: usize,
    /// Each row's scale; empty where scales belong to groups of inputs and are before the lines.
    scales: Shared<f32>,
    /// Bytes of a packed group.
    group_bytes: usize,
    /// Where its groups start.
    offset_bytes: usize,
}

impl Matrix {
    /// Where some groups stand.
    fn place(&self, groups: Range<usize>) -> Range<usize> {
        self.offset_bytes + groups.start * self.group_bytes..self.offset_bytes + groups.end * self.group_bytes
    }

    /// The scales of some groups' rows.
    pub(crate) fn scales(&self, groups: Range<usize>) -> &[f32] {
        if self.scales.len() == 0 {
            return &[];
        }
        // SAFETY: nothing writes after the matrix was packed.
        unsafe { self.scales.read(groups.start * ROWS..groups.end * ROWS) }
    }

    /// The pairs of groups that the `index`-th of `count` members packs, and computes unless another one is sooner ready.
    pub(crate) fn pairs(&self, index: usize, count: usize) -> Range<usize> {
        let n_pairs = self.n_groups.div_ceil(2);
        n_pairs * index / count..n_pairs * (index + 1) / count
    }
}

/// The weights of one block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Box<[f32]>,
    pub(crate) attn_sub_norm: Option<Box<[f32]>>,
    pub(crate) ffn_norm: Box<[f32]>,
    pub(crate) ffn_sub_norm: Option<Box<[f32]>>,
    /// Over each head of queries and of keys.
    pub(crate) qk_norms: Option<[Box<[f32]>; 2]>,
    /// Query, key and value rows, one after the other, each head padded to whole groups.
    pub(crate) qkv: Matrix,
    pub(crate) output: Matrix,
    /// Groups of gate and up in turn.
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
}

impl Layer {
    pub(crate) fn matrix(&self, product: Product) -> &Matrix {
        match product {
            Product::Qkv => &self.qkv,
            Product::Output => &self.output,
            Product::GateUp => &self.gate_up,
            Product::Down => &self.down,
        }
    }

    /// The norm of a product's input.
    pub(crate) fn norm(&self, product: Product) -> Option<&[f32]> {
        match product {
            Product::Qkv => Some(&self.attn_norm),
            Product::Output => self.attn_sub_norm.as_deref(),
            Product::GateUp => Some(&self.ffn_norm),
            Product::Down => self.ffn_sub_norm.as_deref(),
        }
    }
}

/// Everything that a forward pass reads.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) hyper: Hyper,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Box<[f32]>,
    pub(crate) rotary: Rotary,
    pub(crate) ternary_bytes: usize,
    /// How the packed groups are in memory.
    pub(crate) layout: Layout,
    /// The output matrix, if it is multiplied as all ternary ones are.
    pub(crate) head_matrix: Option<Matrix>,
    groups: Region,
    file: File,
    head_name: &'static str,
}

/// One tensor's part in a matrix.
struct Piece<'a> {
    source: Source<'a>,
    /// Its first group; further ones follow at `stride`.
    first_group: usize,
    stride: usize,
}

/// A matrix to be packed.
struct Plan<'a> {
    matrix: Matrix,
    pieces: Vec<Piece<'a>>,
}

impl Model {
    /// Reads, checks and packs the model at `path`.
    pub(crate) fn load(
        path: &Path,
        max_context: Option<usize>,
        choose: impl FnOnce(&Hyper, &mut Pool) -> Result<Layout, LoadError>,
        pool: &mut Pool,
        huge_pages: bool,
    ) -> Result<Model, LoadError> {
        let fault = |error: gguf::Error| LoadError::File { path: path.to_owned(), reason: error.to_string() };
        let file = File::open(path).map_err(fault)?;
        let layout = gguf::check_model(&file).map_err(fault)?;
        let hyper = layout.hyper.clone();
        check_shape(&hyper)?;
        let packing = choose(&hyper, pool)?;
        let mut planner = Planner { packing, offset_bytes: 0, plans: Vec::new() };
        for block in &layout.blocks {
            let source = |part| Source {
                tensor: block.get(part),
                rows: rows_of(&hyper, part),
                factor: block.factor(part),
            };
            planner.add(&[Part::AttnQ, Part::AttnK, Part::AttnV].map(source), false)?;
            planner.add(&[source(Part::AttnOutput)], false)?;
            planner.add(&[Part::FfnGate, Part::FfnUp].map(source), true)?;
            planner.add(&[source(Part::FfnDown)], false)?;
        }
        let ternary_head = packing == Layout::Grouped && layout.head().kind.is_ternary();
        if ternary_head {
            planner.add(&[Source { tensor: layout.head(), rows: Rows::Same, factor: 1.0 }], false)?;
        }
        let Planner { offset_bytes, plans, .. } = planner;
        let groups = Region::new(offset_bytes, huge_pages).map_err(|source| LoadError::Memory {
            what: "ternary weights",
            bytes: offset_bytes as u64,
            source,
        })?;
        pack(&plans, packing, &groups, pool)?;
        let packed = |tensor: &gguf::Tensor<'_>| ternary_head && tensor.name == layout.head().name;
        for tensor in [Some(layout.token_embd), layout.output].into_iter().flatten() {
            if tensor.kind.is_ternary() && !packed(&tensor) {
                check_rows(&tensor, pool)?;
            }
        }
        for piece in plans.iter().flat_map(|plan| &plan.pieces) {
            // SAFETY: `File::open` maps its file, and the tensor's data are a part of the map.
            unsafe { release_file_pages(piece.source.tensor.data) };
        }
        let mut matrices = plans.into_iter().map(|plan| plan.matrix);
        let mut next = || matrices.next().expect("because four matrices were planned for each block");
        let mut layers = Vec::with_capacity(layout.blocks.len());
        for block in &layout.blocks {
            let norm = |part| block.find(part).map(|tensor| floats(&tensor));
            layers.push(Layer {
                attn_norm: floats(&block.get(Part::AttnNorm)),
                attn_sub_norm: norm(Part::AttnSubNorm),
                ffn_norm: floats(&block.get(Part::FfnNorm)),
                ffn_sub_norm: norm(Part::FfnSubNorm),
                qk_norms: norm(Part::AttnQNorm).zip(norm(Part::AttnKNorm)).map(|(q, k)| [q, k]),
                qkv: next(),
                output: next(),
                gate_up: next(),
                down: next(),
            });
        }
        let context = max_context.unwrap_or(hyper.context).min(hyper.context);
        let output_norm = floats(&layout.output_norm);
        let head_name = if layout.output.is_some() { "output.weight" } else { "token_embd.weight" };
        let factors = layout.rope_factors.map(|tensor| floats(&tensor));
        let rotary = Rotary::new(&hyper, factors.as_deref(), context);
        let head_matrix = matrices.next();
        drop(layout);
        Ok(Model {
            rotary,
            hyper,
            layers,
            output_norm,
            ternary_bytes: offset_bytes,
            layout: packing,
            head_matrix,
            groups,
            file,
            head_name,
        })
    }

    /// Some packed groups of a matrix.
    pub(crate) fn groups(&self, matrix: &Matrix, groups: Range<usize>) -> &[u8] {
        // SAFETY: nothing writes into the region after `load`.
        unsafe { self.groups.read(matrix.place(groups)) }
    }

    /// The embedding, (vocab, hidden).
    pub(crate) fn embedding(&self) -> FloatRows<'_> {
        self.rows("token_embd.weight")
    }

    /// The output matrix, (vocab, hidden): the embedding again in most models.
    pub(crate) fn head(&self) -> FloatRows<'_> {
        self.rows(self.head_name)
    }

    /// Whether the output matrix is the embedding.
    pub(crate) fn is_tied(&self) -> bool {
        self.head_name == "token_embd.weight"
    }

    /// The tensor that [`Model::head`] reads.
    pub(crate) fn head_name(&self) -> &'static str {
        self.head_name
    }

    fn rows(&self, name: &str) -> FloatRows<'_> {
        FloatRows { tensor: self.file.tensor(name).expect("because `check_model` found it") }
    }

    /// Lets go of the file pages of embedding and head; they come back row by row as they are used.
    pub(crate) fn release_rows(&self) {
        for rows in [self.embedding(), self.head()] {
            // SAFETY: `File::open` maps its file, and the tensor's data are a part of the map.
            unsafe { release_file_pages(rows.tensor.data) };
        }
    }
}

/// A matrix of floats as the file holds it.
pub(crate) struct FloatRows<'a> {
    tensor: gguf::Tensor<'a>,
}

impl<'a> FloatRows<'a> {
    /// Rows `rows` as half floats, if they are that and aligned.
    pub(crate) fn halves(&self, rows: Range<usize>) -> Option<&'a [u16]> {
        if self.tensor.kind != Kind::F16 || cfg!(target_endian = "big") {
            return None;
        }
        let row_bytes = self.tensor.n_columns() * 2;
        let bytes = self.tensor.data.get(rows.start * row_bytes..rows.end * row_bytes)?;
        // SAFETY: every pair of bytes is a u16.
        let (before, halves, after) = unsafe { bytes.align_to::<u16>() };
        (before.is_empty() && after.is_empty()).then_some(halves)
    }

    /// Row `row` as floats.
    pub(crate) fn read(&self, row: usize, out: &mut [f32]) {
        gguf::rows::read(&self.tensor, row, out);
    }

    /// Bytes of the whole matrix in the file.
    pub(crate) fn bytes(&self) -> usize {
        self.tensor.data.len()
    }
}

fn check_shape(hyper: &Hyper) -> Result<(), LoadError> {
    let rule = |holds: bool, text: &str| if holds { Ok(()) } else { Err(LoadError::Shape(text.to_owned())) };
    let whole_norms = !hyper.graph.qk_norms || hyper.head_dim.is_multiple_of(16);
    rule(whole_norms, "the head size must be a multiple of 16 if heads have norms")?;
    rule(hyper.head_dim <= MAX_HEAD_DIM, "the head size must be at most 256")?;
    rule(hyper.hidden.is_multiple_of(128), "embedding_length must be a multiple of 128")?;
    rule(hyper.ffn.is_multiple_of(128), "feed_forward_length must be a multiple of 128")?;
    rule(
        hyper.q_width().is_multiple_of(128),
        "attention.head_count times the head size must be a multiple of 128",
    )?;
    let widest = hyper.ffn.max(hyper.q_width());
    rule(hyper.hidden <= 1 << 15 && widest <= 1 << 17, "layers this wide are not supported")
}

/// Where a part's rows go: heads are padded to whole groups, and what is rotated is in halves.
fn rows_of(hyper: &Hyper, part: Part) -> Rows {
    let (head_dim, stride) = (hyper.head_dim, hyper.head_stride());
    match part {
        Part::AttnQ | Part::AttnK => Rows::Heads { head_dim, stride, order: hyper.graph.row_order },
        Part::AttnV => Rows::Heads { head_dim, stride, order: RowOrder::Halves },
        _ => Rows::Same,
    }
}

/// Lays matrices out one after the other.
struct Planner<'a> {
    packing: Layout,
    offset_bytes: usize,
    plans: Vec<Plan<'a>>,
}

impl<'a> Planner<'a> {
    /// Adds a matrix of several tensors: one after the other, or in turn.
    fn add(&mut self, sources: &[Source<'a>], paired: bool) -> Result<(), LoadError> {
        let width = sources[0].tensor.n_columns();
        let mut n_groups = 0;
        let mut pieces = Vec::new();
        for (index, &source) in sources.iter().enumerate() {
            let (first_group, stride) = if paired { (index, sources.len()) } else { (n_groups, 1) };
            n_groups += source.rows.padded(source.tensor.n_rows()).div_ceil(ROWS);
            pieces.push(Piece { source, first_group, stride });
        }
        let group_bytes = self.packing.group_bytes(width);
        let n_scales = if self.packing == Layout::Grouped { 0 } else { n_groups * ROWS };
        let scales = Shared::new(n_scales, "scales of rows")?;
        let matrix = Matrix { width, n_groups, scales, group_bytes, offset_bytes: self.offset_bytes };
        self.offset_bytes += n_groups * group_bytes;
        self.plans.push(Plan { matrix, pieces });
        Ok(())
    }
}

/// The fault that comes first in the order of matrices and of groups or rows in them, whoever finds it.
#[derive(Default)]
struct FirstFault(Mutex<Option<Found>>);

/// Where a fault is, in which tensor, and what it is.
type Found = ((usize, usize), String, Fault);

impl FirstFault {
    fn note(&self, order: (usize, usize), name: &str, fault: Fault) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|first| order < first.0) {
            *first = Some((order, name.to_owned(), fault));
        }
    }

    fn into_result(self) -> Result<(), LoadError> {
        match self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some((_, name, fault)) => Err(LoadError::Tensor { name, reason: fault.to_string() }),
        }
    }
}

/// Packs all matrices, each member the groups that it will compute.
fn pack(plans: &[Plan<'_>], packing: Layout, groups: &Region, pool: &mut Pool) -> Result<(), LoadError> {
    let faults = FirstFault::default();
    pool.run(&|member| {
        let mut scratch = Scratch::default();
        for (index, Plan { matrix, pieces }) in plans.iter().enumerate() {
            let pairs = matrix.pairs(member.index, member.count());
            for group in 2 * pairs.start..matrix.n_groups.min(2 * pairs.end) {
                let piece = pieces
                    .iter()
                    .rev()
                    .find(|piece| {
                        piece.first_group <= group && (group - piece.first_group).is_multiple_of(piece.stride)
                    })
                    .expect("because the pieces cover all groups");
                let row = (group - piece.first_group) / piece.stride * ROWS;
                let rows = if matrix.scales.len() == 0 { 0..0 } else { group * ROWS..(group + 1) * ROWS };
                // SAFETY: groups are disjoint, and each belongs to one member's share.
                let (to, scales) =
                    unsafe { (groups.write(matrix.place(group..group + 1)), matrix.scales.write(rows)) };
                if let Err(fault) = pack_group(&piece.source, row, packing, &mut scratch, scales, to) {
                    faults.note((index, group), piece.source.tensor.name, fault);
                    return;
                }
            }
        }
    });
    faults.into_result()
}

/// Checks the rows of a ternary matrix that is read where it stands.
fn check_rows(tensor: &gguf::Tensor<'_>, pool: &mut Pool) -> Result<(), LoadError> {
    let faults = FirstFault::default();
    pool.run(&|member| {
        let mut row = ternary::Row::default();
        for index in member.share(tensor.n_rows()) {
            if let Err(fault) = ternary::read(tensor, index, &mut row) {
                return faults.note((0, index), tensor.name, fault);
            }
        }
    });
    faults.into_result()
}

/// A vector of f32, which `check_model` found to be finite.
fn floats(tensor: &gguf::Tensor<'_>) -> Box<[f32]> {
    tensor.f32s().collect()
}
