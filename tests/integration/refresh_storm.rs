//! OAuth refresh by many at once, on two replicas, while holders and a replica
//! are killed: each expiry costs one refresh, and nothing stale is stored.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;
use workflow_secrets::grpc::proto::{
    AcquireRefreshLeaseRequest, Owner, ReleaseRefreshLeaseRequest, Secret,
};

use super::support::platform::{
    Client, Platform, Replica, assert_refused, create, get, reason, resolve, update, value, with,
};

const WS: &str = "ws";
const REFRESHERS: usize = 50;

/// Long enough for a holder on a busy machine, short enough to wait for.
const TTL: i64 = 4;

/// Far longer than a round takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// An OAuth provider that rotates refresh tokens and destroys the grant when an
/// old one is used again.
#[derive(Default)]
struct Provider(Mutex<(u64, bool)>);

impl Provider {
    fn refresh(&self, presented: &str) -> String {
        let mut state = self.0.lock().unwrap();
        let (current, destroyed) = &mut *state;
        if *destroyed || presented != format!("token-{current}") {
            *destroyed = true;
            return "invalid_grant".to_owned();
        }
        *current += 1;
        format!("token-{current}")
    }

    /// Refreshes so far, and whether the grant is still good.
    fn state(&self) -> (u64, bool) {
        let (refreshes, destroyed) = *self.0.lock().unwrap();
        (refreshes, !destroyed)
    }
}

/// Clients of all replicas; the first is used, and the next when it fails.
#[derive(Clone)]
struct Refresher {
    clients: Vec<(Client, Client)>,
    holder: String,
}

enum Ended {
    /// The secret has a new value.
    Refreshed,
    /// It was killed with the lease of this token in hand.
    Killed(u64),
}

impl Refresher {
    async fn new(platform: &Platform, replicas: &[&Replica]) -> Self {
        let mut clients = Vec::new();
        for replica in replicas {
            let integration = platform.client(replica, "sheets").await;
            clients.push((integration, platform.client(replica, "executor").await));
        }
        Self { clients, holder: Uuid::new_v4().to_string() }
    }

