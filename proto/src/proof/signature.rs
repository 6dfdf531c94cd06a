//! Ed25519 signatures (RFC 8032), as OpenSSL and every other library checks them.

use std::fmt;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// A fleet's key for manifests, 32 random bytes made once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey([u8; 32]);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(hidden)")
    }
}

/// A signature and the key that checks it, both hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    pub ed25519: String,
    /// 32 bytes, as a [`Digest`] is.
    pub public_key: Digest,
}

impl SigningKey {
    pub fn from_seed(seed: [u8; 32]) -> SigningKey {
        SigningKey(seed)
    }

    fn pair(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&self.0).expect("because every 32 bytes are a seed")
    }

    pub fn public(&self) -> Digest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair().public_key().as_ref());
        Digest(bytes)
    }

    pub fn sign(&self, message: &[u8]) -> Signature {
        let pair = self.pair();
        let ed25519 = pair.sign(message).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Signature { ed25519, public_key: self.public() }
    }
}

impl Signature {
    /// True if the key that it names has signed this message.
    pub fn is_of(&self, message: &[u8]) -> bool {
        let byte = |place: usize| u8::from_str_radix(self.ed25519.get(place..place + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..self.ed25519.len()).step_by(2).map(byte).collect();
        let key = UnparsedPublicKey::new(&ED25519, self.public_key.0);
        bytes.is_some_and(|bytes| key.verify(message, &bytes).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_its_message_and_its_key_alone() {
        let key = SigningKey::from_seed([1; 32]);
        let signature = key.sign(b"said");
        assert!(signature.is_of(b"said"));
        assert!(!signature.is_of(b"Said"));
        let other = SigningKey::from_seed([2; 32]).public();
        assert!(!Signature { public_key: other, ..signature.clone() }.is_of(b"said"));
        for ed25519 in ["", "0", "zz", "é"] {
            assert!(!Signature { ed25519: ed25519.into(), ..signature.clone() }.is_of(b"said"));
        }
    }

    #[test]
    fn the_first_vector_of_rfc_8032_holds() {
        let seed: Digest =
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".parse().unwrap();
        let key = SigningKey::from_seed(seed.0);
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(key.public().to_string(), public);
        assert!(key.sign(b"").ed25519.starts_with("e5564300c360ac729086e2cc806e828a"));
    }
}
