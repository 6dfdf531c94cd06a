use proptest::prelude::*;

use super::*;

fn streamed(pieces: &[&[u8]]) -> Vec<String> {
    let mut stream = Stream::new();
    let mut texts: Vec<String> = pieces.iter().map(|piece| stream.push_bytes(piece)).collect();
    texts.push(stream.finish());
    texts
}

#[test]
fn a_character_comes_out_when_its_last_byte_is_in() {
    assert_eq!(streamed(&[b"a\xf0", b"\x9f", b"\x8c", b"\x8db"]), ["a", "", "", "🌍b", ""]);
}

#[test]
fn a_character_that_never_ends_becomes_a_replacement_at_the_end() {
    assert_eq!(streamed(&[b"a\xe2\x82"]), ["a", "\u{fffd}"]);
}

#[test]
fn bytes_that_begin_no_character_do_not_hold_up_the_rest() {
    assert_eq!(streamed(&[b"\xff", b"\xe2(", b"ok"]), ["\u{fffd}", "\u{fffd}(", "ok", ""]);
}

proptest! {
    #[test]
    fn a_stream_says_what_decoding_at_once_says(
        pieces in prop::collection::vec(prop::collection::vec(prop::sample::select(
            &[b'a', 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x8c, 0x8d, 0xff, 0xed, 0xa0, 0x80][..]), 0..5), 0..8)
    ) {
        let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let whole = pieces.concat();
        prop_assert_eq!(streamed(&slices).concat(), String::from_utf8_lossy(&whole));
    }
}
