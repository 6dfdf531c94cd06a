//! `config.json`: the model's shape and what its matrices hold.

use std::path::Path;

use serde_json::{Value, json};

use super::rope::{self, Rope};
use super::{Checkpoint, Error, read_json};
use crate::gguf::Hyper;
use crate::gguf::architecture::{self, Architecture, Rounding};

/// Bound on every count, as in a GGUF's.
const MAX_COUNT: u64 = 1 << 20;

/// What `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    pub(super) hyper: Hyper,
    pub(super) pad: Option<u32>,
    pub(super) tied: bool,
    pub(super) checkpoint: Checkpoint,
    /// What rotary frequencies are divided by.
    pub(super) rope_factors: Option<Vec<f32>>,
    /// Whether the file says nothing about quantisation.
    pub(super) silent: bool,
}

impl Config {
    /// Reads `config.json` in `folder`, refusing whatever would change the arithmetic.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let json = read_json(&path)?;
        let fields = Fields { path: &path, json: &json };
        let graph = fields.graph()?;
        fields.expect("model_type", &json!(graph.hugging_face.model_type))?;
        fields.expect("hidden_act", &json!(graph.hugging_face.activation))?;
        for absent in ["attention_bias", "mlp_bias", "use_sliding_window"] {
            fields.expect_or_absent(absent, &json!(false))?;
        }
        let n_heads = fields.count("num_attention_heads")?;
        let hidden = fields.count("hidden_size")?;
        let head_dim = match &json["head_dim"] {
            Value::Null if hidden.is_multiple_of(n_heads) => hidden / n_heads,
            Value::Null => return Err(fields.fault("num_attention_heads", "it does not divide hidden_size")),
            _ => fields.count("head_dim")?,
        };
        if (n_heads * head_dim) as u64 > MAX_COUNT {
            return Err(
                fields.fault("num_attention_heads", format!("the heads together are wider than {MAX_COUNT}"))
            );
        }
        let vocab = fields.count("vocab_size")?;
        let (checkpoint, silent) = fields.checkpoint(graph)?;
        let theta = fields.rope_theta()?;
        let Rope { scaling, factors } = rope::read(&json, head_dim, theta)
            .map_err(|(field, reason)| Error::unsupported(&path, field, reason))?;
        if factors.is_some() && !graph.rope_factors {
            return Err(fields.fault("rope_scaling", "llama3 scaling is supported only for LlamaForCausalLM"));
        }
        let hyper = Hyper {
            architecture: graph.names[0].into(),
            graph,
            name: json["_name_or_path"]
                .as_str()
                .filter(|name| !name.is_empty())
                .unwrap_or(graph.hugging_face.model_type)
                .to_owned(),
            n_layers: fields.count("num_hidden_layers")?,
            hidden,
            ffn: fields.count("intermediate_size")?,
            n_heads,
            n_kv_heads: if json["num_key_value_heads"].is_null() {
                n_heads
            } else {
                fields.count("num_key_value_heads")?
            },
            head_dim,
            vocab,
            context: fields.count("max_position_embeddings")?,
            rope_theta: theta,
            rope_scaling: scaling,
            rms_eps: fields.positive("rms_norm_eps", &json["rms_norm_eps"])?,
            bos: fields.token("bos_token_id", vocab)?,
            eos: fields.token("eos_token_id", vocab)?,
        };
        if !hyper.hidden.is_multiple_of(128)
            || !hyper.ffn.is_multiple_of(128)
            || !hyper.q_width().is_multiple_of(128)
        {
            return Err(
                fields.fault("hidden_size, intermediate_size", "I2_S needs widths that are multiples of 128")
            );
        }
        let tied = json["tie_word_embeddings"].as_bool();
        Ok(Self {
            hyper,
            pad: fields.token("pad_token_id", vocab)?,
            tied: tied.ok_or_else(|| fields.fault("tie_word_embeddings", "it is missing (true or false)"))?,
            checkpoint,
            rope_factors: factors,
            silent,
        })
    }
}

/// `config.json` of a packed checkpoint whose scales multiply, or of one whose floats are ternary weights times scales.
pub(super) fn render(hyper: &Hyper, tied: bool, packed: bool) -> Value {
    let names = &hyper.graph.hugging_face;
    let mut config = json!({
        "architectures": [names.class],
        "model_type": names.model_type,
        "hidden_act": names.activation,
        "vocab_size": hyper.vocab,
        "hidden_size": hyper.hidden,
        "intermediate_size": hyper.ffn,
        "num_hidden_layers": hyper.n_layers,
        "num_attention_heads": hyper.n_heads,
        "num_key_value_heads": hyper.n_kv_heads,
        "head_dim": hyper.head_dim,
        "max_position_embeddings": hyper.context,
        "rms_norm_eps": shortest(hyper.rms_eps),
        "rope_theta": shortest(hyper.rope_theta),
        "rope_parameters": rope::render(hyper),
        "attention_bias": false,
        "bos_token_id": hyper.bos,
        "eos_token_id": hyper.eos,
        "tie_word_embeddings": tied,
    });
    if packed {
        config["quantization_config"] = json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"});
    }
    config
}

