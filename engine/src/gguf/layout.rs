//! Which tensors make up a model, with every shape checked against the metadata, in one place.

use super::architecture::Part;
use super::{Error, File, Hyper, Kind, Tensor, i2s, rows};

/// A whole model's tensors. Shapes as (rows, columns), row-major, as a matrix times a column vector needs it.
#[derive(Debug, Clone)]
pub struct Layout<'a> {
    /// The shape that all tensors were checked against.
    pub hyper: Hyper,
    /// Embedding, (vocab, hidden), of floats or ternary. Also the output matrix if `output` is `None`.
    pub token_embd: Tensor<'a>,
    /// Separate output matrix, (vocab, hidden), of the same types.
    pub output: Option<Tensor<'a>>,
    /// Weight of the last norm, (hidden), F32.
    pub output_norm: Tensor<'a>,
    /// What each rotary frequency is divided by, (head / 2), F32.
    pub rope_factors: Option<Tensor<'a>>,
    /// One entry a layer.
    pub blocks: Vec<Block<'a>>,
}

/// One layer's tensors.
#[derive(Debug, Clone)]
pub struct Block<'a> {
    tensors: [Option<Tensor<'a>>; Part::COUNT],
    scales: [f32; Part::COUNT],
}

impl<'a> Block<'a> {
    /// The tensor of a part, if the architecture has it.
    pub fn find(&self, part: Part) -> Option<Tensor<'a>> {
        self.tensors[part as usize]
    }

    /// The tensor of a part that every architecture has.
    pub fn get(&self, part: Part) -> Tensor<'a> {
        self.find(part).expect("because every architecture has this part, and `check_model` found it")
    }

    /// What the scales within a matrix are multiplied by: 1, or what is in a tensor of its own.
    pub fn factor(&self, part: Part) -> f32 {
        self.scales[part as usize]
    }

    /// The ternary matrices.
    pub fn ternary(&self) -> impl Iterator<Item = Tensor<'a>> {
        self.tensors.into_iter().flatten().filter(|tensor| tensor.kind.is_ternary())
    }
}

impl<'a> Layout<'a> {
    /// The matrix that makes logits: `output`, or the embedding where they are tied.
    pub fn head(&self) -> Tensor<'a> {
        self.output.unwrap_or(self.token_embd)
    }

    /// All ternary matrices.
    pub fn ternary(&self) -> impl Iterator<Item = Tensor<'a>> {
        let outer = [Some(self.token_embd), self.output].into_iter().flatten();
        let outer = outer.filter(|tensor| tensor.kind.is_ternary());
        outer.chain(self.blocks.iter().flat_map(Block::ternary))
    }
}

/// Finds and checks every tensor of the model in `file`; a tensor too many is refused like one that is
/// missing, since it would stand for arithmetic that is not done.
///
/// Norm weights and scales of tensors must be finite. The codes of the ternary matrices are *not* read here: the repack
/// does that as it passes over them ([`super::ternary::check`]).
pub fn check_model(file: &File) -> Result<Layout<'_>, Error> {
    let hyper = Hyper::read(file)?;
    let mut finder = Finder { file, n_found: 0 };
    let (hidden, vocab) = (hyper.hidden, hyper.vocab);
    let token_embd = finder.embedding("token_embd.weight", vocab, hidden)?;
    let output = match file.tensor("output.weight") {
        Some(_) => Some(finder.embedding("output.weight", vocab, hidden)?),
        None => None,
    };
    let output_norm = finder.norm("output_norm.weight", hidden)?;
    let rope_factors = match file.tensor(ROPE_FACTORS) {
        Some(_) if hyper.graph.rope_factors => Some(finder.rope_factors(hyper.head_dim / 2)?),
        _ => None,
    };
    if hyper.n_layers > file.tensors().len() {
        let reason =
            format!("{} layers, but the file holds {} tensors", hyper.n_layers, file.tensors().len());
        return Err(Error::model(format!("metadata '{}.block_count'", hyper.architecture), reason));
    }
    let blocks =
        (0..hyper.n_layers).map(|layer| finder.block(&hyper, layer)).collect::<Result<Vec<_>, Error>>()?;
    finder.refuse_the_rest(&hyper)?;
    Ok(Layout { hyper, token_embd, output, output_norm, rope_factors, blocks })
}

const ROPE_FACTORS: &str = "rope_freqs.weight";

