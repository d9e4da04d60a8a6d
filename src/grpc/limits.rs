//! Limits that hold before any message is looked at, and the answers to what
//! tonic itself refuses.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::{
    answer, identity::Peer, seldom::Seldom, server::ServerConfig, shares::Shares,
    status::unimplemented,
};
use crate::{domain::CallerId, metrics::Metrics, service::Error, template::MAX_TEMPLATE_BYTES};

/// Bytes of one message: a value of 64 KiB, a description and names, with
/// room for 100 credentials of the longest names.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Bytes of one message with a template, which has at most 1 MiB.
pub(super) const MAX_DOCUMENT_MESSAGE_BYTES: usize = MAX_TEMPLATE_BYTES + MAX_MESSAGE_BYTES;

/// Bytes of one message of the other services, which holds but names.
pub(super) const MAX_OTHER_MESSAGE_BYTES: usize = 4 * 1024;

/// The call whose answer lasts as long as the client likes.
const REDACT: &str = "/workflowsecrets.v1.SecretsService/Redact";

/// Streams of each kind at once: health watches, and reflection.
const MAX_OTHER_STREAMS: usize = 64;

/// Jobs of KeyService at once. Each reads whole workspaces.
const MAX_JOBS: usize = 4;

/// Calls that stream their progress until their work is done.
const JOBS: [&str; 2] = [
    "/workflowsecrets.v1.KeyService/ReencryptWorkspace",
    "/workflowsecrets.v1.KeyService/RewrapDataKeys",
];
/// Whether a call of the API takes a template.
pub(super) fn takes_document(path: &str) -> bool {
    path.strip_prefix("/workflowsecrets.v1.SecretsService/").is_some_and(|method| {
        matches!(method, "RenderTemplate" | "CheckReferences" | "PrepareTemplate")
    })
}

/// Bounds what is under way on all connections together, so that a flood is
/// refused at once instead of filling memory with queued messages.
///
/// Who has no identity is refused before any place is taken or a byte of the
/// message read. A place is held until the answer is read, or its time is over.
#[derive(Clone)]
pub(super) struct Limits(Arc<Inner>);

struct Inner {
    calls: Arc<Shares<CallerId>>,
    documents: Arc<Shares<CallerId>>,
    redactions: Arc<Shares<CallerId>>,
    watches: Arc<Semaphore>,
    reflections: Arc<Semaphore>,
    jobs: Arc<Semaphore>,
    timeout: Duration,
    unidentified: Seldom,
    metrics: Metrics,
}

/// What one caller may have of so many places: all executors may share one
/// identity, but must leave some to the others.
fn most_of(places: usize) -> usize {
    places.saturating_mul(3).div_ceil(4)
}

/// The room of a call, given back when dropped.
type Place = Box<dyn Send>;

impl Limits {
    pub(super) fn new(config: &ServerConfig, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            calls: Shares::new(config.max_calls, config.max_calls_per_caller),
            documents: Shares::new(config.max_documents, most_of(config.max_documents)),
            redactions: Shares::new(config.max_redactions, most_of(config.max_redactions)),
            watches: Arc::new(Semaphore::new(MAX_OTHER_STREAMS)),
            reflections: Arc::new(Semaphore::new(MAX_OTHER_STREAMS)),
            jobs: Arc::new(Semaphore::new(MAX_JOBS)),
            timeout: config.call_timeout,
            unidentified: Seldom::default(),
            metrics,
        }))
    }
}

impl Inner {
    /// The place of a call, and how long its answer may take to be read.
    fn admit(&self, request: &Request<Body>) -> Result<(Place, Option<Duration>), Error> {
        let stream = |streams: &Arc<Semaphore>| {
            let place = Arc::clone(streams).try_acquire_owned();
            place.map(|place| -> Place { Box::new(place) }).map_err(|_| Error::Overloaded)
        };
        let path = request.uri().path();
        if path.starts_with("/workflowsecrets.") {
            let id = Peer::id(request.extensions()).map_err(|why| self.refuse(request, why))?;
            if path == REDACT {
                // Ends by itself, or with its connection.
                let place = self.redactions.take(id).ok_or(Error::Overloaded)?;
                return Ok((Box::new(place), None));
            }
            let place = self.calls.take(id).ok_or(Error::Overloaded)?;
            if JOBS.contains(&path) {
                // Ends with its work, or its reader.
                return Ok((Box::new((place, stream(&self.jobs)?)), None));
            }
            if takes_document(path) {
                let document = self.documents.take(id).ok_or(Error::Overloaded)?;
                return Ok((Box::new((place, document)), Some(self.timeout)));
            }
            Ok((Box::new(place), Some(self.timeout)))
        } else if path.starts_with("/grpc.reflection.") {
            Ok((stream(&self.reflections)?, Some(self.timeout)))
        } else if path == "/grpc.health.v1.Health/Watch" {
            // Ends with its connection.
            Ok((stream(&self.watches)?, None))
        } else {
            // Health checks must be answered under any load.
            Ok((Box::new(()), Some(self.timeout)))
        }
    }

    /// No audit line: anybody could fill the audit stream.
    fn refuse(&self, request: &Request<Body>, why: &'static str) -> Error {
        if let Some(Peer::Unidentified { address, .. }) = request.extensions().get() {
            tracing::debug!(%address, why, "call refused: no identity");
            if let Some(unlogged) = self.unidentified.now() {
                tracing::info!(%address, why, unlogged, "calls refused: no identity");
            }
        }
        Error::Unauthenticated(why)
    }
}

impl<S> Layer<S> for Limits {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { limits: self.clone(), inner }
    }
}

/// A service within [`Limits`].
#[derive(Clone)]
pub(super) struct Limited<S> {
    limits: Limits,
    inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let limits = self.limits.clone();
        let refused = move |error: Error| {
            limits.0.metrics.shed(error.reason());
            Status::from(error).into_http()
        };
        let (place, within) = match self.limits.0.admit(&request) {
            Ok(admitted) => admitted,
            Err(error) => return Box::pin(async move { Ok(refused(error)) }),
        };
        // Bounds the receiving of the message too.
        let answer = tokio::time::timeout(self.limits.0.timeout, self.inner.call(request));
        Box::pin(async move {
            match answer.await {
                Ok(answer) => Ok(explain(answer?).map(|body| answer::held(body, place, within))),
                Err(_) => Ok(refused(Error::Timeout)),
            }
        })
    }
}

/// How tonic's refusals of messages begin that are no messages of the call:
/// prost's, and those of the framing around it.
const MALFORMED: [&str; 4] = [
    "failed to decode Protobuf message",
    "protocol error: received message with",
    "Missing request message",
    "Unexpected EOF decoding stream",
];

/// Gives tonic's own refusals, which have no details, the form of ours.
fn explain(answer: Response<Body>) -> Response<Body> {
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
