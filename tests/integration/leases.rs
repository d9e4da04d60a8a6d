//! The refresh lease: one holder at a time, and no stale write whoever holds
//! what.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;
use workflow_secrets::{
    domain::{
        Clock as _, Description, Etag, FencingToken, LeaseHolder, LeaseTtl, RequestId, Timestamp,
    },
    service::{
        AcquireRefreshLease, Credential, Credentials, DeleteSecret, Error, ExpiryChange, Lease,
        ReleaseRefreshLease, ResolveSecrets, SecretView, Secrets, Seen, UpdateSecret,
    },
    store::{Key, Record, Store},
};

use super::{
    on_engines::{caller, create, name, on_both_engines, plaintext, secrets, workspace},
    support::{manual_clock::ManualClock, memory_store::MemoryStore},
};

const TTL: Duration = Duration::from_secs(30);

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

on_both_engines! {
    others_wait_and_are_told_for_whom
    a_holder_that_comes_late_does_not_overwrite
    nobody_else_came_so_the_late_holder_may_write
    whoever_stores_a_value_ends_the_lease
    what_is_given_back_is_free_at_once
    a_secret_made_anew_knows_no_old_token
    only_the_owning_integration_gets_one
    a_repeated_update_is_answered_again
    fifty_refreshers_make_one_refresh
}

fn acquire_as(holder: &str) -> AcquireRefreshLease {
    AcquireRefreshLease {
        workspace: workspace(),
        name: name("OAUTH"),
        holder: LeaseHolder::parse(holder).unwrap(),
        ttl: LeaseTtl::parse(30, 0).unwrap(),
        etag: None,
    }
}

async fn acquire(secrets: &Arc<Secrets>, holder: &str) -> Result<Lease, Error> {
    secrets.acquire_lease(&caller("sheets"), acquire_as(holder)).await
}

async fn release(secrets: &Arc<Secrets>, fencing_token: FencingToken) -> Result<(), Error> {
    let request =
        ReleaseRefreshLease { workspace: workspace(), name: name("OAUTH"), fencing_token };
    secrets.release_lease(&caller("sheets"), request).await
}

/// A new value; with a token or with whatever is there.
fn write_of(value: &str, fencing_token: Option<FencingToken>) -> UpdateSecret {
    UpdateSecret {
        workspace: workspace(),
        name: name("OAUTH"),
        value: Some(plaintext(value)),
        description: None,
        expiry: ExpiryChange::Keep,
        etag: None,
        fencing_token,
        allow_missing: fencing_token.is_none(),
        owner: None,
        request_id: None,
        validate_only: false,
    }
}

async fn write(
    secrets: &Arc<Secrets>,
    value: &str,
    token: Option<FencingToken>,
) -> Result<SecretView, Error> {
    secrets.update(&caller("sheets"), write_of(value, token)).await
}

async fn value(secrets: &Arc<Secrets>) -> (String, u64) {
    let credential = Credential {
        secret: name("OAUTH"),
        alias: (&name("OAUTH")).into(),
        version: None,
        seen: Seen::default(),
    };
    let request = ResolveSecrets {
        workspace: workspace(),
        credentials: Credentials::new(vec![credential]).unwrap(),
        workflow_id: None,
        run_id: None,
    };
    let found = secrets.resolve(&caller("executor"), request).await.unwrap();
    (found[0].payload.value.expose().to_owned(), found[0].payload.version)
}

/// A clock at this moment.
fn at(time: Timestamp, later: Duration) -> Timestamp {
    time.plus(later)
}

#[track_caller]
fn assert_held(
    outcome: Result<Lease, Error>,
    by: &str,
    expires: Timestamp,
    left_at_most: Duration,
) {
    match outcome.expect_err("a lease") {
        Error::LeaseHeld { holder, until, left } => {
            assert_eq!((holder.as_str(), until, left), (by, expires, left_at_most));
        }
        other => panic!("{other:?}"),
    }
}

