//! The span and the duration of each call, whatever becomes of it.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Span;

use crate::metrics::{Metrics, RpcMethod};

/// Makes the span of a call: of this method, with these headers.
pub type CallSpan = fn(method: &str, headers: &HeaderMap) -> Span;

/// Measures each call from its headers to the end of its answer.
#[derive(Clone)]
pub(super) struct Observe(Arc<Inner>);

struct Inner {
    metrics: Metrics,
    span: CallSpan,
    /// By path.
    methods: HashMap<String, RpcMethod>,
}

impl Observe {
    /// `services` are encoded descriptor sets: what they do not know is taken
    /// together, or callers could make up methods without end.
    pub(super) fn new(
        metrics: Metrics,
        span: CallSpan,
        services: &[&[u8]],
    ) -> Result<Self, prost::DecodeError> {
        let mut methods = HashMap::new();
        for set in services {
            for file in FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    for method in &service.method {
                        let (package, method) = (file.package(), method.name());
                        let name = format!("{package}.{}/{method}", service.name());
                        methods.insert(format!("/{name}"), RpcMethod::known(&name));
                    }
                }
            }
        }
        Ok(Self(Arc::new(Inner { metrics, span, methods })))
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { observe: self.clone(), inner }
    }
}

/// A service whose calls are observed.
#[derive(Clone)]
pub(super) struct Observed<S> {
    observe: Observe,
    inner: S,
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Inner { metrics, span, methods } = &*self.observe.0;
        let method = methods.get(request.uri().path()).cloned().unwrap_or_else(RpcMethod::other);
        let span = span(method.as_str(), request.headers());
        let (metrics, start) = (metrics.clone(), Instant::now());
        let call = Call { metrics, method, span, start, code: Code::Cancelled };
        let inner = call.span.in_scope(|| self.inner.call(request));
        Answering { inner, call: Some(call) }
    }
}

/// A call under way. It ends when dropped: as cancelled, unless it was told
/// otherwise, since whoever drops it without a word has given it up.
struct Call {
    metrics: Metrics,
    method: RpcMethod,
    span: Span,
    start: Instant,
    code: Code,
}

impl Call {
    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let (name, error) = (name(self.code), is_error(self.code));
        self.metrics.rpc(&self.method, name, error, self.start.elapsed());
        self.span.record("rpc.response.status_code", name);
        if error {
            self.span.record("error.type", name);
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

/// Until there is an answer.
pub(super) struct Answering<F> {
    inner: F,
    call: Option<Call>,
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Unpin,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let entered = this.call.as_ref().map(|call| call.span.enter());
        let polled = Pin::new(&mut this.inner).poll(context);
        drop(entered);
        polled.map_ok(|answer| {
            let Some(call) = this.call.take() else { return answer };
            // A refusal has its status in the headers and nothing else.
            match code(answer.headers()) {
                Some(code) => call.end(code),
                None if answer.body().is_end_stream() => call.end(Code::Unknown),
                None => return answer.map(|body| Body::new(Told { body, call: Some(call) })),
            }
            answer
        })
    }
}

/// An answer on its way, the last of which is its status.
struct Told {
    body: Body,
    call: Option<Call>,
}

impl Told {
    fn end(&mut self, code: Code) {
        if let Some(call) = self.call.take() {
            call.end(code);
        }
    }
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = Pin::new(&mut self.body).poll_frame(context);
        match &next {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.end(code(trailers).unwrap_or(Code::Unknown));
                }
            }
            Poll::Ready(Some(Err(status))) => {
                let code = status.code();
                self.end(code);
            }
            Poll::Ready(None) => self.end(Code::Unknown),
            Poll::Pending => {}
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// What the semantic conventions take for an error of the server.
fn is_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The names of the codes, as the semantic conventions write them.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
