//! A new data key takes the place of the active one, and keys are given up.

use workflow_secrets::store::{Shredded, Store as _};

use super::{
    Arc, Bench, Key, KeyError, Record, Revision, THROTTLED, Weak, WrappedDataKey, codec, error,
    settle, workspace,
};

/// The retired key as it lies in the store.
fn retired(bench: &Bench, key: &WrappedDataKey) -> Option<codec::StoredKey> {
    let records = bench.store.records(&workspace(1));
    records.get(&Key::data_key(key.id)).map(|r| codec::decode_data_key(&r.bytes).unwrap())
}

#[tokio::test]
async fn the_new_key_is_proven_before_it_takes_the_place_and_the_old_one_stays() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let old = bench.stored_key(&ws).await;
    let sealing = keyring.for_seal(&ws, Some(&old)).await.unwrap_or_else(|e| panic!("{e}"));
    let (new, done) = keyring.rotate(&ws, old.id, None).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(done);
    assert_ne!(new.id(), old.id);
    let active = bench.active(&ws).expect("stored");
    assert_eq!(active.id, new.id());
    assert_eq!(bench.kms.decrypts(), 3, "the old one, the new one before and after");
    let kept = retired(&bench, &old).expect("kept");
    assert!(kept.wrapped == old && kept.retire_time.is_some());
    assert_eq!(bench.store.records(&ws).len(), 2);

    // Elsewhere both are found.
    let elsewhere = bench.keyring();
    for (id, here) in [(old.id, &sealing), (new.id(), &new)] {
        let there = elsewhere.for_open(&ws, id, Some(&active)).await;
        let there = there.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(there.fingerprint(&[b"x"]), here.fingerprint(&[b"x"]));
    }
    // Named once more, it is no longer the active one.
    let (again, _) = keyring.rotate(&ws, old.id, None).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again.id(), new.id());
    assert_eq!(bench.store.records(&ws).len(), 2);
}

#[tokio::test]
async fn replicas_that_rotate_at_once_end_with_the_same_key() {
    let bench = Bench::default();
    let old = bench.stored_key(&workspace(1)).await;
    let before = bench.kms.generates();
    bench.kms.hold(true);
    let keyrings = [bench.keyring(), bench.keyring()].map(Arc::new);
    let calls: Vec<_> = (0..20)
        .map(|call| {
            let keyring = keyrings[call % 2].clone();
            let id = old.id;
            tokio::spawn(async move {
                keyring.rotate(&workspace(1), id, None).await.map(|(key, done)| (key.id(), done))
            })
        })
        .collect();
    settle().await;
    assert_eq!(bench.kms.generates() - before, 2, "one each");
    bench.kms.hold(false);
    let mut told = 0;
    for call in calls {
        let (id, done) = call.await.unwrap().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(Some(id), bench.active(&workspace(1)).map(|key| key.id));
        told += usize::from(done);
    }
    assert_eq!(told, 1, "one of them all");
    assert_eq!(bench.store.records(&workspace(1)).len(), 2);
}

#[tokio::test]
async fn a_kms_that_fails_leaves_the_active_key_in_its_place() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let old = bench.stored_key(&ws).await;
    bench.kms.fail(Some(THROTTLED));
    for _ in 0..3 {
        let failed = keyring.rotate(&ws, old.id, None).await.map(|(key, _)| key);
        assert_eq!(error(failed), Some(KeyError::Kms(THROTTLED)));
    }
    assert_eq!(bench.kms.generates(), 2, "asked once in a while");
    assert!(bench.active(&ws) == Some(old.clone()));
    bench.kms.fail(None);
    bench.clock.advance(3 * super::SECOND);
    // Made, but does not unwrap.
    bench.kms.fail_decrypts(Some(THROTTLED));
    let failed = keyring.rotate(&ws, old.id, None).await.map(|(key, _)| key);
    assert_eq!(error(failed), Some(KeyError::Kms(THROTTLED)));
    assert!(bench.active(&ws) == Some(old.clone()) && bench.store.records(&ws).len() == 1);
    bench.kms.fail_decrypts(None);
    bench.clock.advance(3 * super::SECOND);
    assert_eq!(error(keyring.rotate(&ws, old.id, None).await.map(|(key, _)| key)), None);
}

