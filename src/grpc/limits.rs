//! Limits that hold before any message is looked at.

use std::{
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::{sync::Semaphore, time::timeout};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    answer::{self, Patience},
    aside,
    identity::Peer,
    intake::{self, Held, Room},
    refusals::explain,
    seldom::Seldom,
    server::ServerConfig,
    shares::{self, Shares},
    shelf::Shelf,
    timeout::CallTime,
};
use crate::{
    domain::CallerId,
    service::{Error, Secrets, turns::Lane, values::ValueTurn},
    template::MAX_TEMPLATE_BYTES,
};

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

/// How long a call waits for a place that holds much memory: most are soon free
/// again, of calls that their workspace has no share for.
const WAIT: Duration = Duration::from_secs(1);

/// Calls that stream their progress until their work is done.
const JOBS: [&str; 2] = [
    "/workflowsecrets.v1.KeyService/ReencryptWorkspace",
    "/workflowsecrets.v1.KeyService/RewrapDataKeys",
];

/// Whether a call may answer much. It changes nothing, so that its answer can
/// be withheld.
fn answers_much(path: &str) -> bool {
    path.strip_prefix("/workflowsecrets.v1.SecretsService/").is_some_and(|method| {
        method.starts_with("List")
            || matches!(
                method,
                "ResolveSecrets" | "RenderTemplate" | "CheckReferences" | "PrepareTemplate"
            )
    })
}

/// Bytes of the one message that a call begins with, at most; `None`: more
/// messages follow.
fn message_limit(path: &str) -> Option<usize> {
    if path == REDACT || path.starts_with("/grpc.reflection.") {
        None
    } else if takes_document(path) {
        Some(MAX_DOCUMENT_MESSAGE_BYTES)
    } else if path.starts_with("/workflowsecrets.v1.SecretsService/") {
        Some(MAX_MESSAGE_BYTES)
    } else {
        Some(MAX_OTHER_MESSAGE_BYTES)
    }
}

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
/// message read. A place is held until the answer is read, or its time is over, and
/// the work of the call has ended. The [`Room`] of a message on its way and of an
/// answer does not wait for the latter.
#[derive(Clone)]
pub(super) struct Limits(Arc<Inner>);

struct Inner {
    secrets: Arc<Secrets>,
    calls: Arc<Shares<CallerId>>,
    documents: Lane<CallerId>,
    redactions: Lane<CallerId>,
    watches: Arc<Semaphore>,
    reflections: Arc<Semaphore>,
    jobs: Arc<Semaphore>,
    room: Room,
    shelf: Shelf,
    timeout: Duration,
    idle: Duration,
    unidentified: Seldom,
    refused: Seldom,
}

/// What one caller may have of so many places: all executors may share one
/// identity, but must leave some to the others.
fn most_of(places: usize) -> usize {
    places.saturating_mul(3).div_ceil(4)
}

/// What a call needs room for.
enum Kind {
    /// Of the API, by this caller.
    Api(CallerId, Need),
    Reflection,
    Watch,
    /// Health checks must be answered under any load.
    Health,
}

enum Need {
    Call,
    Document,
    Job,
    Redaction,
}

/// The room of a call, given back when dropped.
enum Place {
    /// Of most calls.
    Call {
        _call: shares::Place<CallerId>,
    },
    Other {
        _held: Box<dyn Send + Sync>,
    },
}

impl Place {
    fn other(held: impl Send + Sync + 'static) -> Self {
        Self::Other { _held: Box::new(held) }
    }
}

impl Limits {
    pub(super) fn new(config: &ServerConfig, secrets: Arc<Secrets>) -> Self {
        let lane = |places| {
            let each = u32::try_from(most_of(places)).unwrap_or(u32::MAX);
            Lane::new(each, places, config.max_calls_per_caller)
        };
        Self(Arc::new(Inner {
            secrets,
            calls: Shares::new(config.max_calls, config.max_calls_per_caller),
            documents: lane(config.max_documents),
            redactions: lane(config.max_redactions),
            watches: Arc::new(Semaphore::new(MAX_OTHER_STREAMS)),
            reflections: Arc::new(Semaphore::new(MAX_OTHER_STREAMS)),
            jobs: Arc::new(Semaphore::new(MAX_JOBS)),
            room: Room::new(),
            shelf: Shelf::watched(),
            timeout: config.call_timeout,
            idle: config.redaction_idle,
            unidentified: Seldom::default(),
            refused: Seldom::default(),
        }))
    }
}

