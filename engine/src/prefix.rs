//! Pages of prompts that were computed before, found again by their token ids: batches share system prompts.
//!
//! A tree: each node is one full page, below the page before it, keyed by its own 128 ids exactly (no hash decides what is
//! the same). The tree holds each of its pages once; a page that only the tree holds may be given up, leaves first, the
//! longest unused first. Results do not change: the bits of a position depend on its id and those before it alone.
//!
//! A prompt that differs within a page has its beginning from a copy of the page. For this the page in which a longer
//! prompt ends is kept, too: its sequence writes behind that end alone, and nobody reads there.

use crate::kernel::PAGE;
use crate::kv::{PageId, Pages};
use std::collections::{BTreeMap, BTreeSet};

/// A beginning of a page that is shorter than this is computed, not copied.
const COPIED_MIN: usize = 16;

/// The beginning of a prompt, as far as it was computed before. All pages are shared with whoever asked.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Known {
    pub(crate) pages: Vec<PageId>,
    /// A page to be copied, and how many of its first positions are those that follow.
    pub(crate) begun: Option<(PageId, usize)>,
}

/// A node's number; the root has none.
type Node = Option<u64>;

#[derive(Debug)]
struct Entry {
    node: u64,
    page: PageId,
    used: u64,
    n_children: usize,
}

/// All pages that are kept.
#[derive(Debug, Default)]
pub(crate) struct Prefix {
    entries: BTreeMap<(Node, Vec<u32>), Entry>,
    next_node: u64,
    clock: u64,
}

impl Prefix {
    /// What is known of the beginning of `tokens`; at least one token is left to compute.
    pub(crate) fn find(&mut self, tokens: &[u32], cache: &mut Pages) -> Known {
        self.clock += 1;
        let mut pages = Vec::new();
        let mut parent: Node = None;
        let tokens = &tokens[..tokens.len().saturating_sub(1)];
        for ids in tokens.chunks_exact(PAGE) {
            let Some(entry) = self.entries.get_mut(&(parent, ids.to_vec())) else { break };
            entry.used = self.clock;
            cache.share(entry.page);
            pages.push(entry.page);
            parent = Some(entry.node);
        }
        let rest = tokens[pages.len() * PAGE..].chunks(PAGE).next().unwrap_or_default();
        let begun = self.most_alike(parent, rest);
        begun.iter().for_each(|(page, _)| cache.share(*page));
        Known { pages, begun }
    }

    /// The page below `parent` that begins with most of `ids`, and with how many.
    fn most_alike(&mut self, parent: Node, ids: &[u32]) -> Option<(PageId, usize)> {
        // In the order of keys it stands beside the place where `ids` would be.
        let place = (parent, ids.to_vec());
        let below = self.entries.range(..&place).next_back();
        let neighbours = below.into_iter().chain(self.entries.range(&place..).next());
        let alike =
            |key: &(Node, Vec<u32>)| key.1.iter().zip(ids).take_while(|(one, other)| one == other).count();
        let (n, key) = neighbours
            .filter(|(key, _)| key.0 == parent)
            .map(|(key, _)| (alike(key), key.clone()))
            .filter(|(n, _)| *n >= COPIED_MIN)
            .max_by_key(|(n, _)| *n)?;
        let entry = self.entries.get_mut(&key)?;
        entry.used = self.clock;
        Some((entry.page, n))
    }

    /// How many pages of the beginning of `tokens` are here.
    pub(crate) fn n_known(&self, tokens: &[u32]) -> usize {
        let mut parent: Node = None;
        let known = |ids: &[u32]| {
            parent = self.entries.get(&(parent, ids.to_vec())).map(|entry| entry.node);
            parent.is_some()
        };
        tokens.chunks_exact(PAGE).map(known).take_while(|known| *known).count()
    }

    /// Keeps the pages of a computed prompt: the full ones, and the one below them in which it ends.
    pub(crate) fn keep(&mut self, tokens: &[u32], pages: &[PageId], cache: &mut Pages) {
        self.clock += 1;
        let mut parent: Node = None;
        let mut parent_key: Option<(Node, Vec<u32>)> = None;
        for (ids, &page) in tokens.chunks(PAGE).zip(pages) {
            if ids.len() < PAGE && (parent.is_none() || ids.len() < COPIED_MIN) {
                break;
            }
            let key = (parent, ids.to_vec());
            if !self.entries.contains_key(&key) {
                self.next_node += 1;
                cache.share(page);
                let entry = Entry { node: self.next_node, page, used: self.clock, n_children: 0 };
                self.entries.insert(key.clone(), entry);
                if let Some(above) = parent_key.as_ref().and_then(|key| self.entries.get_mut(key)) {
                    above.n_children += 1;
                }
            }
            let Some(entry) = self.entries.get_mut(&key) else { break };
            entry.used = self.clock;
            parent = Some(entry.node);
            parent_key = Some(key);
        }
    }

    /// Pages that could be given up: those that only the tree holds and that are above none in use. A sequence may use a
    /// page below one that it does not use itself, where another one computed the same beginning at the same time.
    pub(crate) fn n_reclaimable(&self, cache: &Pages) -> usize {
        let parents: BTreeMap<u64, Node> =
            self.entries.iter().map(|((parent, _), entry)| (entry.node, *parent)).collect();
        let mut kept = BTreeSet::new();
        for entry in self.entries.values().filter(|entry| cache.holders(entry.page) > 1) {
            let mut node = Some(entry.node);
            while let Some(above) = node.filter(|&node| kept.insert(node)) {
                node = parents.get(&above).copied().flatten();
            }
        }
        self.entries.len() - kept.len()
    }

