//! Administration of data keys.

mod crashes;
mod due;
mod reencryption;
mod rewrapping;
mod rotation;
mod shredding;

use std::{any::Any, io, sync::Arc, time::Duration};

use workflow_secrets::{
    domain::{Alias, Plaintext, RequestId, SecretName, SystemClock, WorkspaceId},
    service::{
        CreateSecret, Credential, Credentials, DeleteSecret, Error, ExpiryChange, Limits,
        ReencryptWorkspace, Reencrypted, ResolveSecrets, RewrapDataKeys, Rewrapped, RotateDataKey,
        Secrets, Seen, Steps, UndeleteSecret, UpdateSecret, WorkspaceKeys, audit::AuditSink,
    },
    store::{Key, Store, codec::StoredKey, embedded::EmbeddedStore},
};

use crate::{
    store_redis::connect,
    support::{
        fake_kms::FakeKms,
        manual_clock::ManualClock,
        redis_server::{Options, RedisServer},
        service,
    },
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Both engines, fresh, each with what must live as long.
async fn engines() -> Vec<(Arc<dyn Store>, Box<dyn Any>)> {
    let server = RedisServer::start(Options::default()).await;
    let redis = connect(&server).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let embedded = EmbeddedStore::open(&path, Arc::new(SystemClock::default())).unwrap();
    vec![(redis, Box::new(server)), (Arc::new(embedded), Box::new(directory))]
}

/// What replicas share.
struct Rig {
    store: Arc<dyn Store>,
    kms: Arc<FakeKms>,
    clock: Arc<ManualClock>,
    limits: Limits,
    /// One of them.
    secrets: Arc<Secrets>,
}

impl Rig {
    fn new(store: Arc<dyn Store>) -> Self {
        Self::keeping(store, 7 * DAY)
    }

    /// Deleted secrets may come back for so long.
    fn keeping(store: Arc<dyn Store>, deleted_retention: Duration) -> Self {
        let (kms, clock) = (Arc::new(FakeKms::default()), Arc::new(ManualClock::default()));
        let sink = AuditSink::Writer(Box::new(io::sink()));
        let limits = Limits { deleted_retention, ..Limits::default() };
        let (a, b, c) = (store.clone(), kms.clone(), clock.clone());
        let secrets = Arc::new(service::secrets_within(a, b, c, sink, limits));
        Self { store, kms, clock, limits, secrets }
    }

    /// One that has just started, on this view of the store.
    fn replica(&self, store: Arc<dyn Store>) -> Arc<Secrets> {
        let sink = AuditSink::Writer(Box::new(io::sink()));
        let (kms, clock) = (self.kms.clone(), self.clock.clone());
        Arc::new(service::secrets_within(store, kms, clock, sink, self.limits))
    }

    async fn keys(&self) -> WorkspaceKeys {
        let request = workflow_secrets::service::DescribeWorkspaceKeys { workspace: ws() };
        self.secrets.describe_keys(&service::caller(), request).await.unwrap()
    }

    async fn rotate(&self) -> WorkspaceKeys {
        // So that no two keys retire at one moment.
        self.clock.advance(Duration::from_nanos(1));
        rotate(&self.secrets).await.unwrap()
    }

    /// The record of a retired key.
    async fn retired(&self, key: &StoredKey) -> Option<workflow_secrets::store::Record> {
        self.store.read(&ws(), &[Key::data_key(key.wrapped.id)]).await.unwrap().remove(0)
    }
}

fn ws() -> WorkspaceId {
    WorkspaceId::parse("ws").unwrap()
}

fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

fn plaintext(text: &str) -> Plaintext {
    Plaintext::parse(text.to_owned()).ok().unwrap()
}

async fn create(secrets: &Arc<Secrets>, to: &str, value: &str) -> Result<(), Error> {
    create_once(secrets, to, value, None).await
}

async fn create_once(
    secrets: &Arc<Secrets>,
    to: &str,
    value: &str,
    request_id: Option<&str>,
) -> Result<(), Error> {
    let request = CreateSecret {
        workspace: ws(),
        name: name(to),
        value: plaintext(value),
        description: Default::default(),
        owner: None,
        expiry: None,
        request_id: request_id.map(|id| RequestId::parse(id).unwrap()),
        validate_only: false,
    };
    secrets.create(&service::caller(), request).await.map(|_| ())
}

async fn update(secrets: &Arc<Secrets>, to: &str, value: &str) -> Result<(), Error> {
    let request = UpdateSecret {
        workspace: ws(),
        name: name(to),
        value: Some(plaintext(value)),
        description: None,
        expiry: ExpiryChange::Keep,
        etag: None,
        fencing_token: None,
        allow_missing: false,
        owner: None,
        request_id: None,
        validate_only: false,
    };
    secrets.update(&service::caller(), request).await.map(|_| ())
}

async fn delete(secrets: &Arc<Secrets>, what: &str) {
    let request = DeleteSecret {
        workspace: ws(),
        name: name(what),
        etag: None,
        request_id: None,
        permanent: false,
    };
    secrets.delete(&service::caller(), request).await.unwrap();
}

async fn undelete(secrets: &Arc<Secrets>, what: &str) {
    let request = UndeleteSecret { workspace: ws(), name: name(what), uid: None, request_id: None };
    secrets.undelete(&service::caller(), request).await.unwrap();
}

/// A value, the current one or an earlier one.
async fn read(secrets: &Secrets, from: &str, version: Option<u64>) -> Result<String, Error> {
    let secret = name(from);
    let alias = Alias::from(&secret);
    let request = ResolveSecrets {
        workspace: ws(),
        credentials: Credentials::new(vec![Credential {
            secret,
            alias,
            version,
            seen: Seen::default(),
        }])
        .unwrap(),
        workflow_id: None,
        run_id: None,
    };
    let resolved = secrets.resolve(&service::caller(), request).await?;
    Ok(resolved[0].payload.value.expose().to_owned())
}

async fn rotate(secrets: &Arc<Secrets>) -> Result<WorkspaceKeys, Error> {
    let request = RotateDataKey { workspace: ws(), data_key: None };
    secrets.rotate_data_key(&service::caller(), request).await
}

/// The last step of a job.
async fn last<T>(steps: Result<Steps<T>, Error>) -> Result<T, Error> {
    let (mut steps, mut last) = (steps?, None);
    while let Some(step) = steps.recv().await {
        last = Some(step);
    }
    last.expect("a step")
}

async fn reencrypt(secrets: &Arc<Secrets>, forget_requests: bool) -> Result<Reencrypted, Error> {
    let request = ReencryptWorkspace { workspace: ws(), forget_requests };
    last(secrets.reencrypt(&service::caller(), request).await).await
}

async fn rewrap(secrets: &Arc<Secrets>) -> Result<Rewrapped, Error> {
    let request = RewrapDataKeys { workspace: None, kms_key: None };
    last(secrets.rewrap_data_keys(&service::caller(), request).await).await
}
