//! The tonic server: services, limits, health.

use std::{
    convert::Infallible,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, future::Either};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    sync::watch,
};
use tonic::{body::Body, service::Routes, transport::server::Connected};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::Service;

use super::{
    aside::Aside,
    handlers::Handlers,
    limits::{
        Limits, MAX_DOCUMENT_MESSAGE_BYTES, MAX_MESSAGE_BYTES, MAX_OTHER_MESSAGE_BYTES,
        takes_document,
    },
    observe::{CallSpan, Observe},
    proto::{
        self, key_service_server::KeyServiceServer, secrets_service_server::SecretsServiceServer,
    },
};
use crate::service::Secrets;

/// Names of the services, as health and reflection know them.
const SERVICE: &str = "workflowsecrets.v1.SecretsService";
const SERVICES: [&str; 2] = [SERVICE, "workflowsecrets.v1.KeyService"];

/// Descriptors of all services.
const SERVED: [&[u8]; 4] = [
    proto::DESCRIPTOR,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// How the server guards itself.
#[derive(Debug, Clone, Copy)]
pub struct ServerConfig {
    /// Calls under way on all connections together.
    pub max_calls: usize,
    /// Of these, by one caller: it cannot take all places from the others.
    pub max_calls_per_caller: usize,
    /// Calls with a template under way on all connections together; each may
    /// take 5 MiB. One caller may have three quarters. Further ones wait, up to
    /// a second.
    pub max_documents: usize,
    /// Streams of Redact on all connections together; each may take 1 MiB. One
    /// caller may have three quarters. Further ones wait, up to a second.
    pub max_redactions: usize,
    /// A stream of Redact on which nothing comes or is read ends after this. Its
    /// place is free once its end is read, or after as long again.
    pub redaction_idle: Duration,
    /// Calls under way on one connection; more wait at the client.
    pub max_streams: u32,
    /// Longest call; its caller may tell a shorter time. Its answer must be read
    /// in as long again.
    pub call_timeout: Duration,
    /// Then a connection is asked to end, and the client opens another.
    pub max_connection_age: Duration,
    /// A connection on which nothing comes for so long is asked for a sign of
    /// life, and cut without one in a third of that. None can come in the
    /// middle of a frame.
    pub keepalive: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_calls: 4_000,
            // All executors may share one identity.
            max_calls_per_caller: 3_000,
            max_documents: 128,
            max_redactions: 512,
            redaction_idle: Duration::from_secs(10 * 60),
            max_streams: 200,
            call_timeout: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(60 * 60),
            keepalive: Duration::from_secs(30),
        }
    }
}

impl ServerConfig {
    /// Longest life of a connection: when it is asked to end, calls under way
    /// still have their time, and their answers too.
    pub fn connection_life(&self) -> Duration {
        self.max_connection_age + self.call_timeout * 2
    }
}

/// Tells clients whether to send calls (`grpc.health.v1`).
///
/// The empty service name is liveness: SERVING until shutdown, whatever the
/// store and the KMS do. The API's names are readiness: whether the store can
/// be used.
#[derive(Clone)]
pub struct Health(HealthReporter, watch::Sender<State>);

/// The same for who does not ask by gRPC.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// Not yet ending.
    pub live: bool,
    /// The API can be served.
    pub ready: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self(HealthReporter::new(), watch::Sender::new(State { live: true, ready: false }))
    }
}

impl Health {
    /// What clients are told now.
    pub fn now(&self) -> State {
        *self.1.borrow()
    }

    /// Whether the API can be served.
    pub async fn ready(&self, ready: bool) {
        self.1.send_modify(|state| state.ready = ready);
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }

    /// Ends the Watch streams, which would hold connections open.
    pub async fn end_watches(&self) {
        let mut reporter = self.0.clone();
        reporter.clear_service_status("").await;
        for service in SERVICES {
            reporter.clear_service_status(service).await;
        }
    }

    /// Everything NOT_SERVING: the process is about to end.
    pub async fn shutting_down(&self) {
        self.1.send_modify(|state| state.live = false);
        self.0.set_service_status("", ServingStatus::NotServing).await;
        self.ready(false).await;
    }
}

/// Why a server ended by itself.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// [`Grpc`] on this runtime alone.
///
/// # Errors
/// As [`Grpc::new`] and [`Grpc::serve`].
pub async fn serve<I, C, E>(
    secrets: Arc<Secrets>,
    health: &Health,
    config: ServerConfig,
    incoming: I,
    shutdown: impl Future<Output = ()>,
    span: CallSpan,
) -> Result<(), Fault>
where
    I: Stream<Item = Result<C, E>>,
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    E: Into<Fault>,
{
    Grpc::new(secrets, health, config, span, None)?.serve(incoming, shutdown).await
}

