//! The guard before the KMS: what it lets through, and whose.

use workflow_secrets::{
    domain::DataKeyId,
    kms::{GuardConfig, Guarded, Kms as _},
};

use super::{
    Arc, Bench, DISABLED, DataKey, Duration, EncryptionContext, KeyError, Keyring, KeyringConfig,
    KmsError, MINUTE, SECOND, THROTTLED, WrappedDataKey, environment, error, settle, workspace,
};

/// A guarded KMS, and the data keys of some workspaces.
struct Guard {
    bench: Bench,
    kms: Arc<Guarded>,
    keys: Vec<WrappedDataKey>,
}

impl Guard {
    async fn start(workspaces: usize) -> Self {
        let bench = Bench::default();
        let mut keys = Vec::new();
        for number in 0..workspaces {
            keys.push(bench.stored_key(&workspace(number)).await);
        }
        let config = GuardConfig::default();
        let kms = Arc::new(Guarded::new(bench.kms.clone(), bench.clock.clone(), config));
        Self { bench, kms, keys }
    }

    async fn call(&self, number: usize) -> Option<KmsError> {
        let (workspace, data_key) = (workspace(number), self.keys[number].id);
        let context = EncryptionContext { environment: environment(), workspace, data_key };
        self.kms.decrypt(&context, &self.keys[number]).await.err()
    }

    /// The same without waiting for its end.
    fn begin(self: &Arc<Self>, number: usize) -> tokio::task::JoinHandle<Option<KmsError>> {
        let guard = Arc::clone(self);
        tokio::spawn(async move { guard.call(number).await })
    }

    /// Fails calls until none are let through.
    async fn bring_down(&self) {
        self.bench.kms.fail(Some(THROTTLED));
        for number in 0..5 {
            assert_eq!(self.call(number).await, Some(THROTTLED));
        }
    }

    /// Calls until the budget of the workspace is used up.
    async fn use_up(&self, number: usize) {
        for _ in 0..1_000 {
            if let Some(KmsError::OverBudget { .. }) = self.call(number).await {
                return;
            }
        }
        panic!("no budget");
    }

    fn keyring(&self) -> Keyring {
        let (store, clock) = (self.bench.store.clone(), self.bench.clock.clone());
        Keyring::new(self.kms.clone(), store, clock, environment(), KeyringConfig::default())
    }
}

fn is_down(outcome: Option<KmsError>) -> bool {
    matches!(outcome, Some(KmsError::Down { .. }))
}

#[tokio::test]
async fn a_run_of_failures_stops_calls_and_one_success_starts_them_again() {
    let guard = Guard::start(7).await;
    let made = || guard.bench.kms.decrypts();
    guard.bring_down().await;
    for number in 0..7 {
        assert!(is_down(guard.call(number).await));
    }
    assert_eq!(made(), 5, "none was made");

    guard.bench.clock.advance(SECOND);
    assert_eq!(guard.call(5).await, Some(THROTTLED), "one finds out");
    assert!(is_down(guard.call(6).await), "and no other");
    assert_eq!(made(), 6);
    guard.bench.clock.advance(SECOND - Duration::from_millis(1));
    assert!(is_down(guard.call(6).await), "a longer pause: at least half of two seconds");

    guard.bench.kms.fail(None);
    guard.bench.clock.advance(SECOND + Duration::from_millis(1));
    for number in 0..7 {
        assert_eq!(guard.call(number).await, None);
    }
    guard.bench.kms.fail(Some(THROTTLED));
    for number in 0..4 {
        assert_eq!(guard.call(number).await, Some(THROTTLED), "counted anew");
    }
    assert_eq!(made(), 17);
}

#[tokio::test]
async fn pauses_end_within_five_seconds_and_are_told() {
    let guard = Guard::start(25).await;
    guard.bring_down().await;
    for number in 5..25 {
        let Some(KmsError::Down { wait }) = guard.call(number).await else { panic!("let through") };
        assert!(wait > Duration::from_millis(499) && wait <= 5 * SECOND, "{wait:?}");
        guard.bench.clock.advance(wait);
        assert_eq!(guard.call(number).await, Some(THROTTLED));
    }
}

#[tokio::test]
async fn one_call_at_a_time_finds_out_and_may_be_given_up() {
    let guard = Arc::new(Guard::start(7).await);
    guard.bring_down().await;
    guard.bench.kms.fail(None);
    guard.bench.clock.advance(SECOND);
    guard.bench.kms.hold(true);
    let probe = guard.begin(5);
    settle().await;
    assert!(is_down(guard.call(6).await));
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());
    let probe = guard.begin(6);
    settle().await;
    assert!(is_down(guard.call(5).await));
    guard.bench.kms.hold(false);
    assert_eq!(probe.await.unwrap(), None);
    assert_eq!(guard.call(5).await, None);
}

