//! Who holds which page of keys and values, counted by reference. Where pages are in memory is not known here: that is the
//! affair of whatever computes with them. Used by `engine`, `schedule` and `prefix`.

/// One page's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PageId(pub(crate) u32);

/// All pages, and their holders.
#[derive(Debug)]
pub(crate) struct Pages {
    references: Vec<u32>,
    free: Vec<PageId>,
}

impl Pages {
    pub(crate) fn new(n_pages: usize) -> Pages {
        Pages { references: vec![0; n_pages], free: (0..n_pages as u32).rev().map(PageId).collect() }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_free_again_when_its_last_holder_lets_go() {
        let mut pages = Pages::new(2);
        let page = pages.take().unwrap();
        pages.share(page);
        pages.release(page);
        assert_eq!((pages.n_free(), pages.holders(page)), (1, 1));
        pages.release(page);
        assert_eq!(pages.n_free(), 2);
        assert!(pages.take().is_some() && pages.take().is_some() && pages.take().is_none());
    }
}
