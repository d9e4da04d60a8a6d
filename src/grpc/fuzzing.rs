//! Doors for the fuzz targets: what comes over the wire, up to where a caller
//! or a command has been made of it.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use rustls::pki_types::CertificateDer;
use tonic::{
    Extensions, Status,
    metadata::{AsciiMetadataValue, BinaryMetadataValue, MetadataMap},
};

use super::{
    convert::{self, keys},
    documents,
    identity::{self, IdentityError, Peer},
    timeout::CallTime,
};
use crate::{domain::CallerId, service::Error};

/// What a request becomes: nothing that is told, or the answer that refuses it.
type Convert = fn(&[u8]) -> Result<(), Error>;

fn decoded<Q: prost::Message + Default, C>(
    message: &[u8],
    convert: impl FnOnce(Q) -> Result<C, Error>,
) -> Result<(), Error> {
    let message = Q::decode(message).map_err(|_| Error::MalformedMessage)?;
    convert(message).map(drop)
}

/// One for each call.
const CALLS: [Convert; 23] = [
    |bytes| decoded(bytes, convert::create),
    |bytes| decoded(bytes, convert::get),
    |bytes| decoded(bytes, convert::update),
    |bytes| decoded(bytes, convert::delete),
    |bytes| decoded(bytes, convert::undelete),
    |bytes| decoded(bytes, convert::rollback),
    |bytes| decoded(bytes, convert::list_versions),
    |bytes| decoded(bytes, convert::list_audit_events),
    |bytes| decoded(bytes, convert::list),
    |bytes| decoded(bytes, convert::resolve),
    |bytes| decoded(bytes, convert::acquire_lease),
    |bytes| decoded(bytes, convert::release_lease),
    |bytes| decoded(bytes, convert::list_usage),
    |bytes| decoded(bytes, documents::render),
    |bytes| decoded(bytes, documents::check),
    |bytes| decoded(bytes, documents::prepare),
    |bytes| decoded(bytes, |first| documents::open_redaction(Some(first))),
    |bytes| decoded(bytes, |next| documents::chunk(&next).map(drop)),
    |bytes| decoded(bytes, keys::describe),
    |bytes| decoded(bytes, keys::rotate),
    |bytes| decoded(bytes, keys::reencrypt),
    |bytes| decoded(bytes, keys::rewrap),
    |bytes| decoded(bytes, keys::shred),
];

/// Takes a message of a call to its command.
///
/// # Errors
/// All that the client is told: message and details.
pub fn convert(call: u8, message: &[u8]) -> Result<(), String> {
    let Some(convert) = CALLS.get(usize::from(call) % CALLS.len()) else { return Ok(()) };
    convert(message).map_err(|error| {
        let status = Status::from(error);
        format!("{} {}", status.message(), String::from_utf8_lossy(status.details()))
    })
}

/// The SPIFFE id of a certificate.
///
/// # Errors
/// Why it tells none.
pub fn identify(certificate: &[u8]) -> Result<CallerId, &'static str> {
    let chain = [CertificateDer::from(certificate)];
    match Peer::from_certificates(Some(&chain), ([127, 0, 0, 1], 1).into()).0 {
        Peer::Verified(id) => Ok(id),
        Peer::Unidentified { why, .. } => Err(why),
    }
}

/// Actor and trace of a call with these headers, of one known caller.
///
/// # Errors
/// The field at fault, and its rule.
pub fn metadata(
    caller: CallerId,
    headers: &[(&'static str, &[u8])],
) -> Result<[Option<String>; 2], (&'static str, &'static str)> {
    let (mut extensions, mut metadata) = (Extensions::new(), MetadataMap::new());
    extensions.insert(Peer::Verified(caller));
    for (name, value) in headers {
        if name.ends_with("-bin") {
            metadata.append_bin(*name, BinaryMetadataValue::from_bytes(value));
        } else if let Ok(value) = AsciiMetadataValue::try_from(*value) {
            metadata.append(*name, value);
        }
    }
    match identity::caller(&extensions, &metadata) {
        Ok(caller) => Ok([
            caller.actor.map(|actor| actor.to_string()),
            caller.trace_id.map(|trace| trace.to_string()),
        ]),
        Err(IdentityError::Unauthenticated(why)) => Err(("", why)),
        Err(IdentityError::Invalid { field, refusal, .. }) => Err((field, refusal.rule())),
    }
}

/// How long a call with this `grpc-timeout` may take where none may take longer
/// than `longest`, and a stream with it.
pub fn call_time(told: &[u8], longest: Duration) -> (Duration, Option<Duration>) {
    let mut headers = HeaderMap::new();
    if let Ok(told) = HeaderValue::from_bytes(told) {
        headers.insert("grpc-timeout", told);
    }
    let time = CallTime::of(&headers, longest);
    (time.call(), time.rest())
}
