//! The service's operations without a server, on an engine of choice.

use std::{any::Any, sync::Arc};

use arc_swap::ArcSwap;
use workflow_secrets::{
    domain::{
        CallerId, Clock, ConnectionId, Deadline, Description, Environment, Integration, Owner,
        Plaintext, SecretName, WorkspaceId,
    },
    envelope::KeyringConfig,
    service::{
        CreateSecret, Error, Limits, Parts, SecretView, Secrets,
        access::{Caller, Policy},
        audit::{AuditConfig, AuditLog, AuditSink},
    },
    store::{Store, embedded::EmbeddedStore},
};

use super::{
    store_redis,
    support::{
        fake_kms::FakeKms,
        manual_clock::ManualClock,
        redis_server::{Options, RedisServer},
    },
};

/// Makes a test of each function, on both engines. Each is given a fresh store
/// and a clock.
macro_rules! on_both_engines {
    ($($test:ident)*) => {
        mod embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let clock = std::sync::Arc::default();
                    let (store, _keep) = crate::on_engines::embedded(&clock);
                    super::$test(store, clock).await;
                }
            )*
        }
        mod redis {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let (store, _keep) = crate::on_engines::redis().await;
                    super::$test(store, std::sync::Arc::default()).await;
                }
            )*
        }
    };
}
pub(crate) use on_both_engines;

/// A store and what must live as long.
type Kept = (Arc<dyn Store>, Box<dyn Any + Send>);

pub(crate) fn embedded(clock: &Arc<ManualClock>) -> Kept {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("store"), clock.clone()).unwrap();
    (Arc::new(store), Box::new(dir))
}

pub(crate) async fn redis() -> Kept {
    let server = RedisServer::start(Options::default()).await;
    (store_redis::connect(&server).await, Box::new(server))
}

/// Who may do what in every workspace.
const POLICY: &str = r#"
[[grant]]
caller = "spiffe://test/executor"
role = "executor"
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/platform"
role = "platform"
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/operator"
role = "operator"
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/sheets"
role = "integration"
integrations = ["google_sheets"]
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/sheets-2"
role = "integration"
integrations = ["google_sheets"]
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/slack"
role = "integration"
integrations = ["slack"]
workspaces = ["*"]
"#;

pub(crate) fn secrets(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Arc<Secrets> {
    let environment = Environment::parse("test").unwrap();
    let sink = AuditSink::Writer(Box::new(std::io::sink()));
    Arc::new(Secrets::new(Parts {
        store,
        kms: Arc::new(FakeKms::default()),
        keyring: KeyringConfig::default(),
        clock,
        audit: AuditLog::start(sink, AuditConfig::default()).unwrap(),
        policy: Arc::new(ArcSwap::from_pointee(Policy::parse(POLICY).unwrap())),
        environment,
        limits: Limits::default(),
        shredded: Arc::default(),
    }))
}

/// One of the policy's callers.
pub(crate) fn caller(name: &str) -> Caller {
    let id = CallerId::parse(&format!("spiffe://test/{name}")).unwrap();
    Caller { id, actor: None, trace_id: None, deadline: Deadline::NONE }
}

pub(crate) fn workspace() -> WorkspaceId {
    WorkspaceId::parse("ws").unwrap()
}

pub(crate) fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

pub(crate) fn plaintext(text: &str) -> Plaintext {
    Plaintext::parse(text.to_owned()).ok().unwrap()
}

/// Creates a secret, of an integration if one is named.
pub(crate) async fn create(
    secrets: &Arc<Secrets>,
    name: &str,
    integration: Option<&str>,
) -> Result<SecretView, Error> {
    let owner = integration.map(|integration| Owner {
        integration: Integration::parse(integration).unwrap(),
        connection_id: ConnectionId::parse("conn-1").unwrap(),
    });
    let by = match integration {
        None => "platform",
        Some("slack") => "slack",
        Some(_) => "sheets",
    };
    let request = CreateSecret {
        workspace: workspace(),
        name: self::name(name),
        value: plaintext("token-0"),
        description: Description::default(),
        owner,
        expiry: None,
        request_id: None,
        validate_only: false,
    };
    secrets.create(&caller(by), request).await
}
