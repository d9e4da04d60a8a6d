//! What all changes have in common: idempotency, optimistic
//! concurrency, the audit line, and a task of their own.

use std::{borrow::Borrow, future::Future, sync::Arc};

use tokio::time::timeout;
use tracing::Instrument as _;

use super::{
    ActiveKey, Caller, Error, Grants, SecretView, Secrets, Stored,
    admission::Weight,
    audit::{Action, AuditEvent},
    idempotency::Parts,
    lease::StoredLease,
};
use crate::{
    domain::{
        Deadline, ManagedBy, Plaintext, RequestId, Revision, SecretMetadata, SecretName, Timestamp,
        WorkspaceId,
    },
    envelope::{self, Binding, DataKey, Payload},
    store::{
        Batch, Commit, Expect, Key, Operation, Record, Write,
        codec::{self, Fingerprint, RequestOutcome},
    },
};

/// Changes under way. They outlive calls that are given up, so the bound on
/// calls does not hold them.
const MAX_CHANGES: usize = 4_000;

/// Attempts before a lost race is told to a caller that sent no etag.
pub(super) const ATTEMPTS: usize = 8;

/// What a change left behind.
pub(super) enum Changed {
    /// The secret as it is now.
    Stored(SecretMetadata, Revision),
    /// The secret as it would be: `validate_only`.
    Preview(SecretMetadata),
    /// The secret is gone.
    Deleted,
}

impl Changed {
    pub(super) fn into_view(
        self,
        workspace: &WorkspaceId,
        now: Timestamp,
    ) -> Result<SecretView, Error> {
        match self {
            Changed::Stored(metadata, revision) => {
                Ok(SecretView::stored(workspace, Stored { metadata, revision }, now))
            }
            Changed::Preview(metadata) => Ok(SecretView::preview(workspace, metadata, now)),
            Changed::Deleted => Err(Error::RecordCorrupt("request record")),
        }
    }
}

/// The records a change looks at, all read at one moment.
pub(super) struct Snapshot {
    pub(super) stored: Option<Stored>,
    pub(super) value: Option<Record>,
    pub(super) active: Option<ActiveKey>,
    pub(super) lease: Option<StoredLease>,
}

/// One kind of change.
pub(super) trait Change: Send + Sync + 'static {
    const ACTION: Action;
    fn workspace(&self) -> &WorkspaceId;
    fn name(&self) -> &SecretName;
    /// `None` also for a change that stores nothing.
    fn request_id(&self) -> Option<&RequestId>;
    /// What makes two requests the same.
    fn parts<'a>(&'a self, caller: &'a Caller) -> Parts<'a>;
    /// Whether the sealed value has to be read too.
    fn needs_value(&self) -> bool;
    /// Whether the newest lease has to be read too.
    fn needs_lease(&self) -> bool {
        false
    }
    /// Whether the caller may try at all; told before anything is looked up.
    fn authorize(&self, grants: &Grants) -> Result<(), Error>;
    /// Decides and commits; [`Error::ConcurrentUpdate`] after a lost race.
    fn attempt(
        &mut self,
        secrets: &Secrets,
        caller: &Caller,
        snapshot: Snapshot,
    ) -> impl Future<Output = Result<Changed, Error>> + Send;
}

impl Secrets {
    /// Carries a change out.
    pub(super) async fn change(
        self: &Arc<Self>,
        caller: &Caller,
        mut change: impl Change,
    ) -> Result<Changed, Error> {
        let (secrets, caller) = (Arc::clone(self), caller.clone());
        let deadline = caller.deadline;
        self.apart(deadline, async move {
            let outcome = secrets.attempts(&caller, &mut change).await;
            (secrets.change_event(&caller, &change, &outcome), outcome)
        })
        .await
    }

