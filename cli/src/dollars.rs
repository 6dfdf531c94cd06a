//! Sums of money as people write them on a command line.

use ternfleet_proto::UsdMicro;

/// `0.50`, `$2`: more than nothing.
pub(crate) fn parse(text: &str) -> Result<UsdMicro, String> {
    let least = UsdMicro(1).dollars();
    match text.trim_start_matches('$').parse::<f64>() {
        Ok(usd) if (least..=1e9).contains(&usd) => Ok(UsdMicro::from_dollars(usd)),
        _ => Err("expected an amount in dollars above 0, such as 0.50".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_dollars_above_nothing() {
        assert_eq!(parse("0.50"), Ok(UsdMicro(500_000)));
        assert_eq!(parse("$2"), Ok(UsdMicro(2_000_000)));
        for wrong in ["", "0", "-3", "much", "inf", "nan", "1e12"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