async fn others_wait_and_are_told_for_whom(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store.clone(), clock.clone());
    let secret = create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let revision = store.revision(&workspace()).await.unwrap();
    let start = clock.now();
    let lease = acquire(&secrets, "a").await.unwrap();
    assert_eq!((lease.expire_time, &lease.secret), (at(start, TTL), &secret));

    clock.advance(Duration::from_secs(10));
    assert_held(acquire(&secrets, "b").await, "a", at(start, TTL), Duration::from_secs(20));
    // The same name of another caller is another holder.
    let other = secrets.acquire_lease(&caller("sheets-2"), acquire_as("a")).await;
    assert_held(other, "a", at(start, TTL), Duration::from_secs(20));
    // Its own holder keeps the token and gets time.
    let again = acquire(&secrets, "a").await.unwrap();
    assert_eq!(again.fencing_token, lease.fencing_token);
    assert_eq!(again.expire_time, at(start, Duration::from_secs(40)));
    clock.advance(Duration::from_secs(29));
    assert_held(
        acquire(&secrets, "b").await,
        "a",
        at(start, Duration::from_secs(40)),
        Duration::from_secs(1),
    );
    // Over at that very moment.
    clock.advance(Duration::from_secs(1));
    let next = acquire(&secrets, "b").await.unwrap();
    assert!(next.fencing_token > lease.fencing_token);
    assert_held(acquire(&secrets, "a").await, "b", next.expire_time, TTL);

    // None of that was a change of a secret.
    assert_eq!(store.revision(&workspace()).await.unwrap(), revision);
}

async fn a_holder_that_comes_late_does_not_overwrite(
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
) {
    let secrets = secrets(store, clock.clone());
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let late = acquire(&secrets, "late").await.unwrap().fencing_token;
    clock.advance(TTL);
    let newest = acquire(&secrets, "newest").await.unwrap().fencing_token;

    let lost = Some(Error::LeaseLost);
    assert_eq!(write(&secrets, "stale", Some(late)).await.err(), lost);
    // Nor may a check alone tell otherwise, nor an etag that fits.
    let etag = secrets.acquire_lease(&caller("sheets"), acquire_as("newest")).await.unwrap();
    let etag = etag.secret.etag;
    let check = UpdateSecret { validate_only: true, etag, ..write_of("stale", Some(late)) };
    assert_eq!(secrets.update(&caller("sheets"), check).await.err(), lost);
    // Giving back what one no longer has takes nothing from the other.
    assert_eq!(release(&secrets, late).await, Ok(()));
    assert_eq!(value(&secrets).await, ("token-0".to_owned(), 1));

    let check = UpdateSecret { validate_only: true, ..write_of("token-1", Some(newest)) };
    assert!(secrets.update(&caller("sheets"), check).await.is_ok());
    assert_eq!(write(&secrets, "token-1", Some(newest)).await.unwrap().metadata.version, 2);
    // With the write the lease has ended: no second one, and no waiting.
    for token in [late, newest] {
        assert_eq!(write(&secrets, "stale", Some(token)).await.err(), lost);
    }
    assert_eq!(value(&secrets).await, ("token-1".to_owned(), 2));
    let third = acquire(&secrets, "third").await.unwrap().fencing_token;
    assert!(third > newest);
    // A token that was never given.
    assert_eq!(write(&secrets, "guess", Some(third.next())).await.err(), lost);
}

async fn nobody_else_came_so_the_late_holder_may_write(
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
) {
    let secrets = secrets(store, clock.clone());
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let token = acquire(&secrets, "a").await.unwrap().fencing_token;
    clock.advance(TTL * 100);
    // Even a call that comes late takes nothing away.
    assert_eq!(acquire(&secrets, "a").await.unwrap().fencing_token, token);
    clock.advance(TTL * 100);
    assert!(write(&secrets, "token-1", Some(token)).await.is_ok());
    assert_eq!(value(&secrets).await, ("token-1".to_owned(), 2));
}