#[tokio::test]
async fn failures_of_one_workspace_stop_nobody() {
    let guard = Guard::start(2).await;
    guard.bench.kms.fail(Some(THROTTLED));
    for _ in 0..50 {
        assert_eq!(guard.call(0).await, Some(THROTTLED));
    }
    guard.bench.kms.fail(None);
    assert_eq!(guard.call(1).await, None);
}

/// Or one whose calls always fail could keep a KMS closed that is back.
#[tokio::test]
async fn whose_call_failed_lets_others_find_out() {
    let guard = Guard::start(6).await;
    guard.bring_down().await;
    guard.bench.clock.advance(SECOND);
    assert_eq!(guard.call(0).await, Some(THROTTLED));
    guard.bench.clock.advance(2 * SECOND);
    assert!(is_down(guard.call(0).await), "not yet the same one");
    guard.bench.kms.fail(None);
    assert_eq!(guard.call(1).await, None);

    guard.bring_down().await;
    guard.bench.clock.advance(SECOND);
    assert_eq!(guard.call(0).await, Some(THROTTLED));
    guard.bench.clock.advance(4 * SECOND);
    assert_eq!(guard.call(0).await, Some(THROTTLED), "but if there is no other");
}

#[tokio::test]
async fn answers_that_refuse_come_from_a_kms_that_works() {
    let guard = Guard::start(20).await;
    for refusal in [DISABLED, KmsError::WrongCiphertext("wrong")] {
        guard.bench.kms.fail(Some(refusal));
        for number in 0..20 {
            assert_eq!(guard.call(number).await, Some(refusal));
        }
    }
    guard.bench.kms.fail(Some(THROTTLED));
    for number in 0..4 {
        guard.call(number).await;
    }
    guard.bench.kms.fail(Some(DISABLED));
    guard.call(4).await;
    guard.bench.kms.fail(Some(THROTTLED));
    for number in 0..4 {
        assert_eq!(guard.call(number).await, Some(THROTTLED));
    }
}

