//! A model in memory: packed ternary matrices, norms, rotary tables, and the file that still holds the embedding.
//!
//! Weights are packed by the threads that will read them, so that their pages lie where they are used. Read-only
//! afterwards. The computation stands in `forward`.
#![allow(unsafe_code)] // The pool's members pack disjoint groups of one region.

use crate::gguf::{self, File, Hyper, Kind, i2s};
use crate::kernel::{LINE, Layout, MAX_HEAD_DIM, ROWS};
use crate::memory::{Region, release_file_pages};
use crate::pack::pack_group;
use crate::pool::Pool;
use crate::{LoadError, math};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Several ternary tensors of one width as one matrix of groups of 16 rows.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// Inputs.
    pub(crate) width: usize,
    /// Groups of 16 output rows.
    pub(crate) n_groups: usize,
    /// Each group's tensor scale.
    pub(crate) scales: Box<[f32]>,
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
    pub(crate) attn_sub_norm: Box<[f32]>,
    pub(crate) ffn_norm: Box<[f32]>,
    pub(crate) ffn_sub_norm: Box<[f32]>,
    /// Query, key and value rows, one after the other.
    pub(crate) qkv: Matrix,
    pub(crate) output: Matrix,
    /// Groups of gate and up in turn.
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
}

/// Cosines and sines, (context, head_dim / 2) each.
#[derive(Debug)]
pub(crate) struct Rotary {
    pub(crate) half: usize,
    cos: Box<[f32]>,
    sin: Box<[f32]>,
}

impl Rotary {
    /// Frequencies and angles are rounded to f32 as the reference implementation rounds them; the functions are exact.
    fn new(hyper: &Hyper, context: usize) -> Rotary {
        let half = hyper.head_dim / 2;
        let log_theta = math::ln(f64::from(hyper.rope_theta));
        let frequencies: Vec<f32> = (0..half)
            .map(|i| math::exp(-log_theta * (2 * i) as f64 / hyper.head_dim as f64) as f32)
            .collect();
        let mut cos = Vec::with_capacity(context * half);
        let mut sin = Vec::with_capacity(context * half);
        for position in 0..context {
            for frequency in &frequencies {
                let (sine, cosine) = math::sin_cos(f64::from(position as f32 * frequency));
                cos.push(cosine as f32);
                sin.push(sine as f32);
            }
        }
        Rotary { half, cos: cos.into(), sin: sin.into() }
    }

    /// Positions that it covers.
    pub(crate) fn context(&self) -> usize {
        self.cos.len() / self.half
    }

    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
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
    /// How the packed groups stand in memory.
    pub(crate) layout: Layout,
    groups: Region,
    file: File,
    head_name: &'static str,
}

/// One tensor's part in a matrix.
struct Part<'a> {
    tensor: &'a gguf::Tensor<'a>,
    /// Its first group; further ones follow at `stride`.
    first_group: usize,
    stride: usize,
}

/// A matrix to be packed.
struct Plan<'a> {
    matrix: Matrix,
    parts: Vec<Part<'a>>,
}

impl Model {
    /// Reads, checks and packs the model at `path`.
    pub(crate) fn load(
        path: &Path,
        max_context: Option<usize>,
        choose: impl FnOnce(&Hyper, &mut Pool) -> Layout,
        pool: &mut Pool,
        huge_pages: bool,
    ) -> Result<Model, LoadError> {
        let fault = |error: gguf::Error| LoadError::File { path: path.to_owned(), reason: error.to_string() };
        let file = File::open(path).map_err(fault)?;
        let layout = gguf::check_model(&file).map_err(fault)?;
        let hyper = layout.hyper.clone();
        check_shape(&hyper)?;
        let packing = choose(&hyper, pool);
        let mut offset_bytes = 0;
        let mut plans = Vec::new();
        for block in &layout.blocks {
            for (tensors, paired) in [
                (vec![&block.attn_q, &block.attn_k, &block.attn_v], false),
                (vec![&block.attn_output], false),
                (vec![&block.ffn_gate, &block.ffn_up], true),
                (vec![&block.ffn_down], false),
            ] {
                let plan = plan(&tensors, paired, packing, offset_bytes)?;
                offset_bytes += plan.matrix.n_groups * plan.matrix.group_bytes;
                plans.push(plan);
            }
        }
        let groups = Region::new(offset_bytes, huge_pages).map_err(|source| LoadError::Memory {
            what: "ternary weights",
            bytes: offset_bytes as u64,
            source,
        })?;
        pack(&plans, packing, &groups, pool)?;
        for part in plans.iter().flat_map(|plan| &plan.parts) {
            // SAFETY: `File::open` maps its file, and the tensor's data are a part of the map.
            unsafe { release_file_pages(part.tensor.data) };
        }
        let mut matrices = plans.into_iter().map(|plan| plan.matrix);
        let mut next = || matrices.next().expect("because four matrices were planned for each block");
        let mut layers = Vec::with_capacity(layout.blocks.len());
        for block in &layout.blocks {
            layers.push(Layer {
                attn_norm: floats(&block.attn_norm)?,
                attn_sub_norm: floats(&block.attn_sub_norm)?,
                ffn_norm: floats(&block.ffn_norm)?,
                ffn_sub_norm: floats(&block.ffn_sub_norm)?,
                qkv: next(),
                output: next(),
                gate_up: next(),
                down: next(),
            });
        }
        let context = max_context.unwrap_or(hyper.context).min(hyper.context);
        let output_norm = floats(&layout.output_norm)?;
        let head_name = if layout.output.is_some() { "output.weight" } else { "token_embd.weight" };
        let rotary = Rotary::new(&hyper, context);
        drop(layout);
        Ok(Model {
            rotary,
            hyper,
            layers,
            output_norm,
            ternary_bytes: offset_bytes,
            layout: packing,
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
    pub(crate) fn embedding(&self) -> Rows<'_> {
        self.rows("token_embd.weight")
    }

    /// The output matrix, (vocab, hidden): the embedding again in most models.
    pub(crate) fn head(&self) -> Rows<'_> {
        self.rows(self.head_name)
    }

    /// The tensor that [`Model::head`] reads.
    pub(crate) fn head_name(&self) -> &'static str {
        self.head_name
    }

