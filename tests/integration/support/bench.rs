//! The operations on a store in memory and a turned clock, without a server.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use workflow_secrets::{
    domain::{
        Alias, CallerId, Clock as _, Description, Environment, Plaintext, RequestId, SecretName,
        Timestamp, WorkspaceId,
    },
    envelope::{Keyring, KeyringConfig},
    service::{
        CreateSecret, Credential, Credentials, Error, ExpiryChange, Limits, Parts, ResolveSecrets,
        Secrets, UpdateSecret,
        access::{Caller, Policy},
        audit::{AuditConfig, AuditLog, AuditSink},
    },
    store::Store,
};

use super::{fake_kms::FakeKms, manual_clock::ManualClock, memory_store::MemoryStore};

/// The operations, and all that they are made of.
pub(crate) struct Bench {
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) caller: Caller,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        Self::on(store.clone(), store, AuditSink::Writer(Box::new(io::sink())))
    }

    pub(crate) fn on(store: Arc<MemoryStore>, seen: Arc<dyn Store>, audit: AuditSink) -> Self {
        let clock = Arc::new(ManualClock::default());
        let id = CallerId::parse("spiffe://test/everything").unwrap();
        let environment = Environment::parse("test").unwrap();
        let keyring = Keyring::new(
            Arc::new(FakeKms::default()),
            seen.clone(),
            clock.clone(),
            environment.clone(),
            KeyringConfig::default(),
        );
        let secrets = Secrets::new(Parts {
            store: seen,
            keyring,
            clock: clock.clone(),
            audit: AuditLog::start(audit, AuditConfig::default()).unwrap(),
            policy: Arc::new(ArcSwap::from_pointee(Policy::everything(id.clone()))),
            environment,
            limits: Limits { max_secrets_per_workspace: 2_000, ..Limits::default() },
        });
        let caller = Caller { id, actor: None, trace_id: None };
        Self { secrets: Arc::new(secrets), store, clock, caller }
    }

    /// So much later than now.
    pub(crate) fn later(&self, by: Duration) -> Timestamp {
        let now = self.clock.now();
        let nanos = u64::from(now.nanos()) + u64::from(by.subsec_nanos());
        let carry = i64::try_from(by.as_secs() + nanos / 1_000_000_000).unwrap();
        let nanos = u32::try_from(nanos % 1_000_000_000).unwrap();
        Timestamp::new(now.seconds() + carry, nanos).unwrap()
    }

    pub(crate) async fn create(
        &self,
        name: &str,
        expire_time: Option<Timestamp>,
        request_id: Option<&str>,
    ) -> Result<(), Error> {
        let request = CreateSecret {
            workspace: workspace(),
            name: self::name(name),
            value: Plaintext::parse("value".to_owned()).ok().unwrap(),
            description: Description::parse(&"d".repeat(512)).unwrap(),
            owner: None,
            expire_time,
            request_id: request_id.map(|id| RequestId::parse(id).unwrap()),
            validate_only: false,
        };
        self.secrets.create(&self.caller, request).await.map(|_| ())
    }

    pub(crate) async fn expire(&self, name: &str, expiry: ExpiryChange) -> Result<(), Error> {
        let request = UpdateSecret {
            workspace: workspace(),
            name: self::name(name),
            value: None,
            description: None,
            expiry,
            etag: None,
            allow_missing: false,
            owner: None,
            request_id: None,
            validate_only: false,
        };
        self.secrets.update(&self.caller, request).await.map(|_| ())
    }

    pub(crate) async fn resolve(&self, name: &str) -> Result<String, Error> {
        let secret = self::name(name);
        let alias = Alias::from(&secret);
        let request = ResolveSecrets {
            workspace: workspace(),
            credentials: Credentials::new(vec![Credential { secret, alias }]).unwrap(),
            workflow_id: None,
            run_id: None,
        };
        let mut resolved = self.secrets.resolve(&self.caller, request).await?;
        Ok(resolved.remove(0).payload.value.expose().to_owned())
    }
}

pub(crate) fn workspace() -> WorkspaceId {
    WorkspaceId::parse("ws").unwrap()
}

pub(crate) fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

/// A sink that fails on demand.
pub(crate) struct Breaking(pub(crate) Arc<AtomicBool>);

impl Write for Breaking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
