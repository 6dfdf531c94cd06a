//! The byte-level alphabet: each of the 256 bytes has a printable character that stands for it in tokens.

use crate::Error;

/// GPT-2's alphabet: visible Latin-1 characters stand for themselves, the rest for U+0100 and up, in order.
pub(super) fn alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("because at most 68 characters after U+0100 are used")
        }
    })
}

/// What each token writes, as bytes, in one buffer; and the way from bytes to the alphabet.
#[derive(Debug)]
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// Token `id` has the bytes `ends[id]..ends[id + 1]`.
    ends: Vec<u32>,
    alphabet: [char; 256],
    /// Bytes whose character is no token: text with them cannot be written by this vocabulary.
    missing: [bool; 256],
}

impl TokenBytes {
    /// Turns tokens back into the bytes that they stand for. A token with a character outside the alphabet
    /// stands for its own UTF-8.
    pub(super) fn new<'a>(
        tokens: impl IntoIterator<Item = &'a str>,
        is_token: impl Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let alphabet = alphabet();
        let mut byte_of = [None; 0x144];
        let mut missing = [false; 256];
        for (byte, &character) in alphabet.iter().enumerate() {
            byte_of[character as usize] = Some(byte as u8);
            missing[byte] = !is_token(character.encode_utf8(&mut [0; 4]));
        }
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for token in tokens {
            let start = bytes.len();
            for character in token.chars() {
                match byte_of.get(character as usize).copied().flatten() {
                    Some(byte) => bytes.push(byte),
                    None => {
                        bytes.truncate(start);
                        bytes.extend_from_slice(token.as_bytes());
                        break;
                    }
                }
            }
            let end = u32::try_from(bytes.len());
            ends.push(end.map_err(|_| Error::Vocabulary("its tokens take more than 4 GiB".into()))?);
        }
        Ok(Self { bytes, ends, alphabet, missing })
    }

    /// What each token of a vocabulary without the alphabet writes.
    pub(super) fn plain(texts: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, Error> {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for text in texts {
            bytes.extend(text);
            let end = u32::try_from(bytes.len());
            ends.push(end.map_err(|_| Error::Vocabulary("its tokens take more than 4 GiB".into()))?);
        }
        Ok(Self { bytes, ends, alphabet: alphabet(), missing: [false; 256] })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len() - 1
    }

    pub(super) fn of(&self, id: u32) -> &[u8] {
        match self.ends.get(id as usize..(id as usize).saturating_add(2)) {
            Some(&[start, end]) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// `text` in the alphabet.
    pub(super) fn spell(&self, text: &str) -> Result<String, Error> {
        let mut spelled = String::with_capacity(text.len() * 2);
        for byte in text.bytes() {
            if self.missing[usize::from(byte)] {
                return Err(Error::Text(format!("the vocabulary has no token for the byte {byte:#04x}")));
            }
            spelled.push(self.alphabet[usize::from(byte)]);
        }
        Ok(spelled)
    }
}
