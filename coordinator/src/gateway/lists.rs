//! What all lists take: `limit` and `order`.

use super::error::{ApiError, ApiResult};

/// Entries of a page: `usual` unless given, from 1 to `most`.
pub(super) fn limit(given: Option<&str>, usual: usize, most: usize) -> ApiResult<usize> {
    let Some(given) = given else { return Ok(usual) };
    let limit = given.parse::<usize>().ok().filter(|limit| (1..=most).contains(limit));
    limit.ok_or_else(|| {
        ApiError::invalid(format!("`limit` must be a whole number from 1 to {most}, not {given:?}."))
            .about("limit")
    })
}

/// `order`: newest first unless `asc` is asked for.
pub(super) fn is_ascending(given: Option<&str>) -> ApiResult<bool> {
    match given {
        None | Some("desc") => Ok(false),
        Some("asc") => Ok(true),
        Some(other) => {
            let message = format!("`order` must be \"asc\" or \"desc\", not {other:?}.");
            Err(ApiError::invalid(message).about("order"))
        }
    }
}

/// `order` of a list that is there with the newest first alone.
pub(super) fn newest_first(given: Option<&str>) -> ApiResult<()> {
    match is_ascending(given)? {
        false => Ok(()),
        true => {
            Err(ApiError::invalid("`order` \"asc\" is not supported: the list is newest first.")
                .about("order"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_nothing_and_one_beyond_the_page_are_refused() {
        assert_eq!(limit(None, 20, 100).unwrap(), 20);
        assert_eq!((limit(Some("1"), 20, 100).unwrap(), limit(Some("100"), 20, 100).unwrap()), (1, 100));
        for bad in ["0", "101", "-1", "x", "", "1.5"] {
            assert_eq!(limit(Some(bad), 20, 100).unwrap_err().body()["error"]["param"], "limit", "{bad}");
        }
        assert!(is_ascending(Some("asc")).unwrap() && !is_ascending(None).unwrap());
        assert!(is_ascending(Some("newest")).is_err());
        assert!(newest_first(Some("desc")).is_ok() && newest_first(Some("asc")).is_err());
    }
}
