//! Calls that would hold up those beside them.

use std::{
    convert::Infallible,
    panic::resume_unwind,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, Either};
use http::{Request, Response};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::service::Error;

/// The call that must not wait: it is short, and has other work done elsewhere.
const RESOLVE: &str = "/workflowsecrets.v1.SecretsService/ResolveSecrets";

/// Has all calls but Resolve, and all that is not of the API, done by a runtime of
/// several threads: a document or a long page would keep a runtime of one thread,
/// and all connections that live there, for milliseconds.
#[derive(Clone)]
pub(super) struct Aside(Option<Handle>);

impl Aside {
    /// `None`: all is done where it comes.
    pub(super) fn new(runtime: Option<Handle>) -> Self {
        Self(runtime)
    }
}

impl<S> Layer<S> for Aside {
    type Service = Done<S>;

    fn layer(&self, inner: S) -> Done<S> {
        Done { runtime: self.0.clone(), inner }
    }
}

/// A service whose calls are done here or elsewhere.
#[derive(Clone)]
pub(super) struct Done<S> {
    runtime: Option<Handle>,
    inner: S,
}

impl<S> Service<Request<Body>> for Done<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let elsewhere = path.starts_with("/workflowsecrets.") && path != RESOLVE;
        let call = self.inner.call(request);
        let Some(runtime) = self.runtime.as_ref().filter(|_| elsewhere) else {
            return Either::Left(call);
        };
        // Given up here, it is given up there.
        let call = AbortOnDropHandle::new(runtime.spawn(call.in_current_span()));
        Either::Right(Box::pin(async move {
            match call.await {
                Ok(answered) => answered,
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                // That runtime ends.
                Err(_) => Ok(Status::from(Error::Timeout).into_http()),
            }
        }))
    }
}