/// The services and what guards them. A clone is the same, for another runtime.
#[derive(Clone)]
pub struct Grpc {
    config: ServerConfig,
    observe: Observe,
    limits: Limits,
    aside: Aside,
    services: Services,
}

impl Grpc {
    /// Puts the services together. Must be called within a Tokio runtime. All calls
    /// but Resolve are done by the runtime `aside`, if there is one, whichever
    /// runtime their connection lives on.
    ///
    /// # Errors
    /// What tonic refuses: a descriptor that does not decode.
    pub fn new(
        secrets: Arc<Secrets>,
        health: &Health,
        config: ServerConfig,
        span: CallSpan,
        aside: Option<Handle>,
    ) -> Result<Self, Fault> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that grpcurl prints the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let observe = Observe::new(secrets.metrics.clone(), span, &SERVED)?;
        let limits = Limits::new(&config, Arc::clone(&secrets));
        let handlers = Arc::new(Handlers::new(secrets, config.redaction_idle));
        let api = |limit| {
            SecretsServiceServer::from_arc(Arc::clone(&handlers)).max_decoding_message_size(limit)
        };
        let api = Api { plain: api(MAX_MESSAGE_BYTES), documents: api(MAX_DOCUMENT_MESSAGE_BYTES) };
        let keys =
            KeyServiceServer::from_arc(handlers).max_decoding_message_size(MAX_OTHER_MESSAGE_BYTES);
        let health_service =
            tonic_health::server::HealthService::from_health_reporter(health.0.clone());
        let health_server = tonic_health::pb::health_server::HealthServer::new(health_service);
        let other = MAX_OTHER_MESSAGE_BYTES;
        let others = Routes::new(keys)
            .add_service(health_server.max_decoding_message_size(other))
            .add_service(reflection().build_v1()?.max_decoding_message_size(other))
            .add_service(reflection().build_v1alpha()?.max_decoding_message_size(other))
            .prepare();
        let services = Services { api, others };
        Ok(Self { config, observe, limits, aside: Aside::new(aside), services })
    }

    /// Serves connections until `shutdown`, then finishes the calls under way.
    ///
    /// A connection that never speaks can hold this up: the caller sets a
    /// deadline.
    ///
    /// # Errors
    /// What tonic refuses.
    pub async fn serve<I, C, E>(
        self,
        incoming: I,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Fault>
    where
        I: Stream<Item = Result<C, E>>,
        C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        E: Into<Fault>,
    {
        let Self { config, observe, limits, aside, services } = self;
        tonic::transport::Server::builder()
            // Off in tonic unless set: hyper's guards against reset floods, and
            // the bound on streams.
            .max_concurrent_streams(config.max_streams)
            .http2_max_pending_accept_reset_streams(Some(200))
            .http2_max_local_error_reset_streams(Some(1_024))
            .http2_max_header_list_size(16 * 1024)
            .http2_keepalive_interval(Some(config.keepalive))
            .http2_keepalive_timeout(Some(config.keepalive / 3))
            // The CA is looked at only when a connection opens. With tonic's own
            // grace period, the connection would be cut without being asked to end.
            .max_connection_age(config.max_connection_age)
            .layer(observe)
            .layer(limits)
            .layer(aside)
            .serve_with_incoming_shutdown(services, incoming, shutdown)
            .await?;
        Ok(())
    }
}

/// The API. tonic limits messages per service; only calls with a template need
/// large ones.
#[derive(Clone)]
struct Api {
    plain: SecretsServiceServer<Handlers>,
    documents: SecretsServiceServer<Handlers>,
}

impl Service<http::Request<Body>> for Api {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = <SecretsServiceServer<Handlers> as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match takes_document(request.uri().path()) {
            true => self.documents.call(request),
            false => self.plain.call(request),
        }
    }
}

/// All services. tonic's routes are made for any number of them, and take as long as
/// all else that is done for a short call: the API does not go that way.
#[derive(Clone)]
struct Services {
    api: Api,
    others: Routes,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<
        <Api as Service<http::Request<Body>>>::Future,
        <Routes as Service<http::Request<Body>>>::Future,
    >;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match is_api(request.uri().path()) {
            true => Either::Left(self.api.call(request)),
            false => Either::Right(self.others.call(request)),
        }
    }
}

fn is_api(path: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE));
    method.is_some_and(|method| method.starts_with('/'))
}