#[tokio::test]
async fn a_missing_key_has_no_successor() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let old = bench.stored_key(&ws).await;
    bench.store.set(&ws, Key::active_data_key(), None);
    let before = bench.kms.generates();
    assert_eq!(
        error(keyring.rotate(&ws, old.id, None).await.map(|(key, _)| key)),
        Some(KeyError::Missing)
    );
    assert_eq!((bench.kms.generates(), bench.store.records(&ws).len()), (before, 0));
}

#[tokio::test]
async fn an_evicted_workspace_leaves_no_key_behind() {
    let bench = Bench::default();
    let keyring = Arc::new(bench.keyring());
    let (ws, other) = (workspace(1), workspace(2));
    let (old, kept) = (bench.stored_key(&ws).await, bench.stored_key(&other).await);
    let mut held: Vec<Weak<_>> = Vec::new();
    for (workspace, key) in [(&ws, &old), (&other, &kept)] {
        let key = keyring.for_seal(workspace, Some(key)).await.unwrap_or_else(|e| panic!("{e}"));
        held.push(Arc::downgrade(&key));
    }
    assert_eq!(keyring.workspaces().await, [ws.clone(), other.clone()].into());

    // While a refresh of one is under way, and the unwrapping of another.
    bench.clock.advance(20 * super::MINUTE);
    let next = WrappedDataKey { id: super::DataKeyId::random(), ..old.clone() };
    bench.kms.hold(true);
    let refresh = keyring.for_open(&ws, old.id, Some(&old)).await;
    drop(refresh.unwrap_or_else(|e| panic!("{e}")));
    settle().await;
    keyring.evict(&ws);
    assert_eq!(keyring.workspaces().await, [other.clone()].into());
    assert_eq!(held[0].strong_count(), 0);
    // A caller that comes now joins no flight from before.
    let late = {
        let (keyring, ws) = (keyring.clone(), ws.clone());
        tokio::spawn(async move { error(keyring.for_open(&ws, next.id, None).await) })
    };
    settle().await;
    bench.kms.hold(false);
    settle().await;
    assert_eq!(late.await.unwrap(), Some(KeyError::Missing));
    assert_eq!(keyring.workspaces().await, [other.clone()].into(), "what landed late is not kept");
    assert_eq!(held[1].strong_count(), 1);

    // A flight that begins after it counts as any other.
    assert_eq!(error(keyring.for_open(&ws, old.id, Some(&old)).await), None);
    assert_eq!(keyring.workspaces().await, [ws, other].into());
}

#[tokio::test]
async fn no_key_is_made_or_found_where_a_workspace_was_destroyed() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let old = bench.stored_key(&ws).await;
    let tombstone = Record { revision: Revision::initial(), bytes: vec![] };
    let Shredded { records, .. } = bench.store.shred(&ws, tombstone).await.unwrap();
    assert_eq!(records, 1);
    let before = bench.kms.generates();
    let shredded = Some(KeyError::Shredded);
    assert_eq!(error(keyring.for_seal(&ws, None).await), shredded);
    assert_eq!(error(keyring.for_open(&ws, old.id, None).await), shredded);
    assert_eq!(error(keyring.rotate(&ws, old.id, None).await.map(|(key, _)| key)), shredded);
    assert_eq!(bench.kms.generates(), before);
    assert_eq!(bench.store.records(&ws).len(), 1);
}

/// The workspace is destroyed while its first key is being made, and while a
/// later one is.
#[tokio::test]
async fn a_key_under_way_does_not_bring_a_workspace_back() {
    let bench = Bench::default();
    let keyring = Arc::new(bench.keyring());
    let old = bench.stored_key(&workspace(2)).await;
    bench.kms.hold(true);
    let first = {
        let keyring = keyring.clone();
        tokio::spawn(async move { error(keyring.for_seal(&workspace(1), None).await) })
    };
    let next = {
        let keyring = keyring.clone();
        tokio::spawn(async move {
            error(keyring.rotate(&workspace(2), old.id, None).await.map(|(key, _)| key))
        })
    };
    settle().await;
    for number in [1, 2] {
        let tombstone = Record { revision: Revision::initial(), bytes: vec![] };
        drop(bench.store.shred(&workspace(number), tombstone).await.unwrap());
    }
    bench.kms.hold(false);
    assert_eq!(first.await.unwrap(), Some(KeyError::Shredded));
    assert_eq!(next.await.unwrap(), Some(KeyError::Shredded));
    for number in [1, 2] {
        let left: Vec<_> = bench.store.records(&workspace(number)).into_keys().collect();
        assert_eq!(left, [Key::tombstone()]);
    }
}
