//! Text to token ids and back, as one model wants it: manifest, tokenizer, chat template, streaming, stops.
//!
//! It knows no weights and reads no file but a manifest: the engine hands over a [`Vocabulary`] that it read
//! from the model file. The truth about how a model splits text is its own tokenizer's, which a GGUF may
//! leave out or get wrong; so the [`Manifest`] beside the file says it, the file must agree or be silent, and
//! nothing is guessed.

pub mod chat;
pub mod constraint;
mod error;
pub mod manifest;
mod stop;
mod stream;
mod template;
pub mod tokenizer;
pub mod tools;
mod vocabulary;

pub use chat::{Message, Role};
pub use error::Error;
pub use manifest::{Manifest, Sampling};
pub use stop::{Step, StopMatcher};
pub use stream::Stream;
pub use template::Templates;
pub use tokenizer::{Prepared, Tokenizer};
pub use tools::ToolFormat;
pub use vocabulary::{TokenType, Vocabulary};