async fn whoever_stores_a_value_ends_the_lease(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store, clock);
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let token = acquire(&secrets, "a").await.unwrap().fencing_token;
    // A new description is no new value.
    let describe = UpdateSecret {
        value: None,
        description: Some(Description::parse("new").unwrap()),
        ..write_of("unused", None)
    };
    secrets.update(&caller("sheets"), describe).await.unwrap();
    assert!(matches!(acquire(&secrets, "b").await, Err(Error::LeaseHeld { .. })));
    // The person connects anew while the old grant is being refreshed.
    write(&secrets, "reconnected", None).await.unwrap();
    assert_eq!(write(&secrets, "stale", Some(token)).await.err(), Some(Error::LeaseLost));
    assert_eq!(value(&secrets).await, ("reconnected".to_owned(), 2));
    let next = acquire(&secrets, "b").await.unwrap();
    assert!(next.fencing_token > token);
    assert_eq!(next.secret.metadata.version, 2);
}

async fn what_is_given_back_is_free_at_once(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store, clock);
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let token = acquire(&secrets, "a").await.unwrap().fencing_token;
    for _ in 0..2 {
        assert_eq!(release(&secrets, token).await, Ok(()));
    }
    assert_eq!(write(&secrets, "stale", Some(token)).await.err(), Some(Error::LeaseLost));
    // Given back is given back, even to the one who had it.
    let again = acquire(&secrets, "a").await.unwrap().fencing_token;
    assert!(again > token);
    release(&secrets, again).await.unwrap();
    let next = acquire(&secrets, "b").await.unwrap();
    assert!(next.fencing_token > again);
    assert!(write(&secrets, "token-1", Some(next.fencing_token)).await.is_ok());
}

async fn a_secret_made_anew_knows_no_old_token(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store.clone(), clock);
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let token = acquire(&secrets, "a").await.unwrap().fencing_token;
    let delete = DeleteSecret {
        workspace: workspace(),
        name: name("OAUTH"),
        etag: None,
        permanent: false,
        request_id: None,
    };
    secrets.delete(&caller("sheets"), delete).await.unwrap();
    let left = store.scan(&workspace(), Key::LEASE, None, 9).await.unwrap();
    assert!(left.is_empty(), "the lease goes with the secret");
    let gone = write_of("stale", Some(token));
    let gone = UpdateSecret { allow_missing: true, ..gone };
    let outcome = secrets.update(&caller("sheets"), gone).await;
    assert!(matches!(outcome, Err(Error::NotFound { .. })), "a token means a secret that was seen");
    assert!(matches!(acquire(&secrets, "a").await, Err(Error::NotFound { .. })));
    assert!(matches!(release(&secrets, token).await, Err(Error::NotFound { .. })));

    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    assert_eq!(write(&secrets, "stale", Some(token)).await.err(), Some(Error::LeaseLost));
    let new = acquire(&secrets, "b").await.unwrap().fencing_token;
    assert_ne!(new, token);
    assert_eq!(write(&secrets, "stale", Some(token)).await.err(), Some(Error::LeaseLost));
    assert_eq!(value(&secrets).await, ("token-0".to_owned(), 1));
}

async fn only_the_owning_integration_gets_one(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store.clone(), clock);
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    create(&secrets, "USER", None).await.unwrap();
    let token = FencingToken::first();
    let ask = async |by: &str, secret: &str| {
        let request = AcquireRefreshLease { name: name(secret), ..acquire_as("h") };
        let acquired = secrets.acquire_lease(&caller(by), request).await.map(|_| ());
        let request = ReleaseRefreshLease {
            workspace: workspace(),
            name: name(secret),
            fencing_token: token,
        };
        let released = secrets.release_lease(&caller(by), request).await;
        assert_eq!(acquired, released);
        acquired.err().map(|error| error.reason())
    };
    for by in ["platform", "executor", "operator", "stranger"] {
        for secret in ["OAUTH", "USER", "MISSING"] {
            assert_eq!(ask(by, secret).await, Some("NOT_GRANTED"), "{by} {secret}");
        }
    }
    assert_eq!(ask("slack", "OAUTH").await, Some("SYSTEM_MANAGED"));
    assert_eq!(ask("slack", "USER").await, Some("USER_MANAGED"));
    assert_eq!(ask("sheets", "MISSING").await, Some("SECRET_NOT_FOUND"));
    assert!(store.scan(&workspace(), Key::LEASE, None, 9).await.unwrap().is_empty());

    // An etag names the state that needs the refresh.
    let stale = AcquireRefreshLease { etag: Some(Etag::received("x")), ..acquire_as("h") };
    let outcome = secrets.acquire_lease(&caller("sheets"), stale).await;
    assert_eq!(outcome.err(), Some(Error::EtagMismatch));
    assert_eq!(ask("sheets", "OAUTH").await, None);
}