impl Inner {
    /// What a call is; its caller is known and may call.
    fn kind(&self, request: &Request<Body>) -> Result<Kind, Error> {
        let path = request.uri().path();
        if path.starts_with("/workflowsecrets.") {
            let id = Peer::id(request.extensions()).map_err(|why| self.refuse(request, why))?;
            self.secrets.count_call(id)?;
            let need = match path {
                REDACT => Need::Redaction,
                path if JOBS.contains(&path) => Need::Job,
                path if takes_document(path) => Need::Document,
                _ => Need::Call,
            };
            Ok(Kind::Api(id.clone(), need))
        } else if path.starts_with("/grpc.reflection.") {
            Ok(Kind::Reflection)
        } else if path == "/grpc.health.v1.Health/Watch" {
            Ok(Kind::Watch)
        } else {
            Ok(Kind::Health)
        }
    }

    /// The place of a call.
    async fn place(&self, kind: &Kind) -> Result<Place, Error> {
        let stream = |streams: &Arc<Semaphore>| {
            let place = Arc::clone(streams).try_acquire_owned();
            place.map(Place::other).map_err(|_| Error::Overloaded)
        };
        let call = |id| self.calls.take(id).ok_or(Error::Overloaded);
        match kind {
            Kind::Api(id, Need::Call) => Ok(Place::Call { _call: call(id)? }),
            Kind::Api(id, Need::Job) => Ok(Place::other((call(id)?, stream(&self.jobs)?))),
            Kind::Api(id, Need::Document) => {
                let call = call(id)?;
                Ok(Place::other((call, waited(&self.documents, id).await?)))
            }
            Kind::Api(id, Need::Redaction) => Ok(waited(&self.redactions, id).await?),
            Kind::Reflection => stream(&self.reflections),
            Kind::Watch => stream(&self.watches),
            Kind::Health => Ok(Place::other(())),
        }
    }

    /// How long the answer of a call may take to be read.
    fn patience(&self, kind: &Kind, time: CallTime) -> Patience {
        match kind {
            // Ends with its connection.
            Kind::Watch => Patience::default(),
            // Ends with its work, or its reader.
            Kind::Api(_, Need::Job | Need::Redaction) => {
                // The stream itself ends after one idle time: in the next, who
                // comes back is told so.
                Patience { whole: time.rest(), each: Some(self.idle * 2) }
            }
            _ => Patience { whole: Some(self.timeout), each: None },
        }
    }

    /// Tells the log of a call that found no place.
    fn told(&self, kind: &Kind, error: Error) -> Error {
        if let (Kind::Api(caller, _), Error::Overloaded) = (kind, &error)
            && let Some(unlogged) = self.refused.now()
        {
            tracing::warn!(%caller, reason = error.reason(), unlogged, "calls refused for load");
        }
        error
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
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        let limits = Arc::clone(&self.limits.0);
        let metrics = limits.secrets.metrics.clone();
        let refused = move |error: Error| {
            metrics.shed(error.reason());
            Status::from(error).into_http()
        };
        let time = CallTime::of(request.headers(), limits.timeout);
        let kind = match limits.kind(&request) {
            Ok(_) if time.is_over() => Err(Error::Timeout),
            other => other,
        };
        let kind = match kind {
            Ok(kind) => kind,
            Err(error) => return Box::pin(async move { Ok(refused(error)) }),
        };
        request.extensions_mut().insert(limits.secrets.deadline(time.work()));
        let caller = Peer::id(request.extensions()).ok().cloned();
        let limit = message_limit(request.uri().path());
        let much = answers_much(request.uri().path());
        // The one that was found ready.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let call = async {
                let mut place = limits.place(&kind).await?;
                let mut request = intake::lean(request);
                if let Some(limit) = limit {
                    let room = &limits.room;
                    request = match intake::whole(request, limit, room, caller.as_ref()).await {
                        Ok(request) => request,
                        Err(status) => return Ok((place, status.into_http())),
                    };
                }
                if aside::leaves(&request) {
                    let shared = aside::Place::new(place);
                    request.extensions_mut().insert(shared.clone());
                    place = Place::other(shared);
                }
                let Ok(answer) = inner.call(request).await;
                Ok((place, answer))
            };
            // Bounds the receiving of the message too.
            let answered = timeout(time.call(), pin!(call)).await;
            let (place, answer) = match answered.unwrap_or(Err(Error::Timeout)) {
                Ok(answered) => answered,
                Err(error) => return Ok(refused(limits.told(&kind, error))),
            };
            let patience = limits.patience(&kind, time);
            let mut answer = explain(answer);
            let (mut held, mut turn) =
                (Held::default(), answer.extensions_mut().remove::<ValueTurn>());
            let room = limits.room.clone();
            let count = move |bytes| {
                drop(turn.take());
                match &caller {
                    Some(caller) if much => room.hold(caller, &mut held, bytes),
                    _ => Ok(()),
                }
            };
            Ok(answer.map(|body| answer::held(body, place, patience, &limits.shelf, count)))
        })
    }
}

/// A place, if one comes free soon.
async fn waited(lane: &Lane<CallerId>, id: &CallerId) -> Result<Place, Error> {
    let place = timeout(WAIT, lane.wait(id)).await.ok().flatten();
    place.map(Place::other).ok_or(Error::Overloaded)
}