    fn rows(&self, name: &str) -> Rows<'_> {
        Rows { tensor: self.file.tensor(name).expect("because `check_model` found it") }
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
pub(crate) struct Rows<'a> {
    tensor: gguf::Tensor<'a>,
}

impl<'a> Rows<'a> {
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
    rule(hyper.head_dim.is_multiple_of(16), "the head size must be a multiple of 16")?;
    rule(hyper.head_dim <= MAX_HEAD_DIM, "the head size must be at most 256")?;
    rule(hyper.hidden.is_multiple_of(128), "the hidden size must be a multiple of 128")?;
    rule(hyper.ffn.is_multiple_of(128), "the feed-forward size must be a multiple of 128")?;
    rule(hyper.q_width().is_multiple_of(128), "the query heads together must be a multiple of 128 wide")?;
    rule(hyper.hidden <= 1 << 15 && hyper.ffn <= 1 << 17, "layers this wide are not supported")
}

/// Lays one matrix out: tensors one after the other, or two of them in turn.
fn plan<'a>(
    tensors: &[&'a gguf::Tensor<'a>],
    paired: bool,
    packing: Layout,
    offset_bytes: usize,
) -> Result<Plan<'a>, LoadError> {
    let width = tensors[0].n_columns();
    let mut scales = Vec::new();
    let mut parts = Vec::new();
    for (index, &tensor) in tensors.iter().enumerate() {
        let n_groups = tensor.n_rows().div_ceil(ROWS);
        let scale = i2s::scale(tensor.data, width * tensor.n_rows()).filter(|scale| scale.is_finite());
        let Some(scale) = scale else {
            let reason = "its scale is missing or no finite number".to_owned();
            return Err(LoadError::Tensor { name: tensor.name.to_owned(), reason });
        };
        let (first_group, stride) = if paired { (index, tensors.len()) } else { (scales.len(), 1) };
        if !paired {
            scales.resize(scales.len() + n_groups, scale);
        } else {
            scales.resize(n_groups * tensors.len(), scale);
            for group in 0..n_groups {
                scales[group * stride + index] = scale;
            }
        }
        parts.push(Part { tensor, first_group, stride });
    }
    let (n_groups, group_bytes) = (scales.len(), packing.group_bytes(width));
    let matrix = Matrix { width, n_groups, scales: scales.into(), group_bytes, offset_bytes };
    Ok(Plan { matrix, parts })
}

/// Packs all matrices, each member the groups that it will compute.
fn pack(plans: &[Plan<'_>], packing: Layout, groups: &Region, pool: &mut Pool) -> Result<(), LoadError> {
    let bad_plan = AtomicUsize::new(usize::MAX);
    pool.run(&|member| {
        let mut lines = Vec::new();
        for (index, plan) in plans.iter().enumerate() {
            let matrix = &plan.matrix;
            lines.resize(matrix.width / 16 * LINE, 0);
            let pairs = matrix.pairs(member.index, member.count());
            for group in 2 * pairs.start..matrix.n_groups.min(2 * pairs.end) {
                let part = plan
                    .parts
                    .iter()
                    .rev()
                    .find(|part| {
                        part.first_group <= group && (group - part.first_group).is_multiple_of(part.stride)
                    })
                    .expect("because the parts cover all groups");
                let row = (group - part.first_group) / part.stride * ROWS;
                // SAFETY: groups are disjoint, and each belongs to one member's share.
                let to = unsafe { groups.write(matrix.place(group..group + 1)) };
                let (data, n_rows) = (part.tensor.data, part.tensor.n_rows());
                let whole = match packing {
                    Layout::I2s => pack_group(data, matrix.width, n_rows, row, to),
                    Layout::Tl2 => {
                        let whole = pack_group(data, matrix.width, n_rows, row, &mut lines);
                        packing.pack_group(&lines, matrix.width, to);
                        whole
                    }
                };
                if !whole {
                    bad_plan.fetch_min(index, Ordering::Relaxed);
                }
            }
        }
    });
    let Some(plan) = plans.get(bad_plan.load(Ordering::Relaxed)) else { return Ok(()) };
    for part in &plan.parts {
        if let Err(fault) = i2s::check(part.tensor.data, part.tensor.n_columns() * part.tensor.n_rows()) {
            return Err(LoadError::Tensor { name: part.tensor.name.to_owned(), reason: fault.to_string() });
        }
    }
    Err(LoadError::Tensor {
        name: plan.parts[0].tensor.name.to_owned(),
        reason: "it holds a code 3".to_owned(),
    })
}

/// A vector of f32.
fn floats(tensor: &gguf::Tensor<'_>) -> Result<Box<[f32]>, LoadError> {
    let values: Box<[f32]> =
        tensor.data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    if values.iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    Err(LoadError::Tensor {
        name: tensor.name.to_owned(),
        reason: "it holds a number that is not finite".to_owned(),
    })
}
