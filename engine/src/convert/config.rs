//! `config.json`: the model's shape and what its matrices hold.

use std::path::Path;

use serde_json::{Value, json};

use super::names::Width;
use super::{Checkpoint, Error, read_json};
use crate::gguf::Hyper;

/// Bound on every count, as in a GGUF's.
const MAX_COUNT: u64 = 1 << 20;

/// What `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    pub(super) hyper: Hyper,
    pub(super) pad: Option<u32>,
    pub(super) tied: bool,
    pub(super) checkpoint: Checkpoint,
    /// Whether the file says nothing about quantisation.
    pub(super) silent: bool,
}

impl Config {
    /// Reads `config.json` in `folder`, refusing whatever would change the arithmetic.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let json = read_json(&path)?;
        let fields = Fields { path: &path, json: &json };
        fields.expect("model_type", &json!("bitnet"))?;
        fields.expect("hidden_act", &json!("relu2"))?;
        fields.expect_or_absent("attention_bias", &json!(false))?;
        fields.expect_or_absent("rope_scaling", &Value::Null)?;
        let n_heads = fields.count("num_attention_heads")?;
        let hidden = fields.count("hidden_size")?;
        let head_dim = match &json["head_dim"] {
            Value::Null if hidden.is_multiple_of(n_heads) => hidden / n_heads,
            Value::Null => return Err(fields.fault("num_attention_heads", "it does not divide hidden_size")),
            _ => fields.count("head_dim")?,
        };
        let vocab = fields.count("vocab_size")?;
        let (checkpoint, silent) = fields.checkpoint()?;
        let hyper = Hyper {
            architecture: "bitnet-b1.58".into(),
            name: json["_name_or_path"]
                .as_str()
                .filter(|name| !name.is_empty())
                .unwrap_or("bitnet")
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
            rope_theta: fields.rope_theta()?,
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
            silent,
        })
    }

    /// The number that `width` stands for.
    pub(super) fn width(hyper: &Hyper, width: Width) -> usize {
        match width {
            Width::Hidden => hyper.hidden,
            Width::Ffn => hyper.ffn,
            Width::Query => hyper.q_width(),
            Width::KeyValue => hyper.kv_width(),
        }
    }
}

/// `config.json` of a packed checkpoint whose scales multiply.
pub(super) fn render(hyper: &Hyper, tied: bool) -> Value {
    json!({
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "relu2",
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
        "rope_parameters": {"rope_type": "default", "rope_theta": shortest(hyper.rope_theta)},
        "attention_bias": false,
        "bos_token_id": hyper.bos,
        "eos_token_id": hyper.eos,
        "tie_word_embeddings": tied,
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    })
}

/// The shortest decimal that reads back as this f32, as an f64: 1e-5 and not 9.999999747378752e-6.
fn shortest(value: f32) -> f64 {
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
            found => Err(self.fault(field, format!("{found}, and only {wanted} is computed by this engine"))),
        }
    }

    fn expect_or_absent(&self, field: &str, wanted: &Value) -> Result<(), Error> {
        if self.json[field].is_null() { Ok(()) } else { self.expect(field, wanted) }
    }

    fn count(&self, field: &str) -> Result<usize, Error> {
        match self.json[field].as_u64() {
            Some(count) if (1..=MAX_COUNT).contains(&count) => Ok(count as usize),
            _ => {
                Err(self.fault(field, format!("{} is no count between 1 and {MAX_COUNT}", self.json[field])))
            }
        }
    }

    fn positive(&self, field: &str, value: &Value) -> Result<f32, Error> {
        let number = value.as_f64().map(|number| number as f32);
        number
            .filter(|number| number.is_finite() && *number > 0.0)
            .ok_or_else(|| self.fault(field, format!("{value} is no positive number")))
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
            None => Err(self.fault(field, format!("{value} is no token id below {vocab}"))),
        }
    }

    /// Newer files keep it under `rope_parameters`, older ones at the top.
    fn rope_theta(&self) -> Result<f32, Error> {
        let nested = &self.json["rope_parameters"];
        let kind = &nested["rope_type"];
        if !kind.is_null() && kind != "default" {
            return Err(self.fault(
                "rope_parameters.rope_type",
                format!("{kind}, and only \"default\" is computed here"),
            ));
        }
        let inner = &nested["rope_theta"];
        self.positive("rope_theta", if inner.is_null() { &self.json["rope_theta"] } else { inner })
    }

    fn checkpoint(&self) -> Result<(Checkpoint, bool), Error> {
        let quantisation = &self.json["quantization_config"];
        if quantisation.is_null() {
            return Ok((Checkpoint::Master, true));
        }
        let method = &quantisation["quant_method"];
        if method != "bitnet" {
            return Err(
                self.fault("quantization_config.quant_method", format!("{method}, and \"bitnet\" is needed"))
            );
        }
        // The defaults are those of transformers' BitNetQuantConfig.
        let class = quantisation["linear_class"].as_str().unwrap_or("bitlinear");
        let mode = quantisation["quantization_mode"].as_str().unwrap_or("offline");
        if quantisation["use_rms_norm"] == true {
            return Err(self.fault(
                "quantization_config.use_rms_norm",
                "norms inside the linear layers are not computed here",
            ));
        }
        match (class, mode) {
            ("autobitlinear", "online") => Ok((Checkpoint::Master, false)),
            ("autobitlinear", "offline") => Ok((Checkpoint::Multiplying, false)),
            ("bitlinear", "offline") => Ok((Checkpoint::Dividing, false)),
            _ => Err(self.fault(
                "quantization_config",
                format!("linear_class '{class}' with mode '{mode}' is not known"),
            )),
        }
    }
}