    /// Gives pages up until `n_free` are free; false if it cannot, and then it gives none.
    pub(crate) fn reclaim(&mut self, n_free: usize, cache: &mut Pages) -> bool {
        if cache.n_free() < n_free && cache.n_free() + self.n_reclaimable(cache) < n_free {
            return false;
        }
        while cache.n_free() < n_free {
            let leaves = self.entries.iter().filter(|(_, e)| e.n_children == 0 && cache.holders(e.page) == 1);
            let Some(key) = leaves.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone()) else {
                return false;
            };
            if let Some(entry) = self.entries.remove(&key) {
                cache.release(entry.page);
            }
            if let Some(node) = key.0
                && let Some(above) = self.entries.values_mut().find(|entry| entry.node == node)
            {
                above.n_children -= 1;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn prompt(n: usize, last: u32) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..n as u32).collect();
        ids[n - 1] = last;
        ids
    }

    #[test]
    fn a_prompt_is_found_up_to_its_last_full_page_but_never_as_a_whole() {
        let (mut prefix, mut cache) = (Prefix::default(), Pages::new(8));
        let pages: Vec<PageId> = (0..3).filter_map(|_| cache.take()).collect();
        prefix.keep(&prompt(300, 1), &pages, &mut cache);
        let known = |pages: &[PageId], begun| Known { pages: pages.to_vec(), begun };
        let last = Some((pages[2], 43));
        assert_eq!(prefix.find(&prompt(300, 2), &mut cache), known(&pages[..2], last));
        let all_but_one = known(&pages[..1], Some((pages[1], 127)));
        assert_eq!(prefix.find(&prompt(256, 255), &mut cache), all_but_one, "one token must be computed");
        assert_eq!(prefix.find(&prompt(257, 9), &mut cache), known(&pages[..2], None));
        assert_eq!(
            prefix.find(&prompt(272, 9), &mut cache),
            known(&pages[..2], None),
            "too short to be copied"
        );
        assert_eq!(prefix.find(&prompt(128, 5), &mut cache), known(&[], Some((pages[0], 127))));
        assert_eq!(cache.holders(pages[2]), 3, "the sequence, the tree, and who found it");
    }

    #[test]
    fn of_many_pages_the_one_with_the_longest_common_beginning_is_copied() {
        let (mut prefix, mut cache) = (Prefix::default(), Pages::new(40));
        let first = cache.take().unwrap();
        let page_of = |at: usize| {
            let mut ids = prompt(256, 255);
            ids[128 + at..].iter_mut().for_each(|id| *id += 1000 + at as u32);
            ids
        };
        let pages: Vec<(usize, PageId)> = (0..30).map(|n| (n * 4, cache.take().unwrap())).collect();
        for (at, page) in &pages {
            prefix.keep(&page_of(*at), &[first, *page], &mut cache);
        }
        for asked in [17, 40, 63, 116] {
            let found = prefix.find(&page_of(asked), &mut cache).begun.unwrap();
            let wanted = if asked == 40 || asked == 116 { 127 } else { asked };
            assert_eq!(found.1, wanted, "{asked}");
        }
    }

    #[test]
    fn pages_are_given_up_leaves_first_and_only_when_nobody_uses_them() {
        let (mut prefix, mut cache) = (Prefix::default(), Pages::new(3));
        let pages: Vec<PageId> = (0..2).filter_map(|_| cache.take()).collect();
        prefix.keep(&prompt(256, 255), &pages, &mut cache);
        assert_eq!(prefix.n_reclaimable(&cache), 0);
        assert!(!prefix.reclaim(2, &mut cache), "the sequence still holds them");
        pages.iter().for_each(|&page| cache.release(page));
        assert_eq!(prefix.n_reclaimable(&cache), 2);
        assert!(prefix.reclaim(2, &mut cache));
        assert_eq!(
            prefix.find(&prompt(257, 0), &mut cache).pages,
            pages[..1],
            "the leaf went, its parent stayed"
        );
        assert!(!prefix.reclaim(3, &mut cache));
    }

    #[test]
    fn nothing_is_given_up_where_that_does_not_suffice() {
        let (mut prefix, mut cache) = (Prefix::default(), Pages::new(3));
        let pages: Vec<PageId> = (0..3).filter_map(|_| cache.take()).collect();
        prefix.keep(&prompt(256, 255), &pages[..2], &mut cache);
        pages[..2].iter().for_each(|&page| cache.release(page));
        assert!(!prefix.reclaim(3, &mut cache), "one of the three is in use");
        assert_eq!(prefix.find(&prompt(300, 299), &mut cache).pages, pages[..2], "so both are still known");
    }

    #[test]
    fn pages_above_one_in_use_do_not_count() {
        let (mut prefix, mut cache) = (Prefix::default(), Pages::new(5));
        let [a, b, other_a, other_b, c] = std::array::from_fn(|_| cache.take().unwrap());
        prefix.keep(&prompt(256, 255), &[a, b], &mut cache);
        // The same prompt was computed twice at once; the longer one's page stands below the other's.
        prefix.keep(&prompt(384, 383), &[other_a, other_b, c], &mut cache);
        [a, b].iter().for_each(|&page| cache.release(page));
        assert_eq!(prefix.n_reclaimable(&cache), 0);
        assert!(!prefix.reclaim(1, &mut cache));
        [other_a, other_b, c].iter().for_each(|&page| cache.release(page));
        assert_eq!((cache.n_free(), prefix.n_reclaimable(&cache)), (2, 3));
        assert!(prefix.reclaim(5, &mut cache));
    }
}
