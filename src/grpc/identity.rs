//! From a connection and a call's metadata to the [`Caller`].

use std::{net::SocketAddr, time::Duration};

use rustls::pki_types::CertificateDer;
use tonic::{Extensions, metadata::MetadataMap};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{
    domain::{Actor, CallerId, Deadline, Refusal, TraceId},
    service::access::Caller,
};

const ACTOR: &str = "x-actor";
const ACTOR_BIN: &str = "x-actor-bin";
const TRACEPARENT: &str = "traceparent";

/// Who is at the other end of a connection; found out once per connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Proven by a certificate of the client CA, or told so by `dev`.
    Verified(CallerId),
    /// Not known. Health and reflection are open to it.
    Unidentified {
        /// Why.
        why: &'static str,
        /// Where it connects from.
        address: SocketAddr,
    },
}

impl Peer {
    /// From the certificates of a finished handshake, leaf first.
    ///
    /// The leaf must be a SPIFFE X.509-SVID for authentication (SPIFFE
    /// X509-SVID, sections 2 and 5.2): exactly one URI SAN, which is the SPIFFE
    /// id, next to SANs of other types; no right to sign certificates; the
    /// extended key usage clientAuth. That it is no CA was seen in the
    /// handshake.
    ///
    /// Comes with the time that is left until the certificate expires.
    pub(super) fn from_certificates(
        chain: Option<&[CertificateDer<'_>]>,
        address: SocketAddr,
    ) -> (Self, Duration) {
        let leaf = chain.and_then(<[_]>::first).ok_or("no client certificate");
        match leaf.and_then(|leaf| spiffe_id(leaf)) {
            Ok((id, left)) => (Self::Verified(id), left),
            Err(why) => (Self::Unidentified { why, address }, Duration::MAX),
        }
    }

    /// The caller id, if it is known.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn id(extensions: &Extensions) -> Result<&CallerId, &'static str> {
        match extensions.get() {
            Some(Self::Verified(id)) => Ok(id),
            Some(Self::Unidentified { why, .. }) => Err(why),
            None => Err("connection without identity"),
        }
    }
}

fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<(CallerId, Duration), &'static str> {
    const MALFORMED: &str = "client certificate malformed";
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| MALFORMED)?;
    let usage = leaf.key_usage().map_err(|_| MALFORMED)?;
    if usage.is_some_and(|u| u.value.key_cert_sign() || u.value.crl_sign()) {
        return Err("client certificate may sign others");
    }
    // The handshake refuses another purpose, but takes none for any.
    let purpose = leaf.extended_key_usage().map_err(|_| MALFORMED)?;
    if !purpose.is_some_and(|purpose| purpose.value.client_auth) {
        return Err("client certificate is not for client authentication");
    }
    let names = leaf.subject_alternative_name().map_err(|_| MALFORMED)?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // Might be a second URI that another parser would read.
            GeneralName::Invalid(..) => return Err(MALFORMED),
            _ => {}
        }
    }
    let id = match uris.as_slice() {
        [uri] => {
            CallerId::parse(uri).map_err(|_| "URI SAN of the client certificate is no SPIFFE id")?
        }
        [] => return Err("client certificate without URI SAN"),
        _ => return Err("client certificate with more than one URI SAN"),
    };
    let left = leaf.validity().time_to_expiration().and_then(|left| left.try_into().ok());
    Ok((id, left.unwrap_or_default()))
}

/// Why a call has no caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    /// The connection proves no identity; why.
    Unauthenticated(&'static str),
    /// A metadata field breaks its rule.
    Invalid {
        /// The caller, all the same.
        id: CallerId,
        /// Name of the metadata.
        field: &'static str,
        /// The rule.
        refusal: Refusal,
    },
}

/// The caller of a call: id from its connection's [`Peer`]; the actor from
/// `x-actor` (ASCII) or `x-actor-bin` (UTF-8), one of them once; the trace from
/// `traceparent`.
///
/// # Errors
/// No [`Peer::Verified`] in the request's extensions, or a bad actor. A bad
/// `traceparent` is ignored, as W3C Trace Context demands.
pub fn caller(extensions: &Extensions, metadata: &MetadataMap) -> Result<Caller, IdentityError> {
    let id = Peer::id(extensions).map_err(IdentityError::Unauthenticated)?;
    match actor(metadata) {
        Ok(actor) => {
            let (trace_id, deadline) = (trace_id(metadata), deadline(extensions));
            Ok(Caller { id: id.clone(), actor, trace_id, deadline })
        }
        Err((field, refusal)) => Err(IdentityError::Invalid { id: id.clone(), field, refusal }),
    }
}

/// The deadline of a call, as `Limits` found it.
pub(super) fn deadline(extensions: &Extensions) -> Deadline {
    extensions.get().copied().unwrap_or(Deadline::NONE)
}

fn actor(metadata: &MetadataMap) -> Result<Option<Actor>, (&'static str, Refusal)> {
    let malformed = |field, rule| (field, Refusal::Malformed(rule));
    let parse =
        |field, text: &str| Actor::parse(text).map(Some).map_err(|refusal| (field, refusal));
    let mut texts = metadata.get_all(ACTOR).iter();
    let mut bytes = metadata.get_all_bin(ACTOR_BIN).iter();
    match (texts.next(), bytes.next(), texts.next(), bytes.next()) {
        (None, None, ..) => Ok(None),
        (Some(text), None, None, _) => {
            let text = text.to_str();
            parse(ACTOR, text.map_err(|_| malformed(ACTOR, "must be printable ASCII"))?)
        }
        (None, Some(bytes), _, None) => {
            let bytes = bytes.to_bytes();
            let bytes = bytes.map_err(|_| malformed(ACTOR_BIN, "must be base64"))?;
            let text = std::str::from_utf8(&bytes);
            parse(ACTOR_BIN, text.map_err(|_| malformed(ACTOR_BIN, "must be UTF-8"))?)
        }
        _ => Err(malformed(ACTOR, "must be given once, as x-actor or as x-actor-bin")),
    }
}

