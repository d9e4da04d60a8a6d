//! What is remembered of requests.

use prost::Message as _;

use super::{metadata_from_pb, metadata_to_pb, pb};
use crate::{
    domain::{DataKeyId, Revision, SecretMetadata},
    store::StoreError,
};

const REQUEST: StoreError = StoreError::Malformed("request record");

/// What a request id stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestOutcome {
    /// Of the request.
    pub fingerprint: Fingerprint,
    /// The answer to give again; `None` for a deletion.
    pub secret: Option<(SecretMetadata, Revision)>,
}

/// Tells whether two requests are the same, without telling what they hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// The hash or HMAC.
    pub digest: [u8; 32],
    /// The data key of the HMAC; `None` for a bare hash of a request without a
    /// value.
    pub data_key: Option<DataKeyId>,
}

/// The outcome of a request to bytes.
pub fn encode_request(outcome: &RequestOutcome) -> Vec<u8> {
    let (secret, revision) = match &outcome.secret {
        Some((secret, revision)) => (Some(metadata_to_pb(secret)), revision.as_u64()),
        None => (None, 0),
    };
    pb::RequestOutcome {
        fingerprint: outcome.fingerprint.digest.to_vec(),
        data_key_id: outcome
            .fingerprint
            .data_key
            .map_or_else(Vec::new, |id| id.as_bytes().to_vec()),
        secret,
        revision,
    }
    .encode_to_vec()
}

/// The outcome of a request from bytes.
///
/// # Errors
/// [`StoreError::Malformed`].
pub fn decode_request(bytes: &[u8]) -> Result<RequestOutcome, StoreError> {
    let decode = || {
        let outcome = pb::RequestOutcome::decode(bytes).ok()?;
        let data_key = match outcome.data_key_id.len() {
            0 => None,
            _ => Some(DataKeyId::from_bytes(outcome.data_key_id.try_into().ok()?)),
        };
        let secret = match outcome.secret {
            Some(secret) => Some((metadata_from_pb(secret)?, Revision::from_u64(outcome.revision))),
            None => None,
        };
        Some(RequestOutcome {
            fingerprint: Fingerprint { digest: outcome.fingerprint.try_into().ok()?, data_key },
            secret,
        })
    };
    decode().ok_or(REQUEST)
}
