//! How long keys serve, and across which failures.

use workflow_secrets::store::StoreError;

use super::{
    Arc, Bench, DISABLED, Duration, Key, KeyError, Keyring, MINUTE, SECOND, THROTTLED, WorkspaceId,
    WrappedDataKey, error, settle, workspace,
};

/// A keyring with one key, unwrapped just now.
async fn hot() -> (Bench, Keyring, WorkspaceId, WrappedDataKey) {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let wrapped = bench.stored_key(&ws).await;
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
    assert_eq!(bench.kms.decrypts(), 1);
    (bench, keyring, ws, wrapped)
}

#[tokio::test]
async fn an_aging_key_serves_while_it_is_refreshed_in_the_background() {
    let (bench, keyring, ws, wrapped) = hot().await;
    bench.clock.advance(13 * MINUTE);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
    settle().await;
    assert_eq!(bench.kms.decrypts(), 1, "younger than the soft age");

    bench.clock.advance(4 * MINUTE);
    bench.kms.hold(true);
    for _ in 0..10 {
        assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
        settle().await;
    }
    assert_eq!(bench.kms.decrypts(), 2, "one refresh for all");
    bench.kms.hold(false);
    settle().await;

    bench.clock.advance(13 * MINUTE);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
    settle().await;
    assert_eq!(bench.kms.decrypts(), 2, "young again");
}

#[tokio::test]
async fn soft_ages_are_spread() {
    let bench = Bench::default();
    let keyring = bench.keyring();
    let mut keys = Vec::new();
    for number in 0..50 {
        keys.push(bench.stored_key(&workspace(number)).await);
    }
    let mut refreshed = Vec::new();
    for age in [Duration::ZERO, 13 * MINUTE + 29 * SECOND, 91 * SECOND, 91 * SECOND] {
        bench.clock.advance(age);
        let before = bench.kms.decrypts();
        for (number, key) in keys.iter().enumerate() {
            assert_eq!(error(keyring.for_open(&workspace(number), key.id, Some(key)).await), None);
        }
        settle().await;
        refreshed.push(bench.kms.decrypts() - before);
    }
    assert_eq!((refreshed[0], refreshed[1]), (50, 0), "none before 13.5 minutes");
    assert!((1..50).contains(&refreshed[2]), "some, not all, before 15: {refreshed:?}");
    assert_eq!(refreshed[2] + refreshed[3], 50, "all by 16.5");
}

#[tokio::test]
async fn transient_faults_are_bridged_for_an_hour_and_no_longer() {
    let (bench, keyring, ws, wrapped) = hot().await;
    bench.kms.fail(Some(THROTTLED));
    bench.clock.advance(17 * MINUTE);
    for _ in 0..10 {
        assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
        settle().await;
    }
    assert_eq!(bench.kms.decrypts(), 2, "a failed refresh is not repeated at once");
    bench.clock.advance(43 * MINUTE - SECOND);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
    settle().await;
    assert_eq!(bench.kms.decrypts(), 3);
    bench.clock.advance(SECOND);
    let failed = keyring.for_open(&ws, wrapped.id, None).await;
    assert_eq!(error(failed), Some(KeyError::Kms(THROTTLED)));

    bench.kms.fail(None);
    bench.clock.advance(2 * SECOND);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
}

#[tokio::test]
async fn writes_take_no_key_of_fifteen_minutes() {
    let (bench, keyring, ws, wrapped) = hot().await;
    bench.kms.fail(Some(THROTTLED));
    bench.clock.advance(15 * MINUTE - SECOND);
    assert_eq!(error(keyring.for_seal(&ws, Some(&wrapped)).await), None);
    settle().await;
    bench.clock.advance(SECOND);
    let failed = keyring.for_seal(&ws, Some(&wrapped)).await;
    assert_eq!(error(failed), Some(KeyError::Kms(THROTTLED)));
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None, "reads go on");

    bench.kms.fail(None);
    bench.clock.advance(2 * SECOND);
    let before = bench.kms.decrypts();
    assert_eq!(error(keyring.for_seal(&ws, Some(&wrapped)).await), None);
    assert_eq!(bench.kms.decrypts(), before + 1, "refreshed before it sealed");
}

