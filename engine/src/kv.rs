//! The paged cache of keys and values: pages of 128 positions in half precision or int8.
//!
//! Which pages are free and who holds the others is counted by [`Pages`], which knows no memory. Within a page each layer and head has its keys transposed, (4, head_dim, 32), then its values, (128, head_dim); see
//! `kernel/attention.rs` for why. Int8 has a scale for each position of a head after them, (2, 128).
#![allow(unsafe_code)] // Members of the pool write disjoint heads of one region.

mod pages;

use crate::gguf::Hyper;
use crate::kernel::{KEY_BLOCK, Kernels, MAX_HEAD_DIM, PAGE, Stored, prefetch};
use crate::memory::Region;
use crate::options::Kv;
pub(crate) use pages::{PageId, Pages};

/// The memory of all pages.
#[derive(Debug)]
pub(crate) struct Storage {
    region: Region,
    kv: Kv,
    n_heads: usize,
    /// With padding.
    head_dim: usize,
    page_bytes: usize,
}

/// Bytes of one head of one layer of a page.
fn head_bytes(head_dim: usize, kv: Kv) -> usize {
    match kv {
        Kv::F16 => 2 * PAGE * head_dim * size_of::<u16>(),
        Kv::Int8 => 2 * PAGE * (head_dim + size_of::<f32>()),
    }
}

/// Bytes of one page of a model.
pub(crate) fn page_bytes(hyper: &Hyper, kv: Kv) -> u64 {
    (hyper.n_layers * hyper.n_kv_heads * head_bytes(hyper.head_stride(), kv)) as u64
}

impl Storage {
    /// `n_pages` empty pages; they take memory when first used.
    pub(crate) fn new(hyper: &Hyper, kv: Kv, n_pages: usize, huge_pages: bool) -> std::io::Result<Storage> {
        let bytes = usize::try_from(page_bytes(hyper, kv))
            .ok()
            .and_then(|bytes| bytes.checked_mul(n_pages))
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Storage {
            region: Region::new(bytes, huge_pages)?,
            kv,
            n_heads: hyper.n_kv_heads,
            head_dim: hyper.head_stride(),
            page_bytes: page_bytes(hyper, kv) as usize,
        })
    }

    /// Where one head of one page begins, in bytes.
    fn start(&self, page: PageId, layer: usize, head: usize) -> usize {
        page.0 as usize * self.page_bytes + (layer * self.n_heads + head) * head_bytes(self.head_dim, self.kv)
    }

    /// Keys and values of one head of one page.
    ///
    /// # Safety
    /// No other thread writes this head of this page while the result lives.
    pub(crate) unsafe fn read(&self, page: PageId, layer: usize, head: usize) -> Stored<'_> {
        let (start, n) = (self.start(page, layer, head), PAGE * self.head_dim);
        // SAFETY: the caller answers for other threads.
        unsafe {
            match self.kv {
                Kv::F16 => {
                    let (keys, values) = self.region.read(start / 2..start / 2 + 2 * n).split_at(n);
                    Stored::Half { keys, values }
                }
                Kv::Int8 => {
                    let (keys, values) = self.region.read(start..start + 2 * n).split_at(n);
                    let scales = (start + 2 * n) / size_of::<f32>();
                    Stored::Bytes { keys, values, scales: self.region.read(scales..scales + 2 * PAGE) }
                }
            }
        }
    }

    /// Copies all positions of a page.
    pub(crate) fn copy(&mut self, from: PageId, to: PageId) {
        let [from, to] = [from, to].map(|page| {
            let start = page.0 as usize * self.page_bytes;
            start..start + self.page_bytes
        });
        assert!(from != to, "a page is no copy of itself");
        // SAFETY: nobody else has the storage, and the two pages do not overlap.
        unsafe { self.region.write::<u8>(to).copy_from_slice(self.region.read::<u8>(from)) };
    }

    /// Where the keys of one head of one page begin.
    pub(crate) fn place(&self, page: PageId, layer: usize, head: usize) -> *const u8 {
        self.region.element(self.start(page, layer, head))
    }

    /// Asks for the cache lines that [`Storage::write`] will write to.
    pub(crate) fn prefetch(&self, page: PageId, layer: usize, head: usize, slot: usize) {
        let size = match self.kv {
            Kv::F16 => size_of::<u16>(),
            Kv::Int8 => 1,
        };
        let (row, block) = (self.head_dim * size, KEY_BLOCK * self.head_dim * size);
        let keys = self.place(page, layer, head);
        prefetch(keys.wrapping_add(slot / KEY_BLOCK * block), block);
        prefetch(keys.wrapping_add((PAGE + slot) * row), row);
    }

    /// Rounds and writes one position of one head; other positions may be written by other threads meanwhile.
    ///
    /// # Safety
    /// No other thread touches this position, and none reads this head of this page meanwhile.
    pub(crate) unsafe fn write(
        &self,
        kernels: Kernels,
        page: PageId,
        layer: usize,
        head: usize,
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        assert!(slot < PAGE && key.len() == self.head_dim && value.len() == self.head_dim);
        let (start, n) = (self.start(page, layer, head), PAGE * self.head_dim);
        // The last element of the head is checked to be in the region; all others are before it.
        self.region.element::<u8>(start + head_bytes(self.head_dim, self.kv) - 1);
        match self.kv {
            Kv::F16 => {
                let mut halves = [0u16; 2 * MAX_HEAD_DIM];
                let (key_halves, rest) = halves.split_at_mut(self.head_dim);
                let value_halves = &mut rest[..self.head_dim];
                kernels.narrow(key, key_halves);
                kernels.narrow(value, value_halves);
                // SAFETY: in the region, as checked above; the caller answers for other threads.
                unsafe { put(self.region.element(start / 2), slot, key_halves, value_halves) }
            }
            Kv::Int8 => {
                let mut bytes = [0i8; 2 * MAX_HEAD_DIM];
                let (key_bytes, rest) = bytes.split_at_mut(self.head_dim);
                let value_bytes = &mut rest[..self.head_dim];
                let scales = [kernels.narrow_bytes(key, key_bytes), kernels.narrow_bytes(value, value_bytes)];
                // SAFETY: as above.
                unsafe {
                    put(self.region.element(start), slot, key_bytes, value_bytes);
                    let place = self.region.element::<f32>((start + 2 * n) / size_of::<f32>());
                    place.add(slot).write(scales[0]);
                    place.add(PAGE + slot).write(scales[1]);
                }
            }
        }
    }
}

