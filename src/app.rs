//! Floor 5: wiring. Listener and shutdown are handed in, so that tests run the
//! very server that production runs.

mod dev;
mod workers;

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, runtime::Handle, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::{dev::dev, workers::Workers};
use crate::{
    admin::Admin,
    config::{ServeConfig, StoreConfig, load_policy, load_shredded},
    domain::{Clock, SystemClock},
    grpc::{
        Fault, Grpc, Health, ServerConfig,
        accept::{self, AcceptLimits, Incoming},
        tls::{self, TlsFiles},
    },
    kms::{GuardConfig, Guarded, MeasuredKms, aws::AwsKms},
    metrics::{Certificate, Metrics, Watched},
    service::{
        Parts, Secrets,
        audit::{AuditLog, AuditSink},
    },
    store::{
        MeasuredStore, Store, embedded::EmbeddedStore, redis::RedisStore, witness::ShreddedList,
    },
    telemetry::{self, Scrape},
    watch::Watch,
};

/// How often files and the store are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// In which time all cached workspaces are looked at whether another replica
/// destroyed them.
const TOMBSTONES_WITHIN: Duration = Duration::from_secs(30);
/// How often usage is written: what a crash loses of it.
const WRITE_USAGE_EVERY: Duration = Duration::from_secs(5);

/// Why the service could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store, the KMS client or the audit stream refused at start.
    #[error("{0}")]
    Start(String),
    /// The server ended by itself.
    #[error("server: {0}")]
    Serve(Box<dyn std::error::Error + Send + Sync>),
}

impl RunError {
    fn start(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Start(format!("{what}: {error}"))
    }
}

