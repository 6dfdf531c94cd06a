//! How many of each key there are now: what is taken counts until its guard is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The counts by key. Keys of which there are none take no memory.
#[derive(Debug)]
pub(crate) struct Counts<K> {
    counts: Arc<Mutex<BTreeMap<K, usize>>>,
}

/// One of its key, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted<K: Ord> {
    counts: Arc<Mutex<BTreeMap<K, usize>>>,
    key: K,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self { counts: Arc::default() }
    }
}

impl<K: Ord + Clone> Counts<K> {
    pub(crate) fn take(&self, key: K) -> Counted<K> {
        self.take_within(key, usize::MAX, usize::MAX).expect("because no count reaches that")
    }

    /// One more, unless there are `max_of_key` of this key or `max` of all keys together.
    pub(crate) fn take_within(&self, key: K, max_of_key: usize, max: usize) -> Option<Counted<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = counts.get(&key).copied().unwrap_or(0);
        if of_key >= max_of_key || counts.values().sum::<usize>() >= max {
            return None;
        }
        counts.insert(key.clone(), of_key + 1);
        Some(Counted { counts: Arc::clone(&self.counts), key })
    }

    pub(crate) fn holds(&self, key: &K) -> bool {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }
}

impl<K: Ord> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}