#[tokio::test]
async fn a_failure_is_remembered_for_two_seconds_from_when_it_happened() {
    let bench = Bench::default();
    let (ws, keyring) = (workspace(1), bench.keyring());
    let wrapped = bench.stored_key(&ws).await;
    for fault in [THROTTLED, DISABLED] {
        let before = bench.kms.decrypts();
        bench.kms.fail(Some(fault));
        let cold = keyring.for_open(&ws, wrapped.id, None).await;
        assert_eq!(error(cold), Some(KeyError::Kms(fault)), "told at once");
        bench.kms.fail(None);
        // Asking does not make it last longer.
        for _ in 0..19 {
            bench.clock.advance(SECOND / 10);
            let cold = keyring.for_open(&ws, wrapped.id, None).await;
            assert_eq!(error(cold), Some(KeyError::Kms(fault)));
        }
        assert_eq!(bench.kms.decrypts(), before + 1);
        bench.clock.advance(SECOND / 10);
        if fault == DISABLED {
            assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
        }
    }
}

#[tokio::test]
async fn an_unusable_key_is_confirmed_ten_seconds_apart_then_given_up() {
    let (bench, keyring, ws, wrapped) = hot().await;
    let read = async || {
        let outcome = error(keyring.for_open(&ws, wrapped.id, None).await);
        settle().await;
        outcome
    };
    let given_up = Some(KeyError::Kms(DISABLED));
    bench.kms.fail(Some(DISABLED));
    bench.clock.advance(17 * MINUTE);
    assert_eq!(read().await, None, "first refusal");
    assert_eq!(bench.kms.decrypts(), 2);
    bench.clock.advance(10 * SECOND - Duration::from_millis(1));
    assert_eq!(read().await, None);
    assert_eq!(bench.kms.decrypts(), 2, "not asked again too early");
    // A write asks at once and is refused; that confirms nothing yet.
    assert_eq!(error(keyring.for_seal(&ws, Some(&wrapped)).await), given_up);
    assert_eq!(bench.kms.decrypts(), 3);
    assert_eq!(read().await, None);

    bench.clock.advance(2 * SECOND);
    assert_eq!(read().await, None, "second refusal, in the background");
    assert_eq!(bench.kms.decrypts(), 4);
    assert_eq!(read().await, given_up);
    bench.clock.advance(2 * SECOND);
    assert_eq!(read().await, given_up, "and again by the KMS itself");
    assert_eq!(bench.kms.decrypts(), 5);

    bench.kms.fail(None);
    bench.clock.advance(2 * SECOND);
    assert_eq!(read().await, None);
}

#[tokio::test]
async fn a_single_refusal_is_forgotten_after_a_success() {
    let (bench, keyring, ws, wrapped) = hot().await;
    for _ in 0..2 {
        for (after, fault) in [(17 * MINUTE, Some(DISABLED)), (10 * SECOND, None)] {
            bench.clock.advance(after);
            bench.kms.fail(fault);
            assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
            settle().await;
        }
    }
    assert_eq!(bench.kms.decrypts(), 5);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
}

#[tokio::test]
async fn a_key_found_wrong_or_missing_serves_no_longer() {
    let (bench, keyring, ws, wrapped) = hot().await;
    bench.clock.advance(17 * MINUTE);
    let wrong = WrappedDataKey { blob: vec![0; 60], ..wrapped.clone() };
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, Some(&wrong)).await), None);
    settle().await;
    let corrupt = keyring.for_open(&ws, wrapped.id, Some(&wrong)).await;
    assert_eq!(error(corrupt), Some(KeyError::Corrupt("fake")));

    bench.clock.advance(2 * SECOND);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, Some(&wrapped)).await), None);
    bench.store.set(&ws, Key::active_data_key(), None);
    bench.clock.advance(17 * MINUTE);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
    settle().await;
    let gone = keyring.for_open(&ws, wrapped.id, None).await;
    assert_eq!(error(gone), Some(KeyError::Missing));
}

#[tokio::test]
async fn a_store_fault_is_bridged_too_and_not_remembered() {
    let (bench, keyring, ws, wrapped) = hot().await;
    let down = StoreError::Unavailable("no connection");
    bench.store.fail_reads(Some(down.clone()));
    bench.clock.advance(17 * MINUTE);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
    settle().await;
    let cold = bench.keyring();
    assert_eq!(error(cold.for_open(&ws, wrapped.id, None).await), Some(KeyError::Store(down)));
    assert_eq!(bench.kms.decrypts(), 1);

    bench.store.fail_reads(None);
    assert_eq!(error(cold.for_open(&ws, wrapped.id, None).await), None);
    assert_eq!(error(keyring.for_open(&ws, wrapped.id, None).await), None);
    settle().await;
    assert_eq!(bench.kms.decrypts(), 3);
}

#[tokio::test]
async fn sealing_and_opening_share_a_key() {
    let (_bench, keyring, ws, wrapped) = hot().await;
    let one = keyring.for_open(&ws, wrapped.id, None).await.unwrap_or_else(|e| panic!("{e}"));
    let two = keyring.for_seal(&ws, Some(&wrapped)).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(Arc::ptr_eq(&one, &two));
}
