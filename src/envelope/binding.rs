//! What a sealed value is bound to.

use super::record::{HEADER_LEN, Header};
use crate::domain::{DataKeyId, Environment, Revision, SecretName, SecretUid, WorkspaceId};

const DOMAIN: &[u8] = b"workflow-secrets/v1/sealed-value";
const KIND: &[u8] = b"secret-value";

/// The place of a value. Taken from the authorized request and the metadata of
/// the secret, never from the sealed record: a record moved to another place
/// does not open there.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// The deployment.
    pub environment: &'a Environment,
    /// The workspace of the authorized request.
    pub workspace: &'a WorkspaceId,
    /// The secret's identity.
    pub uid: SecretUid,
    /// The secret's name.
    pub name: &'a SecretName,
    /// Revision of the record that holds the sealed value.
    pub revision: Revision,
}

impl Binding<'_> {
    /// The associated data of AES-GCM: parts, each after its length in four
    /// bytes, so that no two lists of parts give the same bytes.
    pub(super) fn associated_data(&self, header: &Header, data_key: DataKeyId) -> Vec<u8> {
        let parts: [&[u8]; 7] = [
            self.environment.as_str().as_bytes(),
            self.workspace.as_str().as_bytes(),
            self.uid.as_bytes(),
            self.name.as_str().as_bytes(),
            KIND,
            &self.revision.as_u64().to_be_bytes(),
            data_key.as_bytes(),
        ];
        // No part is longer than 128 bytes.
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        let mut data = Vec::with_capacity(640);
        data.extend(length(DOMAIN.len()));
        data.extend_from_slice(DOMAIN);
        data.extend(length(HEADER_LEN));
        header.write_to(&mut data);
        for part in parts {
            data.extend(length(part.len()));
            data.extend_from_slice(part);
        }
        data
    }
}