/// The shortest decimal that reads back as this f32, as an f64: 1e-5 and not 9.999999747378752e-6.
pub(super) fn shortest(value: f32) -> f64 {
    value.to_string().parse().expect("because a float prints as a float")
}

/// `config.json`, field by field.
struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Fields<'_> {
    fn fault(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::unsupported(self.path, field, reason)
    }

    fn expect(&self, field: &str, wanted: &Value) -> Result<(), Error> {
        match &self.json[field] {
            found if found == wanted => Ok(()),
            found => Err(self.fault(field, format!("{found}; this engine supports only {wanted}"))),
        }
    }

    fn expect_or_absent(&self, field: &str, wanted: &Value) -> Result<(), Error> {
        if self.json[field].is_null() { Ok(()) } else { self.expect(field, wanted) }
    }

    fn count(&self, field: &str) -> Result<usize, Error> {
        match self.json[field].as_u64() {
            Some(count) if (1..=MAX_COUNT).contains(&count) => Ok(count as usize),
            _ => {
                Err(self
                    .fault(field, format!("{} is not a count between 1 and {MAX_COUNT}", self.json[field])))
            }
        }
    }

    fn positive(&self, field: &str, value: &Value) -> Result<f32, Error> {
        let number = value.as_f64().map(|number| number as f32);
        number
            .filter(|number| number.is_finite() && *number > 0.0)
            .ok_or_else(|| self.fault(field, format!("{value} is not a positive number")))
    }

    /// An id, or the first of a list of ids.
    fn token(&self, field: &str, vocab: usize) -> Result<Option<u32>, Error> {
        let value = match &self.json[field] {
            Value::Null => return Ok(None),
            Value::Array(ids) => ids.first().unwrap_or(&Value::Null),
            id => id,
        };
        match value.as_u64().filter(|&id| id < vocab as u64) {
            Some(id) => Ok(Some(id as u32)),
            None => Err(self.fault(field, format!("{value} is not a token id below {vocab}"))),
        }
    }

    /// The architecture, by the class that runs it, or else by the type of model.
    fn graph(&self) -> Result<&'static Architecture, Error> {
        let class = self.json["architectures"][0].as_str();
        let found = architecture::ALL.into_iter().rev().find(|known| match class {
            Some(class) => class == known.hugging_face.class,
            None => self.json["model_type"] == known.hugging_face.model_type,
        });
        let known = architecture::ALL.map(|known| known.hugging_face.class).join(", ");
        let named = class.map_or_else(|| self.json["model_type"].to_string(), str::to_owned);
        found
            .ok_or_else(|| self.fault("architectures", format!("{named}; this engine supports only {known}")))
    }

    /// Newer files keep it under `rope_parameters`, older ones at the top.
    fn rope_theta(&self) -> Result<f32, Error> {
        let inner = &self.json["rope_parameters"]["rope_theta"];
        self.positive("rope_theta", if inner.is_null() { &self.json["rope_theta"] } else { inner })
    }

    /// What the matrices hold, and whether nothing says so. Floats of a BitNet are master weights; those of other models are
    /// ternary already, or they are refused value by value.
    fn checkpoint(&self, graph: &Architecture) -> Result<(Checkpoint, bool), Error> {
        let quantisation = &self.json["quantization_config"];
        if quantisation.is_null() {
            let is_bitnet = graph.sub_norms && graph.rounding == Rounding::Token;
            return Ok(if is_bitnet { (Checkpoint::Master, true) } else { (Checkpoint::Lattice, false) });
        }
        let method = &quantisation["quant_method"];
        if method != "bitnet" {
            return Err(
                self.fault("quantization_config.quant_method", format!("{method}, but \"bitnet\" is needed"))
            );
        }
        // The defaults are those of transformers' BitNetQuantConfig.
        let class = quantisation["linear_class"].as_str().unwrap_or("bitlinear");
        let mode = quantisation["quantization_mode"].as_str().unwrap_or("offline");
        if quantisation["use_rms_norm"] == true {
            return Err(self.fault(
                "quantization_config.use_rms_norm",
                "norms inside the linear layers are not supported",
            ));
        }
        match (class, mode) {
            ("autobitlinear", "online") => Ok((Checkpoint::Master, false)),
            ("autobitlinear", "offline") => Ok((Checkpoint::Multiplying, false)),
            ("bitlinear", "offline") => Ok((Checkpoint::Dividing, false)),
            _ => Err(self.fault(
                "quantization_config",
                format!("linear_class '{class}' with mode '{mode}' is unknown"),
            )),
        }
    }
}
