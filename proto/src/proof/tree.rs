//! The tree over output lines, of the shape of RFC 6962 (Certificate Transparency) with BLAKE3 in place of SHA-256.

use crate::digest::Digest;

/// Which file of a batch holds a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    Output,
    Error,
}

/// A node is never taken for a leaf: their digests begin with different bytes.
const LEAF: u8 = 0;
const NODE: u8 = 1;

/// The digest of the output line for this line of the input (from 1), without its line end.
pub fn leaf(line: u32, file: File, text: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let file = match file {
        File::Output => b'o',
        File::Error => b'e',
    };
    hasher.update(&[LEAF]).update(&line.to_le_bytes()).update(&[file]).update(text);
    Digest(*hasher.finalize().as_bytes())
}

/// The tree as its leaves come. It holds one digest for each power of two in their number.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    leaves: u64,
    /// Roots of the whole subtrees, the largest first.
    peaks: Vec<Digest>,
}

impl Tree {
    pub fn push(&mut self, leaf: Digest) {
        let mut top = leaf;
        // Two subtrees of one size make the next larger one.
        for _ in 0..self.leaves.trailing_ones() {
            let Some(left) = self.peaks.pop() else { break };
            top = node(left, top);
        }
        self.peaks.push(top);
        self.leaves += 1;
    }

    /// The root over all leaves so far; that of no leaves is the digest of nothing.
    pub fn root(&self) -> Digest {
        let mut peaks = self.peaks.iter().rev();
        let Some(&last) = peaks.next() else { return Digest::of(&[]) };
        peaks.fold(last, |right, &left| node(left, right))
    }
}

fn node(left: Digest, right: Digest) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[NODE]).update(&left.0).update(&right.0);
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of RFC 6962: split at the largest power of two below the number of leaves.
    fn defined(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Digest::of(&[]),
            [one] => *one,
            many => {
                let left = many.len().next_power_of_two() / 2;
                node(defined(&many[..left]), defined(&many[left..]))
            }
        }
    }

    #[test]
    fn the_root_is_the_one_that_the_rfc_defines() {
        let leaves: Vec<Digest> = (0..70u32).map(|n| leaf(n, File::Output, b"x")).collect();
        let mut tree = Tree::default();
        for n in 0..=leaves.len() {
            assert_eq!(tree.root(), defined(&leaves[..n]), "{n} leaves");
            leaves.get(n).into_iter().for_each(|&leaf| tree.push(leaf));
        }
    }

    #[test]
    fn a_leaf_says_its_line_and_its_file() {
        let one = leaf(1, File::Output, b"x");
        assert_ne!(one, leaf(2, File::Output, b"x"));
        assert_ne!(one, leaf(1, File::Error, b"x"));
        assert_ne!(one, leaf(1, File::Output, b"y"));
    }
}
