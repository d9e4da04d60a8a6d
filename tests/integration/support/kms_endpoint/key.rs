//! A key of the endpoint.

use std::collections::BTreeMap;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    rand,
};
use uuid::Uuid;

/// HTTP status, exception name and message.
pub(super) type Failure = (u16, &'static str, String);

/// What a key allows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    /// Its policy denies the caller.
    AccessDenied,
}

pub(super) struct Key {
    pub(super) arn: String,
    pub(super) state: KeyState,
    id: [u8; 16],
    kek: RandomizedNonceKey,
}

impl Key {
    const HEADER: [u8; 4] = [1, 2, 2, 0];

    pub(super) fn new(arn: String, id: Uuid) -> Self {
        let mut kek = [0; 32];
        rand::fill(&mut kek).unwrap();
        let kek = RandomizedNonceKey::new(&AES_256_GCM, &kek).unwrap();
        Self { arn, state: KeyState::Enabled, id: id.into_bytes(), kek }
    }

    pub(super) fn check_state(&self) -> Result<(), Failure> {
        let arn = &self.arn;
        let (name, message) = match self.state {
            KeyState::Enabled => return Ok(()),
            KeyState::Disabled => ("DisabledException", format!("{arn} is disabled.")),
            KeyState::PendingDeletion => {
                ("KMSInvalidStateException", format!("{arn} is pending deletion."))
            }
            KeyState::AccessDenied => {
                ("AccessDeniedException", format!("not authorized on resource: {arn}"))
            }
        };
        Err((400, name, message))
    }

    /// The blob, as AWS's do, names the key it belongs to.
    pub(super) fn encrypt(&self, plaintext: &[u8], context: &BTreeMap<String, String>) -> Vec<u8> {
        let mut in_out = plaintext.to_vec();
        let associated_data = Self::associated_data(context);
        let nonce = self.kek.seal_in_place_append_tag(associated_data, &mut in_out).unwrap();
        [&Self::HEADER[..], &self.id, nonce.as_ref(), &in_out].concat()
    }

    pub(super) fn decrypt(
        &self,
        blob: &[u8],
        context: &BTreeMap<String, String>,
    ) -> Result<Vec<u8>, Failure> {
        let invalid = || (400, "InvalidCiphertextException", String::new());
        let (header, rest) = blob.split_at_checked(Self::HEADER.len()).ok_or_else(invalid)?;
        let (id, rest) = rest.split_at_checked(16).ok_or_else(invalid)?;
        let (nonce, sealed) = rest.split_at_checked(12).ok_or_else(invalid)?;
        if header != Self::HEADER {
            return Err(invalid());
        }
        if id != self.id {
            let message = "The key ID in the request does not identify a CMK that can perform this";
            return Err((400, "IncorrectKeyException", message.to_owned()));
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).unwrap();
        let mut in_out = sealed.to_vec();
        let plaintext = self.kek.open_in_place(nonce, Self::associated_data(context), &mut in_out);
        plaintext.map(|bytes| bytes.to_vec()).map_err(|_| invalid())
    }

    fn associated_data(context: &BTreeMap<String, String>) -> Aad<Vec<u8>> {
        Aad::from(serde_json::to_vec(context).unwrap())
    }
}
