//! The operations on a turned clock, a store that loses races and an audit
//! stream that breaks: what a running service shows only by chance.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use workflow_secrets::{
    domain::{Actor, Clock as _, RequestId, Revision, SecretMetadata, SecretUid, WorkspaceId},
    service::{
        Cause, Error, Expiry, ExpiryChange, ListSecrets, PageSize, SecretView, Unresolved,
        audit::AuditSink,
    },
    store::{Batch, Commit, Key, Record, Shredded, Store, StoreError, WorkspacesCursor, codec},
};

use super::support::{
    bench::{Bench, Breaking, name, workspace},
    memory_store::MemoryStore,
};

fn unresolved(asked: &str, cause: Cause) -> Error {
    Error::Unresolved(vec![Unresolved { name: Some(name(asked)), cause, place: None }])
}

const NANO: Duration = Duration::from_nanos(1);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_deleted_secret_comes_back_until_its_time_is_over() {
    const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
    let bench = Bench::new();
    bench.create("KEY", None, None).await.unwrap();
    bench.delete("KEY").await.unwrap();
    bench.clock.advance(WEEK - Duration::from_nanos(1));
    assert_eq!(bench.list().await.len(), 1);
    bench.undelete("KEY").await.unwrap();
    assert_eq!(bench.resolve("KEY").await.unwrap(), "value");

    // It is gone although its records are still there.
    bench.delete("KEY").await.unwrap();
    bench.clock.advance(WEEK);
    let deleted = || bench.store.records(&workspace()).into_keys();
    let deleted = || deleted().filter(|key| key.as_str().starts_with(Key::DELETED)).count();
    assert_eq!(deleted(), 1);
    assert!(bench.list().await.is_empty());
    assert!(matches!(bench.undelete("KEY").await, Err(Error::NotFound { .. })));
    bench.create("KEY", None, None).await.unwrap();
    assert_eq!(deleted(), 1);
}

/// Deletions make room themselves where all that is in their way is due.
#[tokio::test]
async fn what_is_due_does_not_count() {
    let bench = Bench::new();
    bench.create("KEY", None, None).await.unwrap();
    bench.delete("KEY").await.unwrap();
    // As if it had been deleted that often.
    let records = bench.store.records(&workspace());
    let (key, record) =
        records.into_iter().find(|(key, _)| key.as_str().starts_with(Key::DELETED)).unwrap();
    for number in 1..2_000_u16 {
        let mut deleted = codec::decode_deleted(&key, &record.bytes).unwrap();
        let bytes = [&[0; 14][..], &number.to_be_bytes()].concat();
        deleted.metadata.uid = SecretUid::from_bytes(bytes.try_into().unwrap());
        let key = Key::deleted(&name("KEY"), deleted.metadata.uid);
        let bytes = codec::encode_deleted(&deleted);
        bench.store.set(&workspace(), key, Some(Record { bytes, ..record.clone() }));
    }
    bench.create("ONE_MORE", None, None).await.unwrap();
    let full = Err(Error::QuotaExceeded { limit: 2_000, deleted: true });
    assert_eq!(bench.delete("ONE_MORE").await, full);
    bench.clock.advance(Duration::from_secs(7 * 24 * 60 * 60));
    bench.delete("ONE_MORE").await.unwrap();
    assert_eq!(bench.list().await.len(), 1);
    let records = bench.store.records(&workspace()).into_keys();
    let values = records.filter(|key| key.as_str().starts_with(Key::EARLIER)).count();
    assert_eq!(values, 1);
}

#[tokio::test]
async fn expiry_is_exact_to_the_nanosecond() {
    let bench = Bench::new();
    bench.create("KEY", Some(bench.later(SECOND)), None).await.unwrap();
    bench.clock.advance(SECOND - NANO);
    assert_eq!(bench.resolve("KEY").await.as_deref(), Ok("value"));
    bench.clock.advance(NANO);
    let expired = unresolved("KEY", Cause::Expired);
    assert_eq!(bench.resolve("KEY").await, Err(expired));

    let refused = Err(Error::field("expire_time", "must lie in the future"));
    let now = bench.clock.now();
    assert_eq!(bench.create("OTHER", Some(now), None).await, refused);
    assert_eq!(bench.expire("KEY", ExpiryChange::Set(Expiry::At(now))).await, refused);
    bench.expire("KEY", ExpiryChange::Set(Expiry::At(bench.later(NANO)))).await.unwrap();
    assert_eq!(bench.resolve("KEY").await.as_deref(), Ok("value"));
    bench.clock.advance(NANO);
    assert!(bench.resolve("KEY").await.is_err());
    bench.expire("KEY", ExpiryChange::Clear).await.unwrap();
    bench.clock.advance(1_000_000 * SECOND);
    assert_eq!(bench.resolve("KEY").await.as_deref(), Ok("value"));
}

