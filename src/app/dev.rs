//! The `dev` mode: everything in one directory, nothing to set up.

use std::{
    fs::DirBuilder,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{runtime::Handle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Ending, Given, RunError, run};
use crate::{
    config::DevConfig,
    domain::{CallerId, Clock, Environment, SystemClock},
    envelope::KeyringConfig,
    grpc::accept::{self, AcceptLimits},
    kms::local::LocalKms,
    service::{
        Limits, Parts, Secrets,
        access::Policy,
        audit::{AuditConfig, AuditLog, AuditSink},
    },
    store::{Store, embedded::EmbeddedStore},
};

/// The one caller.
const CALLER: &str = "spiffe://dev.local/developer";

/// Serves for trying out until `shutdown`. Returns when the grace period ends.
///
/// # Errors
/// [`RunError`], also for a listener that is not on loopback.
pub async fn dev(config: DevConfig, given: Given) -> Result<Instant, RunError> {
    let Given { listener, metrics, shutdown, .. } = given;
    let address = listener.local_addr().map_err(|error| RunError::start("listener", error))?;
    let dir = &config.data_dir;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| RunError::start(&dir.display().to_string(), error))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let store: Arc<dyn Store> = Arc::new(
        EmbeddedStore::open(&dir.join("store.redb"), Arc::clone(&clock))
            .map_err(|error| RunError::start("store", error))?,
    );
    let kms = LocalKms::open_or_create(&dir.join("kek"))
        .map_err(|error| RunError::start("local key", error))?;
    let (caller, environment) = CallerId::parse(CALLER)
        .ok()
        .zip(Environment::parse("dev").ok())
        .ok_or_else(|| RunError::Start("dev caller".into()))?;
    let audit = AuditLog::start(AuditSink::File(dir.join("audit.jsonl")), AuditConfig::default())
        .map_err(|error| RunError::start("audit file", error))?;
    let secrets = Secrets::new(Parts {
        store,
        kms: Arc::new(kms),
        keyring: KeyringConfig::default(),
        clock,
        audit,
        policy: Arc::new(ArcSwap::from_pointee(Policy::everything(caller.clone()))),
        environment,
        limits: Limits::default(),
        shredded: Arc::default(),
    })
    .measured(metrics);
    let stop = CancellationToken::new();
    let incoming = accept::plain(listener, caller, AcceptLimits::default(), stop.clone())
        .map_err(|error| RunError::start("--listen", error))?;
    greet(address, dir).map_err(|error| RunError::start("stdout", error))?;
    let ending =
        Ending { shutdown, stop, drain_delay: Duration::ZERO, grace: Duration::from_secs(5) };
    run(Arc::new(secrets), vec![(incoming, Handle::current())], None, ending).await
}

fn greet(address: SocketAddr, dir: &Path) -> io::Result<()> {
    let call = |method: &str, message: &str| {
        format!(
            "grpcurl -plaintext -d '{message}' {address} \
             workflowsecrets.v1.SecretsService/{method}\n"
        )
    };
    // Can be pasted again after a restart.
    let store =
        r#"{"workspace": "hello", "name": "API_KEY", "value": "k_51H8", "allow_missing": true}"#;
    let resolve =
        r#"{"workspace": "hello", "credentials": [{"secret": "API_KEY", "alias": "key"}]}"#;
    let greeting = [
        format!("workflow-secrets dev listens on {address} (plaintext, loopback only).\n"),
        format!("Store, key and audit lines are in {} and survive restarts.\n", dir.display()),
        "Not for production: whoever reaches this port may do everything.\n\nTry:\n".to_owned(),
        call("UpdateSecret", store),
        call("ListSecrets", r#"{"workspace": "hello"}"#),
        call("ResolveSecrets", resolve),
    ]
    .concat();
    let mut stdout = io::stdout().lock();
    stdout.write_all(greeting.as_bytes())?;
    stdout.flush()
}
