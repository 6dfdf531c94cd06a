use super::*;

fn row(n: usize, width: usize, seed: u64) -> Row {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    Row {
        codes: (0..n).map(|_| (next() % 3) as u8).collect(),
        scales: (0..n / width).map(|block| 0.5 + block as f32 / 64.0).collect(),
    }
}

const KINDS: [(Kind, usize); 8] = [
    (Kind::TQ1_0, 256),
    (Kind::TQ2_0, 256),
    (Kind::Q2_0, 64),
    (Kind::Q2_0Old, 128),
    (Kind::PQ2_0, 128),
    (Kind::PTQ1_0, 128),
    (Kind::IQ1BN, 512),
    (Kind::IQ2BN, 512),
];

#[test]
fn rows_of_every_type_come_back() {
    for (kind, width) in KINDS {
        let rows = [row(512, width, 1), row(512, width, 2)];
        let data: Vec<u8> = rows.iter().flat_map(|row| encode(kind, row)).collect();
        let tensor = Tensor { name: "t", dims: &[512, 2], kind, data: &data };
        let mut found = Row::default();
        for (index, expected) in rows.iter().enumerate() {
            read(&tensor, index, &mut found).unwrap();
            assert_eq!(found, *expected, "{kind}");
        }
        assert_eq!(check(&tensor), Ok(()));
    }
}

#[test]
fn every_byte_holds_five_digits_in_base_three() {
    for value in 0..243u32 {
        let byte = (256 * value).div_ceil(243) as u8;
        let digits: u32 = (0..5).map(|n| u32::from(digit(byte, n)) * 3u32.pow(4 - n as u32)).sum();
        assert_eq!(digits, value);
    }
    assert!((0..=255).all(|byte| (0..5).all(|n| digit(byte, n) < 3)), "no byte is invalid");
}

#[test]
fn scales_are_taken_together_where_they_are_equal_and_never_averaged() {
    let scales = |scales: &[f32]| Row { codes: vec![1; 64 * scales.len()], scales: scales.to_vec() };
    assert_eq!(scales(&[0.5, 0.0, 0.5, 0.5]).scale(0), Ok(0.5));
    assert_eq!(scales(&[0.0, 0.0]).scale(0), Ok(0.0));
    let unequal = Fault::Unequal { row: 3, scales: [0.5, 0.25], width: 128 };
    assert_eq!(scales(&[0.5, 0.25]).scale(3), Err(unequal.clone()));
    let mut groups = [0; 2];
    assert_eq!(scales(&[0.5, 0.5, 0.0, 0.25]).group_scales(3, &mut groups), Ok(()));
    assert_eq!(groups.map(f16_to_f32), [0.5, 0.25]);
    assert_eq!(scales(&[1.0, 1.0, 0.5, 0.25]).group_scales(3, &mut groups), Err(unequal));
    let wide = Row { codes: vec![1; 256], scales: vec![0.1] };
    assert_eq!(wide.group_scales(0, &mut groups), Err(Fault::NoHalf { row: 0, scale: 0.1 }));
}

#[test]
fn a_block_without_scale_is_zero_whatever_its_codes() {
    let mut zeros = row(256, 64, 5);
    zeros.scales[1] = 0.0;
    let mut data = encode(Kind::Q2_0, &zeros);
    data[18 + 2] = 0xff; // code 3, in the block that is zero
    let tensor = Tensor { name: "t", dims: &[256, 1], kind: Kind::Q2_0, data: &data };
    let mut found = Row::default();
    read(&tensor, 0, &mut found).unwrap();
    assert!(found.codes[64..128].iter().all(|&code| code == 1));
    assert_eq!(found.codes[..64], zeros.codes[..64]);
}

#[test]
fn code_three_and_scales_that_are_no_numbers_are_named() {
    let mut data = encode(Kind::PQ2_0, &row(256, 128, 7));
    data[34 + 2] = 0b11_01_01_01;
    let check = |data: &[u8]| check(&Tensor { name: "t", dims: &[256, 1], kind: Kind::PQ2_0, data });
    assert_eq!(check(&data), Err(Fault::CodeThree { row: 0, weight: 131 }));
    data[34..36].copy_from_slice(&0x7c00u16.to_le_bytes());
    assert_eq!(check(&data), Err(Fault::Scale { row: 0, scale: f32::INFINITY }));
}
