//! Calls that would hold up those beside them.

use std::{
    convert::Infallible,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, Either},
    stream,
};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyStream, StreamBody};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::service::Error;

/// The call that must not wait: it is short if its message is, and has what takes
/// long done elsewhere.
const RESOLVE: &str = "/workflowsecrets.v1.SecretsService/ResolveSecrets";

/// Bytes of a message that asks for few secrets, some 25.
const SHORT: u64 = 1_024;

/// The place of a call among those under way, given back when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Place {
    _held: Arc<dyn Send + Sync>,
}

impl Place {
    pub(super) fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Arc::new(held) }
    }
}

/// Whether a call is done elsewhere, if there is an elsewhere. It should have its [`Place`]
/// among its extensions then: who gives it up does not end it at once.
pub(super) fn leaves(request: &Request<Body>) -> bool {
    let path = request.uri().path();
    let short = request.body().size_hint().upper().is_some_and(|bytes| bytes <= SHORT);
    path.starts_with("/workflowsecrets.") && !(path == RESOLVE && short)
}

/// Has all calls of the API but short Resolves done by a runtime of several threads:
/// a document, a long page or a hundred values would keep a runtime of one thread,
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let place = request.extensions_mut().remove::<Place>();
        let leaves = leaves(&request);
        let call = self.inner.call(request);
        let Some(runtime) = self.runtime.as_ref().filter(|_| leaves) else {
            return Either::Left(call);
        };
        // Given up here, it is given up there, at the next point at which it waits. Until
        // then it has its place: else those who give up at once could have any number of
        // calls worked on.
        let work = async move {
            let answer = call.await.map(|answer| answer.map(begun));
            drop(place);
            answer
        };
        let call = AbortOnDropHandle::new(runtime.spawn(work.in_current_span()));
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

/// The same answer, its first message written already: where the call was done, since
/// it may be long. A stream on which nothing is ready is left as it is.
fn begun(mut answer: Body) -> Body {
    // Whoever reads on asks again, with a waker of their own.
    let context = &mut Context::from_waker(Waker::noop());
    match Pin::new(&mut answer).poll_frame(context) {
        Poll::Pending => answer,
        Poll::Ready(None) => Body::empty(),
        Poll::Ready(Some(first)) => {
            let rest = BodyStream::new(answer);
            Body::new(StreamBody::new(stream::iter([first]).chain(rest)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, mpsc},
        thread,
        time::Duration,
    };

    use tokio::runtime::{Builder, Runtime};
    use tower::service_fn;

    use super::*;

    fn request(path: &str, bytes: u64) -> Request<Body> {
        Request::builder().uri(path).body(Body::new(Sized(bytes))).unwrap()
    }

    /// A body of so many bytes, as it says.
    struct Sized(u64);

    impl http_body::Body for Sized {
        type Data = bytes::Bytes;
        type Error = Status;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
            Poll::Ready(None)
        }

        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(self.0)
        }
    }

    fn elsewhere() -> Runtime {
        Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("elsewhere")
            .enable_time()
            .build()
            .unwrap()
    }

    /// Answers with the name of the thread that it runs on.
    async fn told(_: Request<Body>) -> Result<Response<Body>, Infallible> {
        tokio::task::yield_now().await;
        let name = thread::current().name().unwrap().to_owned();
        Ok(Response::builder().header("thread", name).body(Body::empty()).unwrap())
    }

    #[test]
    fn only_short_resolves_and_what_is_not_of_the_api_stay() {
        let (home, runtime) = (Builder::new_current_thread().build().unwrap(), elsewhere());
        let here = thread::current().name().unwrap().to_owned();
        let method = |name: &str| format!("/workflowsecrets.v1.SecretsService/{name}");
        for (path, bytes, stays) in [
            (method("ResolveSecrets"), SHORT, true),
            (method("ResolveSecrets"), SHORT + 1, false),
            ("/grpc.health.v1.Health/Check".to_owned(), 9, true),
            (method("RenderTemplate"), 9, false),
            (method("ListSecrets"), 9, false),
            (method("CreateSecret"), 9, false),
            ("/workflowsecrets.v1.KeyService/RewrapDataKeys".to_owned(), 9, false),
        ] {
            for aside in [Some(runtime.handle().clone()), None] {
                assert_eq!(leaves(&request(&path, bytes)), !stays, "{path}");
                let stays = stays || aside.is_none();
                let mut service = Aside::new(aside).layer(service_fn(told));
                let answer = home.block_on(service.call(request(&path, bytes))).unwrap();
                let thread = answer.headers()["thread"].to_str().unwrap();
                assert_eq!(thread == here, stays, "{path} on {thread}");
            }
        }
    }

    #[test]
    fn a_call_given_up_here_is_given_up_there() {
        let runtime = elsewhere();
        let held = Arc::new(());
        let (begun, begins) = mpsc::channel();
        let work = {
            let held = Arc::clone(&held);
            move |_: Request<Body>| {
                let (held, begun) = (Arc::clone(&held), begun.clone());
                async move {
                    begun.send(()).unwrap();
                    std::future::pending::<()>().await;
                    drop(held);
                    Ok(Response::new(Body::empty()))
                }
            }
        };
        let mut service = Aside::new(Some(runtime.handle().clone())).layer(service_fn(work));
        let path = "/workflowsecrets.v1.SecretsService/ListSecrets";
        let call = service.call(request(path, 9));
        begins.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(service);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(call);
        assert!(soon(|| Arc::strong_count(&held) == 1), "goes on though nobody waits for it");
    }

    fn soon(is_so: impl Fn() -> bool) -> bool {
        (0..1_000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            is_so()
        })
    }

    #[test]
    fn a_call_given_up_has_its_place_until_its_work_ends() {
        let runtime = elsewhere();
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let ends = Arc::new(Mutex::new(ends));
        // Works, and does not wait for anything that would end it.
        let work = move |_: Request<Body>| {
            let (begun, ends) = (begun.clone(), Arc::clone(&ends));
            async move {
                begun.send(()).unwrap();
                ends.lock().unwrap().recv().unwrap();
                Ok(Response::new(Body::empty()))
            }
        };
        let mut service = Aside::new(Some(runtime.handle().clone())).layer(service_fn(work));
        let mut request = request("/workflowsecrets.v1.SecretsService/RenderTemplate", 9);
        let held = Arc::new(());
        let taken = Arc::downgrade(&held);
        request.extensions_mut().insert(Place::new(held));
        let call = service.call(request);
        begins.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(call);
        assert_eq!(taken.strong_count(), 1);
        end.send(()).unwrap();
        assert!(soon(|| taken.strong_count() == 0));
    }
}