    /// Does what changes the store, and writes its audit line, in a task of its
    /// own, so that a caller who hangs up or times out cannot stop it between
    /// the commit and the line.
    pub(super) async fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Deadline,
        work: impl Future<Output = (AuditEvent, Result<T, Error>)> + Send + 'static,
    ) -> Result<T, Error> {
        let secrets = Arc::clone(self);
        let work = async move {
            let (event, outcome) = work.await;
            secrets.audited_change(event, outcome).await
        };
        self.in_task(deadline, work).await
    }

    /// Goes on if the caller gives up, or its deadline passes; shutdown waits
    /// for it.
    pub(super) async fn in_task<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        if self.changes.len() >= MAX_CHANGES {
            return Err(Error::Overloaded);
        }
        let task = self.changes.spawn(work.in_current_span());
        match timeout(self.left(deadline), task).await {
            Ok(done) => done.unwrap_or(Err(Error::Internal("the change ended early"))),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// As [`Secrets::audited`], for what may have changed something.
    pub(super) async fn audited_change<T>(
        &self,
        event: AuditEvent,
        outcome: Result<T, Error>,
    ) -> Result<T, Error> {
        let audited = self.audited(Deadline::NONE, vec![event.clone()], outcome).await;
        if event.outcome == "ok" && audited.is_err() {
            // Between the look at the stream and the commit it broke: what was
            // done must be told somewhere.
            tracing::error!(?event, "CHANGE MADE, AUDIT LINE NOT WRITTEN");
        }
        audited
    }

    async fn attempts<C: Change>(
        self: &Arc<Self>,
        caller: &Caller,
        change: &mut C,
    ) -> Result<Changed, Error> {
        change.authorize(&self.grants(caller, change.workspace()))?;
        let _turn = self.turn(caller, change.workspace(), Weight::LIGHT).await?;
        for _ in 0..ATTEMPTS {
            // In this order: a snapshot that shows what the same request did
            // elsewhere meanwhile must be followed by the memory of it.
            let snapshot = self.in_time(caller, self.snapshot(change)).await?;
            let remembered = self.in_time(caller, self.remembered(change)).await?;
            if let Some((id, outcome)) = change.request_id().zip(remembered) {
                return self.replay(caller, change, snapshot.active, id, outcome).await;
            }
            let active = snapshot.active.clone();
            match change.attempt(self, caller, snapshot).await {
                Err(Error::ConcurrentUpdate) => {}
                outcome => {
                    if let (Ok(Changed::Stored(..)), Some(active)) = (&outcome, active) {
                        self.rotate_if_due(caller, change.workspace(), active);
                    }
                    return outcome;
                }
            }
        }
        Err(Error::ConcurrentUpdate)
    }

    async fn snapshot(&self, change: &impl Change) -> Result<Snapshot, Error> {
        let (workspace, name) = (change.workspace(), change.name());
        let mut keys = vec![Key::metadata(name), Key::active_data_key()];
        keys.extend(change.needs_value().then(|| Key::value(name)));
        keys.extend(change.needs_lease().then(|| Key::lease(name)));
        let mut records = self.read_all(workspace, keys).await?.into_iter();
        let mut next = || records.next().flatten();
        Ok(Snapshot {
            stored: Stored::decode(name, next())?,
            active: ActiveKey::decode(next())?,
            value: change.needs_value().then(&mut next).flatten(),
            lease: StoredLease::decode(name, change.needs_lease().then(next).flatten())?,
        })
    }

    async fn remembered(&self, change: &impl Change) -> Result<Option<Vec<u8>>, Error> {
        let Some(id) = change.request_id() else { return Ok(None) };
        Ok(self.store.request(change.workspace(), id).await?)
    }

    fn change_event<C: Change>(
        &self,
        caller: &Caller,
        change: &C,
        outcome: &Result<Changed, Error>,
    ) -> AuditEvent {
        let (reason, version) = match outcome {
            Ok(Changed::Stored(secret, _)) => ("ok", Some(secret.version)),
            Ok(Changed::Preview(_)) => ("validated", None),
            Ok(Changed::Deleted) => ("ok", None),
            Err(error) => (error.reason(), None),
        };
        AuditEvent {
            secret: Some(change.name().clone()),
            version,
            ..self.event(caller, change.workspace(), C::ACTION, reason)
        }
    }

    /// As [`Secrets::sealing_key`], to be had by the caller's deadline.
    pub(super) async fn sealing_key_in_time(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        active: Option<ActiveKey>,
    ) -> Result<(Arc<DataKey>, Operation), Error> {
        self.in_time(caller, self.sealing_key(workspace, active)).await
    }

    /// The key to seal with, and the check that makes the commit fail if the
    /// workspace's data key is replaced or destroyed before it.
    pub(super) async fn sealing_key(
        &self,
        workspace: &WorkspaceId,
        active: Option<ActiveKey>,
    ) -> Result<(Arc<DataKey>, Operation), Error> {
        let wrapped = active.as_ref().map(|active| &active.wrapped);
        let key = self.keyring.for_seal(workspace, wrapped).await?;
        let active = match active {
            Some(active) => active,
            None => {
                let [record] = self.read(workspace, [Key::active_data_key()]).await?;
                ActiveKey::decode(record)?.ok_or(Error::DataKeyMissing)?
            }
        };
        if active.wrapped.id != key.id() {
            return Err(Error::ConcurrentUpdate);
        }
        let unchanged = Operation {
            key: Key::active_data_key(),
            expect: Some(Expect::Revision(active.revision)),
            write: Write::Nothing,
        };
        Ok((key, unchanged))
    }

    /// A value sealed for the revision that `metadata` names.
    pub(super) fn sealed<V: Borrow<Plaintext>>(
        &self,
        workspace: &WorkspaceId,
        key: &DataKey,
        metadata: &SecretMetadata,
        payload: &Payload<V>,
    ) -> Result<Operation, Error> {
        let revision = metadata.value_revision;
        let bytes = self.seal_at(workspace, key, metadata, revision, payload)?;
        Ok(Operation {
            key: Key::value(&metadata.name),
            expect: None,
            write: Write::Put(Record { revision, bytes }),
        })
    }

    /// A value sealed for this revision.
    pub(super) fn seal_at<V: Borrow<Plaintext>>(
        &self,
        workspace: &WorkspaceId,
        key: &DataKey,
        metadata: &SecretMetadata,
        revision: Revision,
        payload: &Payload<V>,
    ) -> Result<Vec<u8>, Error> {
        let binding = Binding {
            environment: &self.environment,
            workspace,
            uid: metadata.uid,
            name: &metadata.name,
            revision,
        };
        let record = envelope::seal(key, &binding, payload)
            .map_err(|_| Error::Internal("no randomness from the operating system"))?;
        Ok(record.into_bytes())
    }

    /// As [`Secrets::commit`], but not begun after the caller's deadline. Once
    /// begun it goes on: whether it was carried out, only a request id tells.
    pub(super) async fn commit_in_time(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(), Error> {
        self.in_due_time(caller)?;
        self.commit(workspace, batch).await
    }

    /// Commits, unless the audit stream is in trouble. A race may be lost also
    /// against the same request id.
    pub(super) async fn commit(&self, workspace: &WorkspaceId, batch: Batch) -> Result<(), Error> {
        self.audit.flush().await.map_err(|_| Error::AuditUnavailable)?;
        let (quota, changes) = (batch.quota, !batch.bookkeeping);
        let committed = self.store.commit(workspace, batch).await;
        // Also if it is not known whether the commit was carried out.
        if changes {
            self.matchers.forget(workspace);
        }
        match committed? {
            Commit::Done => Ok(()),
            Commit::Replayed(_) | Commit::Conflict(_) | Commit::NotEmpty => {
                Err(Error::ConcurrentUpdate)
            }
            Commit::Shredded => Err(Error::WorkspaceShredded),
            Commit::Full => Err(Error::QuotaExceeded {
                limit: quota.map_or(0, |quota| quota.max),
                deleted: quota.is_some_and(|quota| quota.kind == Key::DELETED),
            }),
        }
    }
}

/// The new metadata record, in place of what `expect` says.
pub(super) fn put_metadata(
    metadata: &SecretMetadata,
    revision: Revision,
    expect: Expect,
) -> Operation {
    Operation {
        key: Key::metadata(&metadata.name),
        expect: Some(expect),
        write: Write::Put(Record { revision, bytes: codec::encode_metadata(metadata) }),
    }
}

/// What to remember under a request id.
pub(super) fn remember(
    id: Option<&RequestId>,
    fingerprint: Fingerprint,
    secret: Option<(SecretMetadata, Revision)>,
) -> Option<(RequestId, Vec<u8>)> {
    // The answer tells nothing of earlier versions.
    let secret =
        secret.map(|(secret, revision)| (SecretMetadata { earlier: vec![], ..secret }, revision));
    let outcome = RequestOutcome { fingerprint, secret };
    id.map(|id| (id.clone(), codec::encode_request(&outcome)))
}

/// Whether the caller may change a secret of this kind.
pub(super) fn may_change(grants: &Grants, managed_by: &ManagedBy) -> Result<(), Error> {
    match managed_by {
        ManagedBy::User if grants.manage_user() => Ok(()),
        ManagedBy::User => Err(Error::UserManaged),
        ManagedBy::System(owner) if grants.integration(&owner.integration) => Ok(()),
        // Whose it is, is told to those who could look it up.
        ManagedBy::System(owner) => Err(Error::SystemManaged(grants.list().then(|| owner.clone()))),
    }
}