/// Writes one position's key and value where `start` is the first of the head's keys.
///
/// # Safety
/// The head's keys and values are there, of which nobody else touches this position.
unsafe fn put<C: Copy>(start: *mut C, slot: usize, key: &[C], value: &[C]) {
    let head_dim = key.len();
    let block = slot / KEY_BLOCK * KEY_BLOCK * head_dim;
    for (d, &element) in key.iter().enumerate() {
        // SAFETY: a position within the keys.
        unsafe { start.add(block + d * KEY_BLOCK + slot % KEY_BLOCK).write(element) };
    }
    // SAFETY: a row of the values.
    unsafe { start.add((PAGE + slot) * head_dim).copy_from_nonoverlapping(value.as_ptr(), head_dim) };
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn hyper() -> Hyper {
        Hyper {
            architecture: "bitnet-b1.58".to_owned(),
            graph: &crate::gguf::architecture::BITNET_2B4T,
            name: String::new(),
            n_layers: 2,
            hidden: 128,
            ffn: 128,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 32,
            vocab: 10,
            context: 256,
            rope_theta: 1e4,
            rope_scaling: crate::gguf::Scaling::None,
            rms_eps: 1e-5,
            bos: None,
            eos: None,
        }
    }

    #[test]
    fn what_is_written_is_read_at_its_place_and_nowhere_else() {
        let kernels = Kernels::new(crate::Isa::Scalar).unwrap();
        let key: Vec<f32> = (1..33).map(|d| d as f32).collect();
        let value: Vec<f32> = (96..128).map(|d| d as f32).collect();
        for kv in [Kv::F16, Kv::Int8] {
            let (cache, page) = (Storage::new(&hyper(), kv, 2, false).unwrap(), PageId(1));
            // SAFETY: one thread.
            let (stored, other) = unsafe {
                cache.write(kernels, page, 1, 1, 69, &key, &value);
                (cache.read(page, 1, 1), cache.read(page, 1, 0))
            };
            let numbers = |stored: Stored<'_>| -> [Vec<f32>; 3] {
                let halves =
                    |all: &[u16]| all.iter().map(|&half| crate::gguf::rows::f16_to_f32(half)).collect();
                let bytes = |all: &[i8]| all.iter().map(|&byte| f32::from(byte)).collect();
                match stored {
                    Stored::Half { keys, values } => [halves(keys), halves(values), vec![1.0; 2 * PAGE]],
                    Stored::Bytes { keys, values, scales } => [bytes(keys), bytes(values), scales.to_vec()],
                }
            };
            let [keys, values, scales] = numbers(stored);
            let block = &keys[2 * 32 * 32..];
            for d in 0..32 {
                // A step of int8 is 1/127 of the largest, so it is off by half of that at most.
                assert!(
                    (block[d * 32 + 5] * scales[69] - key[d]).abs() <= 16.0 / 127.0
                        && block[d * 32 + 4] == 0.0
                );
                assert!((values[69 * 32 + d] * scales[PAGE + 69] - value[d]).abs() <= 0.5001, "{kv}");
            }
            assert!(numbers(other)[0].iter().all(|&element| element == 0.0));
        }
    }
}