#[tokio::test]
async fn a_workspace_takes_five_places_however_many_calls_it_has() {
    let guard = Arc::new(Guard::start(100).await);
    guard.bench.kms.hold(true);
    let greedy: Vec<_> = (0..60).map(|_| guard.begin(0)).collect();
    settle().await;
    assert_eq!(guard.bench.kms.decrypts(), 5);
    let others: Vec<_> = (1..45).map(|number| guard.begin(number)).collect();
    settle().await;
    assert_eq!(guard.bench.kms.decrypts(), 5 + 44, "none of the others waits");
    let late: Vec<_> = (45..100).map(|number| guard.begin(number)).collect();
    settle().await;
    assert_eq!(guard.bench.kms.decrypts(), 50, "all places are taken");
    guard.bench.kms.hold(false);
    for call in greedy.into_iter().chain(others).chain(late) {
        assert_eq!(call.await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_told_and_blames_no_kms() {
    let guard = Arc::new(Guard::start(12).await);
    guard.bench.kms.hold(true);
    let calls: Vec<_> =
        (0..12).flat_map(|n| (0..6).map(move |_| n)).map(|n| guard.begin(n)).collect();
    let start = tokio::time::Instant::now();
    for call in calls {
        let failed = call.await.unwrap();
        assert!(
            matches!(failed, Some(KmsError::Transient(_) | KmsError::Down { .. })),
            "{failed:?}"
        );
    }
    assert_eq!(start.elapsed(), Duration::from_millis(2_800));
    // 50 calls that hung have.
    assert!(is_down(guard.call(0).await));
}

#[tokio::test]
async fn a_workspace_has_a_budget_and_others_have_theirs() {
    let guard = Guard::start(2).await;
    for _ in 0..400 {
        assert_eq!(guard.call(0).await, None);
    }
    let Some(KmsError::OverBudget { wait }) = guard.call(0).await else { panic!("let through") };
    assert!(wait <= SECOND / 20, "{wait:?}");
    assert_eq!(guard.call(1).await, None);
    guard.bench.clock.advance(SECOND);
    for _ in 0..20 {
        assert_eq!(guard.call(0).await, None);
    }
    assert!(matches!(guard.call(0).await, Some(KmsError::OverBudget { .. })));
    // Forgetting the idle does not give it more.
    guard.kms.tidy();
    assert!(matches!(guard.call(0).await, Some(KmsError::OverBudget { .. })));
    guard.bench.clock.advance(MINUTE);
    assert_eq!(guard.call(0).await, None);
}

#[tokio::test]
async fn a_call_over_budget_is_refused_a_refresh_and_served_what_is_cached() {
    let guard = Guard::start(1).await;
    let (keyring, ws) = (guard.keyring(), workspace(0));
    let read = async || error(keyring.for_open(&ws, guard.keys[0].id, None).await);
    assert_eq!(read().await, None);
    guard.bench.clock.advance(17 * MINUTE);
    guard.use_up(0).await;
    let made = guard.bench.kms.decrypts();
    for _ in 0..10 {
        assert_eq!(read().await, None);
        settle().await;
    }
    assert_eq!(guard.bench.kms.decrypts(), made);
    assert!(guard.bench.store.reads() <= 2, "nor is the store asked each time");
    guard.bench.clock.advance(SECOND);
    assert_eq!(read().await, None);
    settle().await;
    assert_eq!(guard.bench.kms.decrypts(), made + 1);
}

/// 1,000 workspaces without a data key that unwraps, and one with very many of
/// them, ask all the time: others that are cold are served.
#[tokio::test]
async fn corrupt_workspaces_keep_nobody_from_the_kms() {
    const CORRUPT: usize = 1_000;
    let guard = Guard::start(CORRUPT + 50).await;
    let keyring = guard.keyring();
    let broken = |number: usize| WrappedDataKey { blob: vec![0; 60], ..guard.keys[number].clone() };
    let open = async |number: usize, wrapped: &WrappedDataKey| -> Option<KeyError> {
        error(keyring.for_open(&workspace(number), wrapped.id, Some(wrapped)).await)
    };
    let greedy = CORRUPT;
    for round in 0..50 {
        for number in (0..CORRUPT).skip(round % 2).step_by(25) {
            assert_eq!(open(number, &broken(number)).await, Some(KeyError::Corrupt("fake")));
        }
        for _ in 0..20 {
            let another = WrappedDataKey { id: DataKeyId::random(), ..broken(greedy) };
            let refused = open(greedy, &another).await;
            let over = matches!(refused, Some(KeyError::Kms(KmsError::OverBudget { .. })));
            assert_eq!(over, round >= 20, "{refused:?}");
        }
    }
    // 40 and 40 workspaces, each remembered; and the budget of one.
    assert_eq!(guard.bench.kms.decrypts(), 80 + 400);
    for number in CORRUPT + 1..CORRUPT + 50 {
        assert_eq!(open(number, &guard.keys[number]).await, None);
    }
}

#[tokio::test]
async fn what_is_cached_serves_while_the_kms_is_down_and_the_rest_returns_with_it() {
    let guard = Guard::start(8).await;
    let keyring = guard.keyring();
    let open = async |number: usize| -> Result<Arc<DataKey>, KeyError> {
        keyring.for_open(&workspace(number), guard.keys[number].id, None).await
    };
    assert_eq!(error(open(7).await), None);
    guard.bench.clock.advance(17 * MINUTE);
    guard.bring_down().await;
    let made = guard.bench.kms.decrypts();
    for _ in 0..100 {
        assert_eq!(error(open(7).await), None);
        let cold = error(open(6).await);
        assert!(matches!(cold, Some(KeyError::Kms(KmsError::Down { .. }))), "{cold:?}");
        settle().await;
    }
    assert_eq!(guard.bench.kms.decrypts(), made, "refused without a call");

    // Not remembered for longer than the pause.
    guard.bench.kms.fail(None);
    let Some(KeyError::Kms(KmsError::Down { wait })) = error(open(6).await) else { panic!() };
    assert!(wait <= SECOND);
    guard.bench.clock.advance(wait);
    assert_eq!(error(open(6).await), None);
    assert_eq!(error(open(5).await), None);
}

/// A job over many data keys waits where a call of a user is refused.
#[tokio::test]
async fn wrapping_anew_waits_for_the_budget() {
    let guard = Guard::start(1).await;
    let keyring = Arc::new(guard.keyring());
    guard.use_up(0).await;
    let job = {
        let (keyring, wrapped) = (Arc::clone(&keyring), guard.keys[0].clone());
        tokio::spawn(async move { keyring.rewrap(&workspace(0), &wrapped).await.is_ok() })
    };
    settle().await;
    assert!(!job.is_finished());
    guard.bench.clock.advance(SECOND);
    assert!(tokio::time::timeout(60 * SECOND, job).await.expect("goes on").unwrap());
}
