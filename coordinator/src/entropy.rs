//! Where the ids of requests come from, which nobody may guess. A simulation gives a seed, so that it can be repeated.

use std::sync::{Arc, Mutex, PoisonError};

use crate::random::Random;

/// A source of random bytes. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Entropy(Option<Arc<Mutex<Random>>>);

impl Entropy {
    /// The same bytes each time; the default takes the system's.
    pub fn seeded(seed: u64) -> Entropy {
        Entropy(Some(Arc::new(Mutex::new(Random::new(seed, 0)))))
    }

    pub(crate) fn fill(&self, bytes: &mut [u8]) {
        let Some(seeded) = &self.0 else {
            getrandom::fill(bytes).expect("because the system's random source is always there on Linux");
            return;
        };
        let mut random = seeded.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
        }
    }

    /// `prefix` and 96 random bits in hexadecimal.
    pub(crate) fn id(&self, prefix: &str) -> String {
        let mut bytes = [0u8; 12];
        self.fill(&mut bytes);
        let mut id = String::from(prefix);
        for byte in bytes {
            id.push_str(&format!("{byte:02x}"));
        }
        id
    }
}
