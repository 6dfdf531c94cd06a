//! Which tensors make up a model, with every shape checked against the metadata, in one place.

use super::{Error, File, Hyper, Kind, Tensor, i2s, rows};

/// A whole model's tensors. Shapes as (rows, columns), row-major, as a matrix times a column vector needs it.
#[derive(Debug, Clone)]
pub struct Layout<'a> {
    /// The shape that all tensors were checked against.
    pub hyper: Hyper,
    /// Embedding, (vocab, hidden): F32, F16, Q8_0 or Q6_K. Also the output matrix if `output` is `None`.
    pub token_embd: Tensor<'a>,
    /// Separate output matrix, (vocab, hidden), of the same types.
    pub output: Option<Tensor<'a>>,
    /// Weight of the last norm, (hidden), F32.
    pub output_norm: Tensor<'a>,
    /// One entry a layer.
    pub blocks: Vec<Block<'a>>,
}

/// One layer's tensors.
#[derive(Debug, Clone)]
pub struct Block<'a> {
    /// (hidden), F32.
    pub attn_norm: Tensor<'a>,
    /// Norm of the attention's result before `attn_output`, (heads · head_dim), F32.
    pub attn_sub_norm: Tensor<'a>,
    /// (hidden), F32.
    pub ffn_norm: Tensor<'a>,
    /// Norm before `ffn_down`, (ffn), F32.
    pub ffn_sub_norm: Tensor<'a>,
    /// (heads · head_dim, hidden), I2_S.
    pub attn_q: Tensor<'a>,
    /// (kv_heads · head_dim, hidden), I2_S.
    pub attn_k: Tensor<'a>,
    /// (kv_heads · head_dim, hidden), I2_S.
    pub attn_v: Tensor<'a>,
    /// (hidden, heads · head_dim), I2_S.
    pub attn_output: Tensor<'a>,
    /// (ffn, hidden), I2_S.
    pub ffn_gate: Tensor<'a>,
    /// (ffn, hidden), I2_S.
    pub ffn_up: Tensor<'a>,
    /// (hidden, ffn), I2_S.
    pub ffn_down: Tensor<'a>,
}

impl<'a> Block<'a> {
    /// The seven ternary matrices.
    pub fn ternary(&self) -> [Tensor<'a>; 7] {
        let Self { attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, .. } = *self;
        [attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down]
    }
}

impl Layout<'_> {
    /// The matrix that makes logits: `output`, or the embedding where they are tied.
    pub fn head(&self) -> Tensor<'_> {
        self.output.unwrap_or(self.token_embd)
    }
}

