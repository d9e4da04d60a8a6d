//! What tonic itself refuses, told in the form of the service's own errors.

use http::Response;
use tonic::{Code, Status, body::Body};

use super::status::unimplemented;
use crate::service::Error;

/// How tonic's refusals of messages begin that are no messages of the call:
/// prost's, and those of the framing around it.
const MALFORMED: [&str; 4] = [
    "failed to decode Protobuf message",
    "protocol error: received message with",
    "Missing request message",
    "Unexpected EOF decoding stream",
];

/// Gives tonic's own refusals, which have no details, the form of ours.
pub(super) fn explain(answer: Response<Body>) -> Response<Body> {
    if answer.headers().contains_key(Status::GRPC_STATUS_DETAILS) {
        return answer;
    }
    match Status::from_header_map(answer.headers()).map(in_our_form) {
        Some(Ok(status)) => status.into_http(),
        Some(Err(_)) | None => answer,
    }
}

/// The same for a refusal in the middle of a stream.
pub(super) fn explained(status: Status) -> Status {
    in_our_form(status).unwrap_or_else(|other| other)
}

fn in_our_form(status: Status) -> Result<Status, Status> {
    let malformed = MALFORMED.iter().any(|start| status.message().starts_with(start));
    match status.code() {
        Code::OutOfRange => Ok(Error::MessageTooLarge.into()),
        Code::Internal if malformed => Ok(Error::MalformedMessage.into()),
        Code::Unimplemented => Ok(unimplemented(status)),
        _ => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    fn told(status: Status) -> Status {
        Status::from_header_map(explain(status.into_http()).headers()).unwrap()
    }

    #[test]
    fn only_messages_that_do_not_decode_are_called_malformed() {
        let decoding = prost::Message::decode(&b"\xff"[..]).map(|(): ()| ()).unwrap_err();
        for text in [
            decoding.to_string().as_str(),
            "protocol error: received message with invalid compression flag: 2",
            "Missing request message.",
            "Unexpected EOF decoding stream.",
        ] {
            for status in [told(Status::internal(text)), explained(Status::internal(text))] {
                let details = status.get_error_details();
                assert_eq!(details.error_info().unwrap().reason, "MALFORMED_MESSAGE", "{text}");
            }
        }
        let other = told(Status::internal("Error encoding: canary"));
        assert_eq!((other.code(), other.details()), (Code::Internal, &b""[..]));
    }
}
