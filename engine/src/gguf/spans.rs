//! Types of different projects with the same number: the distance between a tensor and the next one decides.
//!
//! A GGUF contains neither the byte length of a tensor nor the origin of its type. A type is chosen only if every tensor
//! with that number has exactly the size that the type needs. Otherwise the file is rejected.

use std::collections::BTreeMap;

use super::container::Row;
use super::{Error, Kind};

/// Resolves the types of all rows with shared numbers; `end` is where the data ends, from its start.
pub(super) fn resolve(rows: &mut [Row], end: u64, alignment: u64) -> Result<(), Error> {
    let mut offsets: Vec<u64> = rows.iter().map(|row| row.offset).collect();
    offsets.sort_unstable();
    // By number, the candidates that are left.
    let mut left: BTreeMap<u32, Vec<Kind>> = BTreeMap::new();
    for row in rows.iter() {
        let id = row.kind.id();
        let candidates = Kind::candidates(id);
        if candidates.is_empty() {
            continue;
        }
        let next = offsets.get(offsets.partition_point(|&offset| offset <= row.offset)).copied();
        let span = next.unwrap_or(end).saturating_sub(row.offset);
        let n_rows = row.dims[1..].iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let fits = |kind: &Kind| {
            let need = kind.tensor_bytes(row.dims[0], n_rows?)?;
            let whole = need.checked_next_multiple_of(alignment)?;
            // The last tensor of a file need not be padded.
            Some(span == whole || next.is_none() && (need..=whole).contains(&span))
        };
        let left = left.entry(id).or_insert_with(|| candidates.to_vec());
        let fitting: Vec<Kind> = left.iter().copied().filter(|kind| fits(kind).unwrap_or(false)).collect();
        if fitting.is_empty() {
            let tried: Vec<String> = left.iter().map(ToString::to_string).collect();
            let reason = format!(
                "type {id} of {:?} has {span} bytes, which does not match {}; several types use this \
                 number, and all tensors with it must have the same type",
                row.dims,
                tried.join(" or ")
            );
            return Err(Error::unsupported(format!("tensor '{}'", row.name.escape_debug()), reason));
        }
        *left = fitting;
    }
    for row in rows {
        if let Some(left) = left.get(&row.kind.id()) {
            row.kind = left[0];
        }
    }
    Ok(())
}
