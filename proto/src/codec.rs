//! MessagePack with named fields: a reader of an older version skips the fields it does not know.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// A message that is not what its subject promises. The reader drops it and counts it; it never stops a process.
#[derive(Debug, thiserror::Error)]
#[error("a message of {bytes} bytes is not a {expected}: {reason}")]
pub struct DecodeError {
    pub expected: &'static str,
    pub bytes: usize,
    pub reason: String,
}

/// Encodes with field names, so that fields may be added without breaking older readers.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    rmp_serde::to_vec_named(message).expect("because messages hold no maps with non-string keys").into()
}

/// Values within values: no message has half as many, and a prompt that nests without end must not use up a stack.
const DEPTH_MAX: usize = 64;

/// Decodes and names what was expected when that fails.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, DecodeError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
    deserializer.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut deserializer).map_err(|reason| DecodeError {
        expected: std::any::type_name::<T>().rsplit("::").next().unwrap_or("message"),
        bytes: payload.len(),
        reason: reason.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::decode;
    use crate::message::JobResult;

    #[test]
    fn nesting_without_end_is_refused() {
        for marker in [0x91u8, 0x81] {
            assert!(decode::<JobResult>(&vec![marker; 1 << 20]).is_err());
        }
    }
}
