//! The paged cache of keys and values: pages of 128 positions in half precision, counted by reference.
//!
//! Within a page each layer and head has its keys transposed, (4, head_dim, 32), then its values, (128, head_dim); see
//! `kernel/attention.rs` for why. Which sequence holds which pages is `engine`'s affair.
#![allow(unsafe_code)] // Members of the pool write disjoint heads of one region.

use crate::gguf::Hyper;
use crate::kernel::{KEY_BLOCK, PAGE, prefetch};
use crate::memory::Region;

/// One page's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PageId(pub(crate) u32);

/// All pages, and who holds them.
#[derive(Debug)]
pub(crate) struct Cache {
    region: Region,
    n_heads: usize,
    /// With padding.
    head_dim: usize,
    page_len: usize,
    references: Vec<u32>,
    free: Vec<PageId>,
}

/// Bytes of one page of a model.
pub(crate) fn page_bytes(hyper: &Hyper) -> u64 {
    (hyper.n_layers * 2 * hyper.n_kv_heads * hyper.head_stride() * PAGE * size_of::<u16>()) as u64
}

impl Cache {
    /// `n_pages` empty pages; they take memory when first used.
    pub(crate) fn new(hyper: &Hyper, n_pages: usize, huge_pages: bool) -> std::io::Result<Cache> {
        let bytes = usize::try_from(page_bytes(hyper))
            .ok()
            .and_then(|bytes| bytes.checked_mul(n_pages))
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Cache {
            region: Region::new(bytes, huge_pages)?,
            n_heads: hyper.n_kv_heads,
            head_dim: hyper.head_stride(),
            page_len: page_bytes(hyper) as usize / size_of::<u16>(),
            references: vec![0; n_pages],
            free: (0..n_pages as u32).rev().map(PageId).collect(),
        })
    }

    pub(crate) fn n_pages(&self) -> usize {
        self.references.len()
    }

    pub(crate) fn n_free(&self) -> usize {
        self.free.len()
    }

    /// A free page, held once.
    pub(crate) fn take(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.references[page.0 as usize] = 1;
        Some(page)
    }

    /// One more holder of a page that is held.
    pub(crate) fn share(&mut self, page: PageId) {
        let references = &mut self.references[page.0 as usize];
        assert!(*references > 0, "a page that nobody holds cannot be shared");
        *references += 1;
    }

    /// One holder less; the last one frees the page.
    pub(crate) fn release(&mut self, page: PageId) {
        let references = &mut self.references[page.0 as usize];
        assert!(*references > 0, "a page is released as often as it was taken");
        *references -= 1;
        if *references == 0 {
            self.free.push(page);
        }
    }

    /// Holders of a page.
    pub(crate) fn holders(&self, page: PageId) -> u32 {
        self.references[page.0 as usize]
    }

    fn start(&self, page: PageId, layer: usize, head: usize) -> usize {
        page.0 as usize * self.page_len + (layer * self.n_heads + head) * 2 * PAGE * self.head_dim
    }

    /// Keys (4, head_dim, 32) and values (128, head_dim) of one head of one page.
    ///
    /// # Safety
    /// No other thread writes this head of this page while the result lives.
    pub(crate) unsafe fn read(&self, page: PageId, layer: usize, head: usize) -> (&[u16], &[u16]) {
        let (start, half) = (self.start(page, layer, head), PAGE * self.head_dim);
        // SAFETY: the caller answers for other threads.
        unsafe { self.region.read(start..start + 2 * half) }.split_at(half)
    }

    /// Where the keys of one head of one page begin.
    pub(crate) fn place(&self, page: PageId, layer: usize, head: usize) -> *const u16 {
        self.region.element(self.start(page, layer, head))
    }

    /// Asks for the cache lines that [`Cache::write`] will write to.
    pub(crate) fn prefetch(&self, page: PageId, layer: usize, head: usize, slot: usize) {
        let block_len = KEY_BLOCK * self.head_dim;
        let keys = self.place(page, layer, head);
        prefetch(keys.wrapping_add(slot / KEY_BLOCK * block_len), block_len * size_of::<u16>());
        prefetch(keys.wrapping_add((PAGE + slot) * self.head_dim), self.head_dim * size_of::<u16>());
    }

    /// Writes one position of one head; other positions may be written by other threads meanwhile.
    ///
    /// # Safety
    /// No other thread touches this position, and none reads this head of this page meanwhile.
    pub(crate) unsafe fn write(
        &self,
        page: PageId,
        layer: usize,
        head: usize,
        slot: usize,
        key: &[u16],
        value: &[u16],
    ) {
        assert!(slot < PAGE && key.len() == self.head_dim && value.len() == self.head_dim);
        let (start, half) = (self.start(page, layer, head), PAGE * self.head_dim);
        // The last element of the head is checked to be in the region; all others are before it.
        self.region.element::<u16>(start + 2 * half - 1);
        let block = slot / KEY_BLOCK * KEY_BLOCK * self.head_dim;
        let keys = self.region.element::<u16>(start + block + slot % KEY_BLOCK);
        let values = self.region.element::<u16>(start + half + slot * self.head_dim);
        // SAFETY: in bounds by the checks above; the elements are this position's, which the caller says is untouched.
        unsafe {
            for (d, &element) in key.iter().enumerate() {
                keys.add(d * KEY_BLOCK).write(element);
            }
            values.copy_from_nonoverlapping(value.as_ptr(), self.head_dim);
        }
    }
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
    fn a_page_is_free_again_when_its_last_holder_lets_go() {
        let mut cache = Cache::new(&hyper(), 2, false).unwrap();
        let page = cache.take().unwrap();
        cache.share(page);
        cache.release(page);
        assert_eq!((cache.n_free(), cache.holders(page)), (1, 1));
        cache.release(page);
        assert_eq!(cache.n_free(), 2);
        assert!(cache.take().is_some() && cache.take().is_some() && cache.take().is_none());
    }

    #[test]
    fn what_is_written_is_read_at_its_place_and_nowhere_else() {
        let mut cache = Cache::new(&hyper(), 2, false).unwrap();
        let page = cache.take().unwrap();
        let (key, value): (Vec<u16>, Vec<u16>) = ((1..33).collect(), (101..133).collect());
        // SAFETY: one thread.
        unsafe {
            cache.write(page, 1, 1, 69, &key, &value);
            let (keys, values) = cache.read(page, 1, 1);
            let block = &keys[2 * 32 * 32..];
            assert!((0..32).all(|d| block[d * 32 + 5] == key[d] && block[d * 32 + 4] == 0));
            assert_eq!(&values[69 * 32..70 * 32], &value);
            assert!(cache.read(page, 1, 0).0.iter().all(|&element| element == 0));
        }
    }
}
