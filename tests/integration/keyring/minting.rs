//! The first data key of a workspace is made once, and never over another.

use workflow_secrets::store::StoreError;

use super::{
    Arc, Bench, DISABLED, Key, KeyError, Record, Revision, SECOND, THROTTLED, error, settle,
    workspace,
};

/// Any record that is no data key.
fn value() -> (Key, Record) {
    let name = workflow_secrets::domain::SecretName::parse("STRIPE_KEY").unwrap();
    (Key::value(&name), Record { revision: Revision::initial(), bytes: vec![1] })
}

#[tokio::test]
async fn an_empty_workspace_gets_one_key_proven_before_use() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let key = keyring.for_seal(&ws, None).await.unwrap_or_else(|e| panic!("{e}"));
    let active = bench.active(&ws).expect("stored");
    assert_eq!(key.id(), active.id);
    assert_eq!(bench.store.records(&ws).len(), 1);
    assert_eq!((bench.kms.generates(), bench.kms.decrypts()), (1, 1));
    assert_eq!(bench.store.reads(), 1, "read back");

    // The key in use is the one that the stored blob unwraps to.
    let elsewhere = bench.keyring();
    let again = elsewhere.for_seal(&ws, Some(&active)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(key.fingerprint(&[b"x"]), again.fingerprint(&[b"x"]));
    assert_eq!(error(keyring.for_seal(&ws, Some(&active)).await), None);
    assert_eq!(bench.kms.decrypts(), 2, "cached where it was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_callers_mint_once() {
    let bench = Bench::default();
    let keyring = Arc::new(bench.keyring());
    bench.kms.hold(true);
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let keyring = keyring.clone();
            tokio::spawn(
                async move { keyring.for_seal(&workspace(1), None).await.map(|key| key.id()) },
            )
        })
        .collect();
    while bench.kms.generates() == 0 {
        tokio::task::yield_now().await;
    }
    bench.kms.hold(false);
    for call in calls {
        assert_eq!(call.await.unwrap().ok(), bench.active(&workspace(1)).map(|key| key.id));
    }
    assert_eq!(bench.store.records(&workspace(1)).len(), 1);
    assert_eq!(bench.kms.decrypts(), 1);
}

#[tokio::test]
async fn replicas_that_mint_at_once_end_with_the_same_key() {
    let bench = Bench::default();
    bench.kms.hold(true);
    let calls = [bench.keyring(), bench.keyring()].map(|keyring| {
        tokio::spawn(async move { keyring.for_seal(&workspace(1), None).await.map(|k| k.id()) })
    });
    settle().await;
    assert_eq!(bench.kms.generates(), 2, "neither has committed yet");
    bench.kms.hold(false);
    let active = bench.active(&workspace(1));
    assert!(active.is_none());
    for call in calls {
        let id = call.await.unwrap().ok();
        assert_eq!(id, bench.active(&workspace(1)).map(|key| key.id));
    }
    assert_eq!(bench.store.records(&workspace(1)).len(), 1);
}

#[tokio::test]
async fn nothing_is_minted_over_a_missing_key() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    assert_eq!(error(keyring.for_seal(&ws, None).await), None);
    let key = bench.active(&ws).expect("stored");
    let (at, record) = value();
    bench.store.set(&ws, at.clone(), Some(record));
    bench.store.set(&ws, Key::active_data_key(), None);

    // Neither where the key is still in memory nor elsewhere.
    for keyring in [keyring, bench.keyring()] {
        let before = bench.kms.generates();
        for _ in 0..5 {
            assert_eq!(error(keyring.for_seal(&ws, None).await), Some(KeyError::Missing));
        }
        assert_eq!(bench.kms.generates(), before, "not even made");
        let left: Vec<Key> = bench.store.records(&ws).into_keys().collect();
        assert_eq!(left, std::slice::from_ref(&at));
        // Once restored it serves again, at once.
        assert_eq!(error(keyring.for_seal(&ws, Some(&key)).await), None);
    }
}

#[tokio::test]
async fn a_stale_view_of_an_empty_workspace_finds_the_key() {
    let bench = Bench::default();
    let ws = workspace(1);
    let stored = bench.stored_key(&ws).await;
    let (at, record) = value();
    bench.store.set(&ws, at, Some(record));
    let key = bench.keyring().for_seal(&ws, None).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(key.id(), stored.id);
    assert!(bench.active(&ws) == Some(stored), "untouched");
}

#[tokio::test]
async fn a_commit_that_fails_gives_no_key() {
    for done in [false, true] {
        let bench = Bench::default();
        let (ws, keyring) = (workspace(1), bench.keyring());
        let unavailable = StoreError::Unavailable("timed out");
        bench.store.fail_commit(unavailable.clone(), done);
        let failed = keyring.for_seal(&ws, None).await;
        assert_eq!(error(failed), Some(KeyError::Store(unavailable)));
        assert_eq!(bench.kms.decrypts(), 0);
        assert_eq!(bench.active(&ws).is_some(), done);

        // The next call goes on from what the store holds.
        let key = keyring.for_seal(&ws, None).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(Some(key.id()), bench.active(&ws).map(|active| active.id));
        assert_eq!(bench.store.records(&ws).len(), 1);
    }
}

#[tokio::test]
async fn a_kms_that_fails_leaves_the_workspace_as_it_was() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    for fault in [THROTTLED, DISABLED] {
        bench.kms.fail(Some(fault));
        let before = bench.kms.generates();
        for _ in 0..5 {
            assert_eq!(error(keyring.for_seal(&ws, None).await), Some(KeyError::Kms(fault)));
        }
        assert_eq!(bench.kms.generates(), before + 1, "remembered");
        assert!(bench.store.records(&ws).is_empty());
        bench.clock.advance(2 * SECOND);
    }
    bench.kms.fail(None);
    assert_eq!(error(keyring.for_seal(&ws, None).await), None);
}

#[tokio::test]
async fn a_failure_to_unwrap_is_not_remembered_twice() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let stored = bench.stored_key(&ws).await;
    bench.kms.fail(Some(THROTTLED));
    let throttled = Some(KeyError::Kms(THROTTLED));
    assert_eq!(error(keyring.for_seal(&ws, Some(&stored)).await), throttled);
    bench.kms.fail(None);
    bench.clock.advance(2 * SECOND - SECOND / 10);
    assert_eq!(error(keyring.for_seal(&ws, None).await), throttled);
    bench.clock.advance(SECOND / 10);
    assert_eq!(error(keyring.for_seal(&ws, None).await), None);
}