    /// Tries one call until a replica answers it.
    async fn answered<T, F>(&mut self, call: impl Fn(Client, Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>> + Send,
    {
        loop {
            let (integration, executor) = self.clients[0].clone();
            match call(integration, executor).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if status.get_error_details().error_info().is_some() => {
                    if status.code() != Code::Unavailable {
                        return Err(status);
                    }
                }
                // The replica is gone.
                Err(_) => {}
            }
            self.clients.rotate_left(1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn secret(&mut self) -> Secret {
        let call = |mut sheets: Client, _| async move { sheets.get_secret(get(WS, "OAUTH")).await };
        self.answered(call).await.unwrap()
    }

    async fn write(&mut self, text: &str, token: u64) -> Result<Secret, Status> {
        let request = with(update(WS, "OAUTH"), |r| {
            r.value = Some(text.to_owned());
            r.fencing_token = Some(token);
            r.request_id = Uuid::new_v4().to_string();
        });
        self.answered(|mut sheets, _| {
            let request = request.clone();
            async move { sheets.update_secret(request).await }
        })
        .await
    }

    /// What a careful integration does when it finds that the value of
    /// `version` has expired.
    async fn refresh(
        mut self,
        provider: Arc<Provider>,
        version: u64,
        doomed: Arc<AtomicBool>,
    ) -> Ended {
        loop {
            let secret = self.secret().await;
            if secret.version > version {
                return Ended::Refreshed;
            }
            let request = AcquireRefreshLeaseRequest {
                workspace: WS.to_owned(),
                name: "OAUTH".to_owned(),
                holder: self.holder.clone(),
                ttl: Some(prost_types::Duration { seconds: TTL, nanos: 0 }),
                etag: secret.etag,
            };
            let acquired = self.answered(|mut sheets, _| {
                let request = request.clone();
                async move { sheets.acquire_refresh_lease(request).await }
            });
            let lease = match acquired.await {
                Ok(lease) => lease,
                Err(status) => {
                    let (code, why) = reason(&status);
                    assert_eq!(code, Code::Aborted);
                    let waits = ["LEASE_HELD", "ETAG_MISMATCH", "CONCURRENT_UPDATE"];
                    assert!(waits.contains(&why.as_str()), "{status:?}");
                    let details = status.get_error_details();
                    let wait = details.retry_info().and_then(|info| info.retry_delay);
                    let wait = wait.unwrap_or_default().min(Duration::from_millis(100));
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            if doomed.swap(false, Ordering::SeqCst) {
                return Ended::Killed(lease.fencing_token);
            }
            let read = |_, mut executor: Client| async move {
                executor.resolve_secrets(resolve(WS, &["OAUTH"])).await
            };
            let old = value(&self.answered(read).await.unwrap(), "OAUTH");
            let new = provider.refresh(&old);
            let written = self.write(&new, lease.fencing_token).await.unwrap();
            assert_eq!(written.version, version + 1);
            return Ended::Refreshed;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_expiry_costs_one_refresh_whoever_is_killed() {
    let platform = Platform::start().await;
    let mut replicas = [platform.replica().await, platform.replica().await];
    let mut sheets = platform.client(&replicas[0], "sheets").await;
    let request = with(create(WS, "OAUTH", "token-0"), |r| {
        r.owner =
            Some(Owner { integration: "google_sheets".to_owned(), connection_id: "c".to_owned() });
    });
    sheets.create_secret(request).await.unwrap();

    let provider = Arc::new(Provider::default());
    let mut idle = Vec::new();
    for number in 0..REFRESHERS {
        let [one, two] = &replicas;
        let order = if number % 2 == 0 { [one, two] } else { [two, one] };
        idle.push(Refresher::new(&platform, &order).await);
    }
    // A holder is killed in the second round, and one with a replica in the
    // third.
    for (version, kill_holder, kill_replica) in
        [(1, false, false), (2, true, false), (3, true, true), (4, false, false)]
    {
        let doomed = Arc::new(AtomicBool::new(kill_holder));
        let mut refreshers = JoinSet::new();
        for refresher in &idle {
            let (refresher, provider) = (refresher.clone(), Arc::clone(&provider));
            let doomed = Arc::clone(&doomed);
            refreshers.spawn(refresher.refresh(provider, version, doomed));
        }
        if kill_replica {
            tokio::time::sleep(Duration::from_millis(50)).await;
            replicas[0].kill9();
        }
        let ended = tokio::time::timeout(PATIENCE, refreshers.join_all()).await.expect("an end");
        let killed: Vec<_> = ended
            .into_iter()
            .filter_map(|ended| match ended {
                Ended::Refreshed => None,
                Ended::Killed(token) => Some(token),
            })
            .collect();
        assert_eq!(killed.len(), usize::from(kill_holder));
        assert_eq!(provider.state(), (version, true), "refreshes, and a grant that is good");

        // Whoever was taken for dead comes back and writes what it had.
        for token in killed {
            let outcome = idle[0].write("stale", token).await.map(tonic::Response::new);
            assert_refused(outcome, Code::Aborted, "LEASE_LOST");
        }
        let mut executor = platform.client(&replicas[1], "executor").await;
        let answer = executor.resolve_secrets(resolve(WS, &["OAUTH"])).await.unwrap().into_inner();
        assert_eq!(value(&answer, "OAUTH"), format!("token-{version}"));
        assert_eq!(answer.secrets["OAUTH"].version, version + 1);
    }
}

#[tokio::test]
async fn a_refusal_tells_who_has_the_lease_and_both_leave_their_lines() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut sheets = platform.client(&replica, "sheets").await;
    let request = with(create(WS, "OAUTH", "token-0"), |r| {
        r.owner =
            Some(Owner { integration: "google_sheets".to_owned(), connection_id: "c".to_owned() });
    });
    let secret = sheets.create_secret(request).await.unwrap().into_inner();
    let acquire = |holder: &str, ttl: Option<(i64, i32)>| AcquireRefreshLeaseRequest {
        workspace: WS.to_owned(),
        name: "OAUTH".to_owned(),
        holder: holder.to_owned(),
        ttl: ttl.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }),
        etag: String::new(),
    };
    let lease = sheets.acquire_refresh_lease(acquire("pod-1", None)).await.unwrap().into_inner();
    assert_eq!(lease.secret, Some(secret));
    assert!((1..1 << 53).contains(&lease.fencing_token));

    let outcome = sheets.acquire_refresh_lease(acquire("pod-2", Some((600, 0)))).await;
    let status = assert_refused(outcome, Code::Aborted, "LEASE_HELD");
    let details = status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["holder"], "pod-1");
    let until = humantime::parse_rfc3339(&metadata["expire_time"]).unwrap();
    let told = std::time::SystemTime::try_from(lease.expire_time.unwrap()).unwrap();
    assert!(told.duration_since(until).unwrap() < Duration::from_millis(1), "{metadata:?}");
    // The default of a minute, a little of which is over.
    let left = details.retry_info().unwrap().retry_delay.unwrap();
    assert!((Duration::from_secs(30)..=Duration::from_secs(60)).contains(&left), "{left:?}");

    // Every field that breaks its rule is named, and nothing is echoed.
    let bad = AcquireRefreshLeaseRequest {
        workspace: "-".to_owned(),
        name: "9".to_owned(),
        ..acquire("a b", Some((0, 5)))
    };
    let status = sheets.acquire_refresh_lease(bad).await.unwrap_err();
    assert_eq!(fields(&status), ["workspace", "name", "holder", "ttl"]);
    let release = |fencing_token| ReleaseRefreshLeaseRequest {
        workspace: WS.to_owned(),
        name: "OAUTH".to_owned(),
        fencing_token,
    };
    let status = sheets.release_refresh_lease(release(0)).await.unwrap_err();
    assert_eq!(fields(&status), ["fencing_token"]);
    // A token writes a value, and 0 is not taken for none.
    let request = with(update(WS, "OAUTH"), |r| {
        r.description = Some("d".to_owned());
        r.fencing_token = Some(lease.fencing_token);
    });
    assert_eq!(fields(&sheets.update_secret(request).await.unwrap_err()), ["fencing_token"]);
    let request = with(update(WS, "OAUTH"), |r| {
        r.value = Some("v".to_owned());
        r.allow_missing = true;
        r.fencing_token = Some(0);
    });
    assert_eq!(fields(&sheets.update_secret(request).await.unwrap_err()), ["fencing_token"]);

    for _ in 0..2 {
        sheets.release_refresh_lease(release(lease.fencing_token)).await.unwrap();
    }
    let next = sheets.acquire_refresh_lease(acquire("pod-2", None)).await.unwrap().into_inner();
    assert!(next.fencing_token > lease.fencing_token);

    let lines = replica.audit();
    let lines: Vec<_> = lines
        .iter()
        .filter(|line| line["action"].as_str().unwrap().ends_with("lease"))
        .map(|line| {
            assert_eq!(line["caller"], "spiffe://test/sheets");
            let text = |field: &str| line[field].as_str().unwrap_or("-").to_owned();
            let version =
                line["version"].as_u64().map_or_else(|| "-".to_owned(), |v| v.to_string());
            [text("action"), text("outcome"), text("secret"), text("holder"), version].join(" ")
        })
        .collect();
    assert_eq!(
        lines,
        [
            "acquire_lease ok OAUTH pod-1 1",
            "acquire_lease LEASE_HELD OAUTH pod-2 -",
            "acquire_lease INVALID_FIELD - - -",
            "release_lease INVALID_FIELD - - -",
            "release_lease ok OAUTH - -",
            "release_lease ok OAUTH - -",
            "acquire_lease ok OAUTH pod-2 1",
        ]
    );
}

/// Fields that an INVALID_FIELD error names.
fn fields(status: &Status) -> Vec<String> {
    assert_eq!(reason(status), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
    let details = status.get_error_details();
    let request = details.bad_request().expect("a BadRequest");
    request.field_violations.iter().map(|violation| violation.field.clone()).collect()
}