/// Finds and checks every tensor of the model in `file`; a tensor too many is refused like one that is
/// missing, since it would stand for arithmetic that is not done.
///
/// Norm weights and scales must be finite. The codes of the ternary matrices are *not* read here: the repack
/// does that as it passes over them ([`i2s::check`]).
pub fn check_model(file: &File) -> Result<Layout<'_>, Error> {
    let hyper = Hyper::read(file)?;
    let mut finder = Finder { file, n_found: 0 };
    let (hidden, ffn, vocab) = (hyper.hidden, hyper.ffn, hyper.vocab);
    let token_embd = finder.embedding("token_embd.weight", vocab, hidden)?;
    let output = match file.tensor("output.weight") {
        Some(_) => Some(finder.embedding("output.weight", vocab, hidden)?),
        None => None,
    };
    let output_norm = finder.norm("output_norm.weight", hidden)?;
    if hyper.n_layers > file.tensors().len() {
        let reason =
            format!("{} layers, but the file holds {} tensors", hyper.n_layers, file.tensors().len());
        return Err(Error::model(format!("metadata '{}.block_count'", hyper.architecture), reason));
    }
    let blocks = (0..hyper.n_layers)
        .map(|layer| {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            Ok(Block {
                attn_norm: finder.norm(&name("attn_norm"), hidden)?,
                attn_sub_norm: finder.norm(&name("attn_sub_norm"), hyper.q_width())?,
                ffn_norm: finder.norm(&name("ffn_norm"), hidden)?,
                ffn_sub_norm: finder.norm(&name("ffn_sub_norm"), ffn)?,
                attn_q: finder.ternary(&name("attn_q"), hyper.q_width(), hidden)?,
                attn_k: finder.ternary(&name("attn_k"), hyper.kv_width(), hidden)?,
                attn_v: finder.ternary(&name("attn_v"), hyper.kv_width(), hidden)?,
                attn_output: finder.ternary(&name("attn_output"), hidden, hyper.q_width())?,
                ffn_gate: finder.ternary(&name("ffn_gate"), ffn, hidden)?,
                ffn_up: finder.ternary(&name("ffn_up"), ffn, hidden)?,
                ffn_down: finder.ternary(&name("ffn_down"), hidden, ffn)?,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    finder.refuse_the_rest(hyper.n_layers)?;
    Ok(Layout { hyper, token_embd, output, output_norm, blocks })
}

struct Finder<'a> {
    file: &'a File,
    n_found: usize,
}

impl<'a> Finder<'a> {
    /// The tensor `name` with the dims `dims`, in GGUF's order.
    fn find(&mut self, name: &str, dims: &[usize]) -> Result<Tensor<'a>, Error> {
        let field = || format!("tensor '{name}'");
        let Some(tensor) = self.file.tensor(name) else {
            return Err(Error::model(field(), format!("it is missing (its dims would be {dims:?})")));
        };
        let (stated, ones) = tensor.dims.split_at(dims.len().min(tensor.dims.len()));
        let agree = stated.iter().copied().eq(dims.iter().map(|&dim| dim as u64));
        // Some writers keep trailing dims of one.
        if !agree || ones.iter().any(|&dim| dim != 1) {
            let reason = format!("its dims are {:?}, and the metadata asks for {dims:?}", tensor.dims);
            return Err(Error::model(field(), reason));
        }
        self.n_found += 1;
        Ok(tensor)
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Tensor<'a>, Error> {
        let tensor = self.find(name, &[width])?;
        if tensor.kind != Kind::F32 {
            let reason = format!("{} where F32 is needed; convert the model again", tensor.kind);
            return Err(Error::unsupported(format!("tensor '{name}'"), reason));
        }
        let finite =
            tensor.data.as_chunks::<4>().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite());
        if !finite {
            return Err(Error::damaged(format!("tensor '{name}'"), "a weight is not a finite number"));
        }
        Ok(tensor)
    }

    fn embedding(&mut self, name: &str, n_rows: usize, n_columns: usize) -> Result<Tensor<'a>, Error> {
        let tensor = self.find(name, &[n_columns, n_rows])?;
        if !rows::READABLE.contains(&tensor.kind) {
            let reason = format!("{} cannot be read here; F32, F16, Q8_0 and Q6_K can", tensor.kind);
            return Err(Error::unsupported(format!("tensor '{name}'"), reason));
        }
        Ok(tensor)
    }

    fn ternary(&mut self, name: &str, n_rows: usize, n_columns: usize) -> Result<Tensor<'a>, Error> {
        let tensor = self.find(name, &[n_columns, n_rows])?;
        let field = || format!("tensor '{name}'");
        if tensor.kind != Kind::I2S {
            let hint = match tensor.kind {
                Kind::TL1 | Kind::TL2 => {
                    "the layout of TL1 and TL2 depends on the build that wrote them: take the I2_S file"
                }
                _ => "ternary matrices are read as I2_S: take the I2_S file, or convert the model",
            };
            return Err(Error::unsupported(field(), format!("{}; {hint}", tensor.kind)));
        }
        let scale = i2s::scale(tensor.data, n_rows * n_columns);
        match scale.filter(|scale| scale.is_finite()) {
            Some(_) => Ok(tensor),
            None => Err(Error::damaged(field(), format!("its scale is {scale:?}, not a finite number"))),
        }
    }

    fn refuse_the_rest(&self, n_layers: usize) -> Result<(), Error> {
        if self.n_found == self.file.tensors().len() {
            return Ok(());
        }
        let known = |name: &str| {
            if matches!(name, "token_embd.weight" | "output.weight" | "output_norm.weight") {
                return true;
            }
            let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            part.is_some_and(|(layer, part)| {
                layer.parse::<usize>().is_ok_and(|layer| layer < n_layers)
                    && PARTS.iter().any(|known| part.strip_suffix(".weight") == Some(*known))
            })
        };
        let extra = self.file.tensors().find(|tensor| !known(tensor.name));
        let name = extra.map_or("?", |tensor| tensor.name);
        Err(Error::unsupported(
            format!("tensor '{}'", name.escape_debug()),
            "the architecture has no such tensor, and leaving it out would compute another model",
        ))
    }
}

/// The tensors of one block, as they are named in the file.
pub(crate) const PARTS: [&str; 11] = [
    "attn_norm",
    "ffn_down",
    "ffn_sub_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_norm",
    "attn_sub_norm",
    "attn_k",
    "attn_output",
    "attn_q",
    "attn_v",
];
