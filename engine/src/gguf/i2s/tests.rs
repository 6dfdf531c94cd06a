use proptest::prelude::*;

use super::*;

/// Where the format puts weight `index`, written down the slow way.
fn place(index: usize) -> (usize, u32) {
    let (block, place) = (index / 128, index % 128);
    (block * 32 + place % 32, 6 - 2 * (place as u32 / 32))
}

#[test]
fn a_block_is_laid_out_as_bitnet_cpp_writes_it() {
    let mut weights = [0i8; 128];
    (weights[0], weights[32], weights[64], weights[96]) = (1, -1, 0, 1);
    let bytes = encode(&weights, 0.5);
    assert_eq!(bytes[0], 0b10_00_01_10);
    assert!(bytes[1..32].iter().all(|&byte| byte == 0b01_01_01_01));
    assert_eq!(scale(&bytes, 128), Some(0.5));
    assert_eq!(bytes.len(), 64);
}

#[test]
fn a_code_three_is_found_wherever_it_hides() {
    for n in [128, 4096 * 4, 4096 * 4 + 128, 4096 * 12 + 640] {
        let clean = encode(&vec![1; n], 1.0);
        assert_eq!(check(&clean, n), Ok(()));
        for index in [0, 1, 31, 32, 127, n / 2, n - 1] {
            let mut bytes = clean.clone();
            let (byte, shift) = place(index);
            bytes[byte] |= 3 << shift;
            assert_eq!(check(&bytes, n), Err(Fault::CodeThree { index }));
        }
    }
}

#[test]
fn what_follows_the_codes_is_not_read_as_codes() {
    let mut bytes = encode(&[0; 256], 1.0);
    bytes[64..].fill(0xff);
    assert_eq!(check(&bytes, 256), Ok(()));
}

#[test]
fn lengths_that_do_not_fit_are_faults() {
    let bytes = encode(&[0; 128], 1.0);
    assert_eq!(check(&bytes, 129), Err(Fault::Length { bytes: 64, n: 129 }));
    assert_eq!(check(&bytes, 512), Err(Fault::Length { bytes: 64, n: 512 }));
    assert_eq!(scale(&bytes, 256), None);
    assert_eq!(scale(&bytes, usize::MAX), None);
}

proptest! {
    #[test]
    fn codes_come_back(weights in prop::collection::vec(-1i8..=1, 1..5usize), n_blocks in 1..4usize) {
        let weights: Vec<i8> = weights.iter().copied().cycle().take(n_blocks * 128).collect();
        let bytes = encode(&weights, 1.0);
        for (index, &weight) in weights.iter().enumerate() {
            prop_assert_eq!(i32::from(code(&bytes, index)) - 1, i32::from(weight));
        }
    }
}
