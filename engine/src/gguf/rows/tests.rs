use proptest::prelude::*;

use super::*;

/// A Q6_K block and a Q8_0 block of random bytes; the values were computed by the `gguf` Python package.
const Q6K: &str = "f8c2becf931aed15f5d3ef2d059d9f3c36ec6d2ec75220cd240786de399208950e0f160a90d0181807290b553b68e16ee2c9089f1a1b\
    a37a2129c94346a6e42832b300b1893f0dbcff405e08089c191d9d92be73db872764ed7f48e3a815498410998c6b50a33d6e2fe594aa616e389\
    64ac13e2ceeefe2bc0ecdb9c149eecdf4a06e44c94f68c14858c5ea51943007a695287ea628363bb20d9987de3bbfef4ac19a52f073a76100b9\
    d2b0134cb134f96d5ea2f1c505644c32f7a623fa62615067c1080b3d2d47e41d5aa4a9093dcd954c22";
const Q8_0: &str = "d929a7787351ba306b7bf5c5347b777986c1c4077f5621411daafbb427370b85a171";

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<u8> = hexadecimal.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// FNV-1a over the floats' bits, a word at a time.
fn digest(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, value| {
        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01b3)
    })
}

#[test]
fn q6_k_widens_as_ggml_does() {
    let mut row = [0.0; 256];
    dequantise(Kind::Q6K, &bytes_of(Q6K), &mut row);
    assert_eq!([row[0], row[1], row[255]], [-30.4021, 2.5335083, 1.3159485]);
    assert_eq!(digest(&row), 0xdbf2_cec4_4354_407d);
}

#[test]
fn q8_0_widens_as_ggml_does() {
    let mut row = [0.0; 32];
    dequantise(Kind::Q8_0, &bytes_of(Q8_0), &mut row);
    assert_eq!([row[0], row[31]], [-4.0659485, 5.162384]);
    assert_eq!(digest(&row), 0x5c8c_8ef1_2689_3be5);
}

#[test]
fn bf16_is_the_upper_half_of_an_f32() {
    let mut row = [0.0; 4];
    dequantise(Kind::BF16, &[0x80, 0x3f, 0x20, 0xc0, 0x01, 0x00, 0x49, 0x40], &mut row);
    assert_eq!(row, [1.0, -2.5, f32::from_bits(0x0001_0000), 3.140625]);
}

#[test]
fn every_half_widens_exactly_and_comes_back() {
    assert_eq!(f16_to_f32(0x3c00), 1.0);
    assert_eq!(f16_to_f32(0x0001), 2f32.powi(-24));
    assert_eq!(f16_to_f32(0x83ff), -1023.0 * 2f32.powi(-24));
    assert_eq!(f16_to_f32(0x7bff), 65504.0);
    assert_eq!(f16_to_f32(0xfc00), f32::NEG_INFINITY);
    for half in 0..=u16::MAX {
        let wide = f16_to_f32(half);
        if wide.is_nan() {
            assert!(f16_to_f32(f32_to_f16(wide)).is_nan());
        } else {
            assert_eq!(f32_to_f16(wide), half);
        }
    }
}

#[test]
fn narrowing_rounds_ties_to_even_and_overflows_to_infinity() {
    for half in 0..0x7c00u16 {
        let (low, high) = (f64::from(f16_to_f32(half)), f64::from(f16_to_f32(half + 1)));
        let high = if half == 0x7bff { 65536.0 } else { high };
        let middle = ((low + high) / 2.0) as f32; // exact: one more bit than a half has
        let even = half + (half & 1);
        assert_eq!(f32_to_f16(middle), even, "{middle}");
        assert_eq!(f32_to_f16(middle.next_down()), half, "{middle}");
        assert_eq!(f32_to_f16(middle.next_up()), half + 1, "{middle}");
        assert_eq!(f32_to_f16(-middle), even | 0x8000, "{middle}");
    }
    assert_eq!(f32_to_f16(f32::MAX), 0x7c00);
}

#[test]
fn rows_are_cut_out_of_a_matrix() {
    let data: Vec<u8> = (0..6u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    let tensor = Tensor { name: "m", dims: &[2, 3], kind: Kind::F32, data: &data };
    let mut row = [0.0; 2];
    read(&tensor, 2, &mut row);
    assert_eq!(row, [4.0, 5.0]);
    assert_eq!(bytes(&tensor, 3), None);
    assert_eq!(bytes(&tensor, usize::MAX), None);
    assert_eq!(bytes_of_row(Kind::Q8_0, 33), None);
    assert_eq!(bytes_of_row(Kind::I2S, 128), None);
}

proptest! {
    #[test]
    fn narrowing_never_misses_the_nearest_half(value in -70000f32..70000.0) {
        let half = f32_to_f16(value);
        let error = |half: u16| (f64::from(f16_to_f32(half)) - f64::from(value)).abs();
        prop_assert!(error(half) <= error(half.wrapping_add(1)) && error(half) <= error(half.wrapping_sub(1)) || half & 0x7fff == 0x7c00);
    }
}
