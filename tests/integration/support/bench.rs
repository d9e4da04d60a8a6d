//! The operations on a store in memory and a turned clock, without a server.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use workflow_secrets::{
    domain::{
        Alias, Clock as _, Description, Plaintext, RequestId, SecretName, Timestamp, WorkspaceId,
    },
    service::{
        CreateSecret, Credential, Credentials, DeleteSecret, Error, Expiry, ExpiryChange,
        ListSecrets, PageSize, ResolveSecrets, SecretView, Secrets, Seen, UndeleteSecret,
        UpdateSecret, access::Caller, audit::AuditSink,
    },
    store::Store,
};

use super::{fake_kms::FakeKms, manual_clock::ManualClock, memory_store::MemoryStore, service};

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
        let secrets = service::secrets(seen, Arc::new(FakeKms::default()), clock.clone(), audit);
        Self { secrets: Arc::new(secrets), store, clock, caller: service::caller() }
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
            expiry: expire_time.map(Expiry::At),
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
            fencing_token: None,
            allow_missing: false,
            owner: None,
            request_id: None,
            validate_only: false,
        };
        self.secrets.update(&self.caller, request).await.map(|_| ())
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), Error> {
        let request = DeleteSecret {
            workspace: workspace(),
            name: self::name(name),
            etag: None,
            permanent: false,
            request_id: None,
        };
        self.secrets.delete(&self.caller, request).await
    }

    /// All there is to list, deleted secrets too.
    pub(crate) async fn list(&self) -> Vec<SecretView> {
        let request = ListSecrets {
            workspace: workspace(),
            page_size: PageSize::parse(0).unwrap(),
            page_token: String::new(),
            show_system_managed: true,
            show_deleted: true,
            expiring_within: None,
        };
        self.secrets.list(&self.caller, request).await.unwrap().secrets
    }

    pub(crate) async fn undelete(&self, name: &str) -> Result<(), Error> {
        let (workspace, name) = (workspace(), self::name(name));
        let request = UndeleteSecret { workspace, name, uid: None, request_id: None };
        self.secrets.undelete(&self.caller, request).await.map(|_| ())
    }

    pub(crate) async fn resolve(&self, name: &str) -> Result<String, Error> {
        let secret = self::name(name);
        let alias = Alias::from(&secret);
        let request = ResolveSecrets {
            workspace: workspace(),
            credentials: Credentials::new(vec![Credential {
                secret,
                alias,
                version: None,
                seen: Seen::default(),
            }])
            .unwrap(),
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
