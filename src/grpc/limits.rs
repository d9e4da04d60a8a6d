//! Limits that hold before any message is looked at, and the answers to what
//! tonic itself refuses.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::service::Error;

/// Bytes of one message: a value of 64 KiB, a description and names, with
/// room for 100 credentials of the longest names.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Bounds the calls under way on all connections together, so that a flood is
/// refused at once instead of filling memory with queued messages.
#[derive(Clone)]
pub(super) struct Limits {
    calls: Arc<Semaphore>,
}

impl Limits {
    pub(super) fn new(max_calls: usize) -> Self {
        Self { calls: Arc::new(Semaphore::new(max_calls)) }
    }
}

impl<S> Layer<S> for Limits {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { calls: Arc::clone(&self.calls), inner }
    }
}

/// A service within [`Limits`].
#[derive(Clone)]
pub(super) struct Limited<S> {
    calls: Arc<Semaphore>,
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
        // Health and reflection must answer under load too.
        if !request.uri().path().starts_with("/workflowsecrets.") {
            return Box::pin(self.inner.call(request));
        }
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
            let answer = Status::from(Error::Overloaded).into_http();
            return Box::pin(async { Ok(answer) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            drop(permit);
            Ok(explain(answer))
        })
    }
}

/// Gives tonic's own refusals, which have no details, the form of ours.
fn explain(answer: Response<Body>) -> Response<Body> {
    let headers = answer.headers();
    if headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return answer;
    }
    let code = headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()));
    match code {
        Some(Code::OutOfRange) => Status::from(Error::MessageTooLarge).into_http(),
        Some(Code::Internal) => Status::from(Error::MalformedMessage).into_http(),
        _ => answer,
    }
}