async fn a_repeated_update_is_answered_again(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store, clock);
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let token = acquire(&secrets, "a").await.unwrap().fencing_token;
    let call = async |token, value| {
        let request_id = Some(RequestId::parse("refresh-1").unwrap());
        let request = UpdateSecret { request_id, ..write_of(value, Some(token)) };
        secrets.update(&caller("sheets"), request).await
    };
    let first = call(token, "token-1").await.unwrap();
    assert_eq!(call(token, "token-1").await.as_ref(), Ok(&first));
    // The token is part of what makes two requests the same.
    assert_eq!(call(token.next(), "token-1").await.err(), Some(Error::RequestIdReused));
    assert_eq!(value(&secrets).await, ("token-1".to_owned(), 2));
}

#[tokio::test]
async fn who_is_overtaken_on_the_way_to_the_store_stores_nothing() {
    let (store, clock) = (Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
    let secrets = secrets(store.clone(), clock.clone());
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let key = Key::lease(&name("OAUTH"));
    let newest = || store.records(&workspace())[&key].clone();
    let late = acquire(&secrets, "late").await.unwrap().fencing_token;
    let first = newest();
    clock.advance(TTL);
    let next = acquire(&secrets, "next").await.unwrap().fencing_token;
    let second = newest();
    let back = |record: &Record| store.set(&workspace(), key.clone(), Some(record.clone()));

    // The lease was still the newest when it was looked at.
    back(&first);
    store.overtake(key.clone(), second.clone());
    assert_eq!(write(&secrets, "stale", Some(late)).await.err(), Some(Error::LeaseLost));
    assert_eq!(value(&secrets).await, ("token-0".to_owned(), 1));
    // It was free when it was looked at.
    back(&first);
    store.overtake(key.clone(), second.clone());
    assert!(matches!(acquire(&secrets, "other").await, Err(Error::LeaseHeld { .. })));
    assert!(newest() == second);
    // Whose it is does not go with a lease that was given back too late.
    back(&first);
    store.overtake(key.clone(), second.clone());
    assert_eq!(release(&secrets, late).await, Ok(()));
    assert!(newest() == second);
    assert!(write(&secrets, "token-1", Some(next)).await.is_ok());
}

async fn fifty_refreshers_make_one_refresh(store: Arc<dyn Store>, clock: Arc<ManualClock>) {
    let secrets = secrets(store, clock);
    create(&secrets, "OAUTH", Some("google_sheets")).await.unwrap();
    let refreshes = Arc::new(AtomicU64::new(0));
    for round in 1..=3 {
        let mut refreshers = JoinSet::new();
        for number in 0..50 {
            let (secrets, refreshes) = (Arc::clone(&secrets), Arc::clone(&refreshes));
            refreshers.spawn(async move {
                loop {
                    let lease = match acquire(&secrets, &format!("h{number}")).await {
                        Ok(lease) => lease,
                        Err(Error::LeaseHeld { .. } | Error::ConcurrentUpdate) => {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            continue;
                        }
                        Err(other) => panic!("{other:?}"),
                    };
                    let token = lease.fencing_token;
                    if lease.secret.metadata.version > round {
                        release(&secrets, token).await.unwrap();
                        return;
                    }
                    let number = refreshes.fetch_add(1, Ordering::SeqCst) + 1;
                    write(&secrets, &format!("token-{number}"), Some(token)).await.unwrap();
                    return;
                }
            });
        }
        // Whoever waits in vain fails.
        tokio::time::timeout(PATIENCE, refreshers.join_all()).await.unwrap();
        assert_eq!(refreshes.load(Ordering::SeqCst), round);
        assert_eq!(value(&secrets).await, (format!("token-{round}"), round + 1));
    }
}