struct Finder<'a> {
    file: &'a File,
    n_found: usize,
}

impl<'a> Finder<'a> {
    fn block(&mut self, hyper: &Hyper, layer: usize) -> Result<Block<'a>, Error> {
        let mut block = Block { tensors: [None; Part::COUNT], scales: [1.0; Part::COUNT] };
        for part in hyper.graph.parts() {
            let (name, dims) = (part.tensor(layer), hyper.dims(part));
            let tensor = match part.columns() {
                None => self.norm(&name, dims[0])?,
                Some(_) => self.ternary(&name, &dims)?,
            };
            let scale = format!("blk.{layer}.{}.scale", part.name());
            if hyper.graph.scale_tensors && self.file.tensor(&scale).is_some() {
                let tensor = self.norm(&scale, 1)?;
                block.scales[part as usize] = tensor.f32s().next().expect("because the tensor holds one f32");
            }
            block.tensors[part as usize] = Some(tensor);
        }
        Ok(block)
    }

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
            let reason = format!("its dims are {:?}, but the metadata needs {dims:?}", tensor.dims);
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
        if !tensor.f32s().all(f32::is_finite) {
            return Err(Error::damaged(format!("tensor '{name}'"), "a weight is not a finite number"));
        }
        Ok(tensor)
    }

    fn rope_factors(&mut self, n_pairs: usize) -> Result<Tensor<'a>, Error> {
        let tensor = self.norm(ROPE_FACTORS, n_pairs)?;
        match tensor.f32s().find(|&factor| factor <= 0.0) {
            None => Ok(tensor),
            Some(factor) => {
                let reason = format!("a factor is {factor}, but frequencies are divided by it");
                Err(Error::damaged(format!("tensor '{ROPE_FACTORS}'"), reason))
            }
        }
    }

    fn embedding(&mut self, name: &str, n_rows: usize, n_columns: usize) -> Result<Tensor<'a>, Error> {
        let tensor = self.find(name, &[n_columns, n_rows])?;
        if !rows::READABLE.contains(&tensor.kind) && !tensor.kind.is_ternary() {
            let readable = rows::READABLE.map(|kind| kind.to_string()).join(", ");
            let reason = format!("{} is not supported; use {readable} or a ternary type", tensor.kind);
            return Err(Error::unsupported(format!("tensor '{name}'"), reason));
        }
        Ok(tensor)
    }

    fn ternary(&mut self, name: &str, dims: &[usize]) -> Result<Tensor<'a>, Error> {
        let tensor = self.find(name, dims)?;
        let field = || format!("tensor '{name}'");
        if !tensor.kind.is_ternary() {
            let hint = match tensor.kind {
                Kind::TL1 | Kind::TL2 => {
                    "the layout of TL1 and TL2 depends on the build that wrote them: use the I2_S file"
                }
                _ => {
                    "a ternary matrix is needed (I2_S, TQ1_0, TQ2_0, Q2_0, …): use such a file, or convert \
                     the model"
                }
            };
            return Err(Error::unsupported(field(), format!("{}; {hint}", tensor.kind)));
        }
        if tensor.kind == Kind::I2S {
            let scale = i2s::scale(tensor.data, dims[0] * dims[1]);
            if !scale.is_some_and(f32::is_finite) {
                return Err(Error::damaged(field(), format!("its scale is {scale:?}, not a finite number")));
            }
        }
        Ok(tensor)
    }

    fn refuse_the_rest(&self, hyper: &Hyper) -> Result<(), Error> {
        if self.n_found == self.file.tensors().len() {
            return Ok(());
        }
        let known = |name: &str| {
            let outer = ["token_embd.weight", "output.weight", "output_norm.weight"];
            outer.contains(&name)
                || name == ROPE_FACTORS && hyper.graph.rope_factors
                || Part::parse(name).is_some_and(|(part, layer, ending)| {
                    let scale = ending == "scale" && hyper.graph.scale_tensors;
                    layer < hyper.n_layers
                        && (ending == "weight" || scale)
                        && hyper.graph.parts().any(|known| known == part)
                })
        };
        let extra = self.file.tensors().find(|tensor| !known(tensor.name));
        let name = extra.map_or("?", |tensor| tensor.name);
        Err(Error::unsupported(
            format!("tensor '{}'", name.escape_debug()),
            "the architecture has no such tensor, and the model would differ without it",
        ))
    }
}