/// What a server is given.
pub struct Given {
    /// Calls come here.
    pub listener: TcpListener,
    /// Probes and Prometheus come here.
    pub admin: Option<TcpListener>,
    /// Counts and times what it does.
    pub metrics: Metrics,
    /// What Prometheus is told.
    pub scrape: Option<Scrape>,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// Where probes and Prometheus come, and what the latter is told.
type Eyes = (TcpListener, Option<Scrape>);

/// How a server comes to its end.
struct Ending {
    /// SIGTERM has come.
    shutdown: CancellationToken,
    /// Take no more connections and calls.
    stop: CancellationToken,
    drain_delay: Duration,
    grace: Duration,
}

/// Serves in production until `shutdown`. Returns when the grace period ends.
///
/// # Errors
/// [`RunError`].
pub async fn serve(config: ServeConfig, given: Given) -> Result<Instant, RunError> {
    let Given { listener, admin, metrics, scrape, shutdown } = given;
    for warning in config.warnings {
        tracing::warn!("{warning}");
    }
    let workers = Workers::start().map_err(|error| RunError::start("threads", error))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let store: Arc<dyn Store> = match config.store {
        StoreConfig::Redis(mut redis) => {
            redis.metrics = metrics.clone();
            redis.runtimes = workers.runtimes().to_vec();
            let store = RedisStore::connect(*redis).await;
            Arc::new(store.map_err(|error| RunError::start("Redis", error))?)
        }
        StoreConfig::Embedded(path) => Arc::new(
            EmbeddedStore::open(&path, Arc::clone(&clock))
                .map_err(|error| RunError::start("store", error))?,
        ),
    };
    let store: Arc<dyn Store> = Arc::new(MeasuredStore::new(store, metrics.clone()));
    let kms = AwsKms::connect(config.kms).await.map_err(|error| RunError::start("KMS", error))?;
    let kms = Guarded::new(Arc::new(kms), Arc::clone(&clock), GuardConfig::default());
    // Outside the guard: what it does not let through counts too.
    let kms = MeasuredKms::new(Arc::new(kms), metrics.clone());
    let stream = match &config.audit {
        AuditSink::File(path) => format!("audit stream {}", path.display()),
        _ => "audit stream".to_owned(),
    };
    let audit = AuditLog::start(config.audit, config.audit_config)
        .map_err(|error| RunError::start(&stream, error))?;
    let policy_file = config.policy_file.clone();
    let told = metrics.clone();
    let load = move || {
        let loaded = load_policy(&policy_file);
        told.file_load(Watched::Policy, loaded.is_ok());
        loaded
    };
    let policies = Watch::start("policy", vec![config.policy_file], load)
        .map_err(|error| RunError::start("policy", error))?;
    let tls_files = config.tls_files;
    let paths = tls_files.paths();
    let told = metrics.clone();
    let load = move || {
        let loaded = tls::load(&tls_files);
        told.file_load(Watched::Tls, loaded.is_ok());
        if loaded.is_ok() {
            tell_expiry(&tls_files, &told);
        }
        loaded
    };
    let certificates =
        Watch::start("TLS files", paths, load).map_err(|error| RunError::start("TLS", error))?;
    let (policy, tls) = (policies.current(), certificates.current());
    let stop = CancellationToken::new();
    tokio::spawn(policies.run(LOOK_EVERY, stop.clone()));
    tokio::spawn(certificates.run(LOOK_EVERY, stop.clone()));
    let shredded = match config.shredded_file {
        None => Arc::default(),
        Some(file) => watch_shredded(file, metrics.clone(), stop.clone())?,
    };
    let secrets = Secrets::new(Parts {
        store,
        kms: Arc::new(kms),
        keyring: config.keyring,
        clock,
        audit,
        policy,
        environment: config.environment,
        limits: config.limits,
        shredded,
    })
    .measured(metrics);
    let limits = AcceptLimits::default();
    let incoming = accept::spread(listener, tls, limits, stop.clone(), workers.runtimes());
    let served = incoming.into_iter().zip(workers.runtimes().iter().cloned()).collect();
    let ending = Ending { shutdown, stop, drain_delay: config.drain_delay, grace: config.grace };
    let eyes = admin.map(|listener| (listener, scrape));
    // The threads go on until all is done.
    run(Arc::new(secrets), served, eyes, ending).await
}

/// The workspaces that are listed as destroyed, read again when the file changes.
fn watch_shredded(
    file: PathBuf,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<Arc<ArcSwap<ShreddedList>>, RunError> {
    let files = vec![file.clone()];
    let load = move || {
        let loaded = load_shredded(&file);
        metrics.file_load(Watched::Shredded, loaded.is_ok());
        loaded
    };
    let lists = Watch::start("shredded workspaces", files, load)
        .map_err(|error| RunError::start("shredded workspaces", error))?;
    let current = lists.current();
    tokio::spawn(lists.run(LOOK_EVERY, stop));
    Ok(current)
}

/// Tells when the first certificate of each file expires.
fn tell_expiry(files: &TlsFiles, metrics: &Metrics) {
    for (file, path) in
        [(Certificate::Server, &files.cert), (Certificate::ClientCa, &files.client_ca)]
    {
        if let Some(seconds) = tls::first_expiry(path) {
            metrics.certificate_expiry(file, seconds);
        }
    }
}

/// Serves until shutdown, then ends in order: health says NOT_SERVING, calls
/// are taken a little longer, then those under way finish, the changes behind
/// calls that were given up are committed, and usage and the audit stream are
/// written.
async fn run(
    secrets: Arc<Secrets>,
    incoming: Vec<(Incoming, Handle)>,
    eyes: Option<Eyes>,
    ending: Ending,
) -> Result<Instant, RunError> {
    let Ending { shutdown, stop, drain_delay, grace } = ending;
    let health = Health::default();
    let watched = CancellationToken::new();
    let _blind = watched.clone().drop_guard();
    if let Some((listener, scrape)) = eyes {
        tokio::spawn(Admin { health: health.clone(), scrape }.serve(listener, watched));
    }
    let upkeep = tokio::spawn(upkeep(Arc::clone(&secrets), health.clone()));
    let shredded = tokio::spawn(forget_shredded(Arc::clone(&secrets)));
    let purge = Arc::clone(&secrets);
    let purge = tokio::spawn(async move { purge.purge_without_end().await });
    let idle = CancellationToken::new();
    let mut usage = tokio::spawn(write_usage(Arc::clone(&secrets), idle.clone()));
    let (config, home) = (ServerConfig::default(), Handle::current());
    let aside = incoming.iter().any(|(_, runtime)| runtime.id() != home.id()).then_some(home);
    let grpc = Grpc::new(Arc::clone(&secrets), &health, config, telemetry::call_span, aside)
        .map_err(RunError::Serve)?;
    let mut server = JoinSet::new();
    for (incoming, runtime) in incoming {
        let shutdown = stop.clone().cancelled_owned();
        server.spawn_on(grpc.clone().serve(incoming, shutdown), &runtime);
    }
    tokio::select! {
        ended = served(&mut server) => return ended.map(|()| Instant::now()),
        () = shutdown.cancelled() => {}
    }

    tracing::info!("shutting down");
    // The last tenth is for what remains to be written.
    let end = Instant::now() + grace;
    let deadline = end - grace / 10;
    // A purge that is cut short is whole or not done.
    purge.abort();
    upkeep.abort();
    shredded.abort();
    // Or it may say SERVING once more.
    let _ = upkeep.await;
    health.shutting_down().await;
    if tokio::time::timeout(drain_delay, served(&mut server)).await.is_err() {
        stop.cancel();
        secrets.ending.cancel();
        health.end_watches().await;
        // A connection that never speaks would hold the server up for ever.
        if tokio::time::timeout_at(deadline, served(&mut server)).await.is_err() {
            tracing::warn!("grace period over: connections cut");
        }
    }
    secrets.changes.close();
    if tokio::time::timeout_at(deadline, secrets.changes.wait()).await.is_err() {
        tracing::warn!("grace period over: changes under way given up");
    }
    idle.cancel();
    if tokio::time::timeout_at(deadline, &mut usage).await.is_err() {
        tracing::warn!("grace period over: usage of the last seconds lost");
        usage.abort();
    }
    if !matches!(tokio::time::timeout_at(end, secrets.audit.flush()).await, Ok(Ok(()))) {
        tracing::error!("audit lines may be lost");
    }
    tracing::info!("ended");
    Ok(end)
}

/// Until the servers on all runtimes have ended, or one has by a fault.
async fn served(servers: &mut JoinSet<Result<(), Fault>>) -> Result<(), RunError> {
    while let Some(ended) = servers.join_next().await {
        ended.map_err(|error| RunError::Serve(error.into()))?.map_err(RunError::Serve)?;
    }
    Ok(())
}

/// Keeps memory free of data keys of workspaces that were destroyed elsewhere.
async fn forget_shredded(secrets: Arc<Secrets>) {
    loop {
        secrets.forget_shredded(TOMBSTONES_WITHIN).await;
    }
}

/// Keeps readiness true to what the store can do, and memory free of data keys
/// and matchers that nobody asks for. The KMS has no part in readiness: cached workspaces are
/// served without it.
async fn upkeep(secrets: Arc<Secrets>, health: Health) {
    let mut ready = None;
    loop {
        secrets.tidy().await;
        let now = secrets.health().await;
        if ready != Some(now.is_ok()) {
            match &now {
                Ok(()) => tracing::info!("ready"),
                Err(error) => tracing::warn!(%error, "not ready"),
            }
        }
        ready = Some(now.is_ok());
        health.ready(now.is_ok()).await;
        secrets.metrics.ready(now.is_ok());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Writes usage behind, for a last time when no more calls come.
async fn write_usage(secrets: Arc<Secrets>, idle: CancellationToken) {
    let mut last = false;
    while !last {
        let pause = tokio::time::sleep(WRITE_USAGE_EVERY);
        last = idle.run_until_cancelled(pause).await.is_none();
        secrets.write_usage().await;
    }
}
