//! Which tokens may come next.

use llguidance::toktrie::SimpleVob;

/// Sets of at most this many tokens are lists as well, so that nobody looks at all the others.
const LISTED: usize = 2048;

/// A set of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// One bit a token.
    words: Box<[u32]>,
    listed: Option<Box<[u32]>>,
}

impl Mask {
    /// The set of one token, of a vocabulary of `n_vocab`.
    pub(super) fn one(token: u32, n_vocab: usize) -> Mask {
        let mut words = vec![0; n_vocab.div_ceil(32)].into_boxed_slice();
        words[token as usize / 32] |= 1 << (token % 32);
        Mask { words, listed: Some(Box::new([token])) }
    }

    pub(super) fn new(set: &SimpleVob) -> Mask {
        let listed = (set.num_set() <= LISTED).then(|| set.to_list().into_boxed_slice());
        Mask { words: set.as_slice().into(), listed }
    }

    /// Whether `token` is in it.
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Its tokens, ascending, if they are few.
    pub fn few(&self) -> Option<&[u32]> {
        self.listed.as_deref()
    }
}
