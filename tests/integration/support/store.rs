//! Short words for what the store tests say often.

use std::sync::Arc;

use workflow_secrets::{
    domain::{RequestId, Revision, SecretName, WorkspaceId},
    store::{Batch, Commit, Expect, Key, Operation, Record, Store, Write},
};

/// Any store.
pub(crate) type S = Arc<dyn Store>;

pub(crate) fn ws(text: &str) -> WorkspaceId {
    WorkspaceId::parse(text).unwrap()
}

pub(crate) fn meta(name: &str) -> Key {
    Key::metadata(&SecretName::parse(name).unwrap())
}

pub(crate) fn rec(revision: u64, bytes: &[u8]) -> Record {
    Record { revision: Revision::from_u64(revision), bytes: bytes.to_vec() }
}

pub(crate) fn at(revision: u64) -> Option<Expect> {
    Some(Expect::Revision(Revision::from_u64(revision)))
}

pub(crate) fn put(key: Key, expect: Option<Expect>, record: Record) -> Operation {
    Operation { key, expect, write: Write::Put(record) }
}

pub(crate) fn delete(key: Key, expect: Option<Expect>) -> Operation {
    Operation { key, expect, write: Write::Delete }
}

pub(crate) fn check(key: Key, expect: Option<Expect>) -> Operation {
    Operation { key, expect, write: Write::Nothing }
}

pub(crate) fn batch<const N: usize>(operations: [Operation; N]) -> Batch {
    Batch { operations: operations.into(), ..Batch::default() }
}

pub(crate) fn request(text: &str) -> RequestId {
    RequestId::parse(text).unwrap()
}

/// `Commit` has no `Debug`, since it may hold a record.
pub(crate) fn word(commit: &Commit) -> String {
    match commit {
        Commit::Done => "done".into(),
        Commit::Replayed(outcome) => format!("replayed {}", String::from_utf8_lossy(outcome)),
        Commit::Conflict(key) => format!("conflict {key}"),
        Commit::NotEmpty => "not empty".into(),
        Commit::Full => "full".into(),
        Commit::Shredded => "shredded".into(),
    }
}

pub(crate) async fn run(store: &S, workspace: &str, batch: Batch) -> String {
    word(&store.commit(&ws(workspace), batch).await.unwrap())
}

/// Puts a record whatever is there.
pub(crate) async fn set(store: &S, workspace: &str, key: Key, record: Record) {
    assert_eq!(run(store, workspace, batch([put(key, None, record)])).await, "done");
}

pub(crate) async fn get(store: &S, workspace: &str, key: &Key) -> Option<Record> {
    store.read(&ws(workspace), std::slice::from_ref(key)).await.unwrap().pop().unwrap()
}

/// Revision and bytes as text.
pub(crate) async fn show(store: &S, workspace: &str, key: &Key) -> Option<(u64, String)> {
    let record = get(store, workspace, key).await?;
    Some((record.revision.as_u64(), String::from_utf8(record.bytes).unwrap()))
}