#[tokio::test]
async fn a_missing_name_suggests_another_spelling_to_those_who_may_list() {
    let bench = Bench::new();
    bench.create("stripeKey", None, None).await.unwrap();
    for asked in ["STRIPE_KEY", "StripeKey", "stripekey", "_x"] {
        let told = match asked {
            "StripeKey" | "stripekey" => Some(name("stripeKey")),
            _ => None,
        };
        let missing = unresolved(asked, Cause::Missing(told));
        assert_eq!(bench.resolve(asked).await, Err(missing));
    }
}

#[tokio::test]
async fn a_write_that_too_few_replicas_have_is_not_acknowledged() {
    let bench = Bench::new();
    bench.create("FIRST", None, None).await.unwrap();
    let too_few = || StoreError::NotReplicated { acknowledged: 0, demanded: 1 };
    bench.store.fail_commit(too_few(), true);
    let outcome = bench.create("KEY", None, Some("id")).await;
    assert!(matches!(outcome, Err(Error::StoreUnavailable(_))), "{outcome:?}");
    // The same request finds its outcome, and does nothing twice.
    bench.create("KEY", None, Some("id")).await.unwrap();
    assert_eq!(bench.create("KEY", None, None).await, Err(Error::Exists(name("KEY"))));
}

/// gRPC clients accept 4 MiB unless told otherwise.
#[tokio::test]
async fn a_page_of_the_longest_secrets_fits_a_message() {
    let mut bench = Bench::new();
    bench.caller.actor = Some(Actor::parse(&"\u{1f511}".repeat(256)).unwrap());
    let mut names = Vec::new();
    for number in 1_000..2_000 {
        names.push(format!("{}{number}", "N".repeat(124)));
        bench.create(names.last().unwrap(), None, None).await.unwrap();
    }
    let (mut listed, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListSecrets {
            workspace: workspace(),
            page_size: PageSize::parse(1_000).unwrap(),
            page_token,
            show_system_managed: false,
            show_deleted: false,
            expiring_within: None,
        };
        let page = bench.secrets.list(&bench.caller, request).await.unwrap();
        let bytes = |secret: &SecretView| {
            let SecretMetadata { name, description, created_by, updated_by, .. } = &secret.metadata;
            name.as_str().len() + description.as_str().len() + created_by.len() + updated_by.len()
        };
        assert!(page.secrets.iter().map(bytes).sum::<usize>() < 3 * 1024 * 1024 + 10_000);
        listed.extend(page.secrets.iter().map(|secret| secret.metadata.name.to_string()));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(listed == names, "each once, in order");
    assert_eq!(pages, 2);
}

#[tokio::test]
async fn a_race_lost_again_and_again_is_told() {
    let store = Arc::new(MemoryStore::default());
    let racing = Arc::new(Racing { store: store.clone(), lose: AtomicBool::new(false) });
    let bench = Bench::on(store, racing.clone(), AuditSink::Writer(Box::new(io::sink())));
    bench.create("KEY", None, None).await.unwrap();
    racing.lose.store(true, Ordering::SeqCst);
    let clear = bench.expire("KEY", ExpiryChange::Clear).await;
    assert_eq!(clear, Err(Error::ConcurrentUpdate));
    racing.lose.store(false, Ordering::SeqCst);
    bench.expire("KEY", ExpiryChange::Clear).await.unwrap();
}

#[tokio::test]
async fn nothing_changes_while_its_audit_line_cannot_be_written() {
    let broken = Arc::new(AtomicBool::new(false));
    let store = Arc::new(MemoryStore::default());
    let sink = AuditSink::Writer(Box::new(Breaking(broken.clone())));
    let bench = Bench::on(store.clone(), store, sink);
    bench.create("BEFORE", None, None).await.unwrap();

    broken.store(true, Ordering::SeqCst);
    let unavailable = Err(Error::AuditUnavailable);
    // That the stream has broken shows only when it is written to.
    assert_eq!(bench.resolve("BEFORE").await, Err(Error::AuditUnavailable));
    let before = bench.store.records(&workspace()).len();
    for _ in 0..3 {
        assert_eq!(bench.create("KEY", None, None).await, unavailable);
    }
    assert_eq!(bench.store.records(&workspace()).len(), before);

    broken.store(false, Ordering::SeqCst);
    // The first call finds the stream whole again by its own line.
    let _ = bench.create("KEY", None, None).await;
    bench.create("AFTER", None, None).await.unwrap();
}

/// A store in which somebody else is always faster, on demand.
struct Racing {
    store: Arc<MemoryStore>,
    lose: AtomicBool,
}

#[async_trait]
impl Store for Racing {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        self.store.read_at(workspace, keys).await
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        if self.lose.load(Ordering::SeqCst) {
            return Ok((Commit::Conflict(batch.operations[0].key.clone()), None));
        }
        self.store.commit_at(workspace, batch).await
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        self.store.shred(workspace, tombstone).await
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        self.store.revision(workspace).await
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.request(workspace, id).await
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.store.scan(workspace, prefix, after, limit).await
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        self.store.keys(workspace, prefix, limit).await
    }

    async fn workspaces(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        self.store.workspaces(cursor).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.store.health().await
    }
}