/// W3C Trace Context, section 3.2: version-traceid-parentid-flags in
/// lower-case hex. Later versions may append fields, version ff is forbidden.
fn trace_id(metadata: &MetadataMap) -> Option<TraceId> {
    let mut headers = metadata.get_all(TRACEPARENT).iter();
    let header = headers.next()?.to_str().ok()?;
    if headers.next().is_some() {
        return None;
    }
    let mut fields = header.split('-');
    let mut hex = |length: usize| {
        fields.next().filter(|field| {
            field.len() == length
                && field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let (version, trace, parent, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let surplus = fields.next().is_some();
    if version == "ff" || version == "00" && surplus || parent.bytes().all(|b| b == b'0') {
        return None;
    }
    TraceId::parse(trace).ok()
}

#[cfg(test)]
mod tests {
    use tonic::metadata::{AsciiMetadataValue, BinaryMetadataValue};

    use super::*;

    fn verified() -> Extensions {
        let mut extensions = Extensions::new();
        extensions.insert(Peer::Verified(CallerId::parse("spiffe://td/a").unwrap()));
        extensions
    }

    fn metadata(entries: &[(&'static str, &[u8])]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in entries {
            if key.ends_with("-bin") {
                metadata.append_bin(*key, BinaryMetadataValue::from_bytes(value));
            } else {
                metadata.append(*key, AsciiMetadataValue::try_from(*value).unwrap());
            }
        }
        metadata
    }

    #[test]
    fn only_a_verified_peer_is_a_caller() {
        let none = MetadataMap::new();
        assert_eq!(caller(&verified(), &none).unwrap().id.as_str(), "spiffe://td/a");
        let mut unidentified = Extensions::new();
        let address = ([127, 0, 0, 1], 1).into();
        unidentified.insert(Peer::Unidentified { why: "why", address });
        let error = caller(&unidentified, &none).unwrap_err();
        assert_eq!(error, IdentityError::Unauthenticated("why"));
        let error = caller(&Extensions::new(), &none).unwrap_err();
        assert_eq!(error, IdentityError::Unauthenticated("connection without identity"));
    }

    #[test]
    fn an_actor_is_given_once_and_well_formed() {
        let actor = |entries: &[(&'static str, &[u8])]| {
            caller(&verified(), &metadata(entries))
                .map(|caller| caller.actor.map(|actor| actor.to_string()))
        };
        assert_eq!(actor(&[]), Ok(None));
        assert_eq!(actor(&[("x-actor", b"zoe")]), Ok(Some("zoe".to_owned())));
        let utf8 = "Zoë".as_bytes();
        assert_eq!(actor(&[("x-actor-bin", utf8)]), Ok(Some("Zoë".to_owned())));
        let longest = "a".repeat(256);
        assert_eq!(actor(&[("x-actor", longest.as_bytes())]), Ok(Some(longest)));

        let (long, wide) = ("a".repeat(257), "ë".repeat(257));
        for (field, bad) in [
            ("x-actor", &[("x-actor", &b""[..])][..]),
            ("x-actor", &[("x-actor", long.as_bytes())]),
            ("x-actor", &[("x-actor", utf8)]),
            ("x-actor", &[("x-actor", b"a\tb")]),
            ("x-actor", &[("x-actor", b"a"), ("x-actor", b"a")]),
            ("x-actor", &[("x-actor", b"a"), ("x-actor-bin", b"a")]),
            ("x-actor", &[("x-actor-bin", b"a"), ("x-actor-bin", b"a")]),
            ("x-actor-bin", &[("x-actor-bin", wide.as_bytes())]),
            ("x-actor-bin", &[("x-actor-bin", b"\xff")]),
            ("x-actor-bin", &[("x-actor-bin", b"a\nb")]),
        ] {
            match actor(bad) {
                Err(IdentityError::Invalid { field: told, .. }) => assert_eq!(told, field),
                other => panic!("{bad:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_bad_actor_tells_nothing_to_the_unidentified() {
        let bad = metadata(&[("x-actor", b"")]);
        let error = caller(&Extensions::new(), &bad).unwrap_err();
        assert!(matches!(error, IdentityError::Unauthenticated(_)));
    }

    #[test]
    fn traceparent_follows_w3c_and_is_ignored_if_bad() {
        let trace = |headers: &[&str]| {
            let entries: Vec<_> =
                headers.iter().map(|header| ("traceparent", header.as_bytes())).collect();
            caller(&verified(), &metadata(&entries)).unwrap().trace_id.map(|id| id.to_string())
        };
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{id}-00f067aa0ba902b7-01");
        assert_eq!(trace(&[&good]).as_deref(), Some(id));
        let later = format!("cc-{id}-00f067aa0ba902b7-01-more");
        assert_eq!(trace(&[&later]).as_deref(), Some(id));
        for bad in [
            "",
            "00",
            id,
            &format!("{good}-more"),
            &format!("00-{id}-00f067aa0ba902b7"),
            &format!("ff-{id}-00f067aa0ba902b7-01"),
            &format!("00-{id}-0000000000000000-01"),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            &format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            &format!("0x-{id}-00f067aa0ba902b7-01"),
            &format!("00-{id}-00f067aa0ba902b7-1"),
            &format!(" {good}"),
        ] {
            assert_eq!(trace(&[bad]), None, "{bad}");
        }
        assert_eq!(trace(&[]), None);
        assert_eq!(trace(&[&good, &good]), None);
    }
}
