//! The mathematical functions that results depend on, written out: those of the C library differ between machines.
//!
//! Plain f64 products and sums, which every machine rounds alike. For tables and single draws; the vector `exp` of
//! attention is in `kernel/lanes.rs`.

const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// e to the power of `x`; 0 below -708, infinite above 709.
pub(crate) fn exp(x: f64) -> f64 {
    if x < -708.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor's series: |r| is below 0.347, so the 14th term is below 1e-17.
    let mut sum = 1.0;
    for k in (1..=14).rev() {
        sum = 1.0 + r / f64::from(k) * sum;
    }
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// The natural logarithm of a positive normal number.
pub(crate) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)); the argument is below 0.172, so eleven terms suffice.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for k in (0..=11).rev() {
        sum = sum * square + 1.0 / f64::from(2 * k + 1);
    }
    let n = exponent as f64;
    n * LN_2_HIGH + (2.0 * s * sum + n * LN_2_LOW)
}

/// Sine and cosine of an angle below some millions.
pub(crate) fn sin_cos(angle: f64) -> (f64, f64) {
    // pi / 2 in two parts, the first with few bits, so that products with small integers are exact.
    const HALF_PI_HIGH: f64 = 1.570_796_326_734_125_6;
    const HALF_PI_LOW: f64 = 6.077_100_506_506_192e-11;
    let quadrant = (angle * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = (angle - quadrant * HALF_PI_HIGH) - quadrant * HALF_PI_LOW;
    let square = r * r;
    let (mut sine, mut cosine) = (1.0, 1.0);
    for k in (1..=9).rev() {
        let even = f64::from(2 * k);
        sine = 1.0 - square / (even * (even + 1.0)) * sine;
        cosine = 1.0 - square / ((even - 1.0) * even) * cosine;
    }
    let (sine, cosine) = (r * sine, cosine);
    match (quadrant as i64).rem_euclid(4) {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_agree_with_the_library_to_a_few_units_in_the_last_place() {
        for i in 1..20_000 {
            let x = f64::from(i) * 0.0173 - 170.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-14, "exp({x})");
            let y = f64::from(i) * 0.37 + 1e-6;
            assert!((ln(y) - y.ln()).abs() <= 1e-15 * y.ln().abs().max(1.0), "ln({y})");
            let (sine, cosine) = sin_cos(y);
            assert!((sine - y.sin()).abs() < 1e-14 && (cosine - y.cos()).abs() < 1e-14, "sin_cos({y})");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }
}
