//! Integrations that refresh OAuth tokens under leases, several at once.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::JoinSet;
use tonic::{Response, Status};
use uuid::Uuid;
use workflow_secrets::grpc::proto::{AcquireRefreshLeaseRequest, Owner};

use super::World;
use crate::{
    oracle::Verdict,
    site::{Outcome, answered, timed},
    support::platform::{create, get, resolve, update, value, with},
};

const WORKSPACE: &str = "oauth";

/// Longer than any fault: no holder loses its lease here.
const TTL_SECONDS: i64 = 600;

const SECRETS: usize = 3;
const REFRESHERS: usize = 3;

/// Destroys the grant when a refresh token is used a second time.
#[derive(Default)]
struct Provider(Mutex<u64>);

impl Provider {
    /// The next token; `None` if that was not the current one.
    fn refresh(&self, presented: &str) -> Option<String> {
        let mut current = self.0.lock().unwrap();
        if presented != format!("token-{current}") {
            return None;
        }
        *current += 1;
        Some(format!("token-{current}"))
    }
}

pub(crate) fn start(world: &Arc<World>, all: &mut JoinSet<()>) {
    for number in 0..SECRETS {
        let provider = Arc::new(Provider::default());
        for holder in 0..REFRESHERS {
            let (world, provider) = (Arc::clone(world), Arc::clone(&provider));
            all.spawn(refresh(world, provider, format!("OAUTH_{number}"), number * 10 + holder));
        }
    }
}

async fn refresh(world: Arc<World>, provider: Arc<Provider>, name: String, number: usize) {
    let mut rng = world.rng("refresher", number);
    let mut sheets = world.caller("sheets", "refresher", number);
    let mut executor = world.caller("executor", "refresher", number);
    let (holder, first_id) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    while !world.site.is_over() {
        world.pause(&mut rng).await;
        world.pause(&mut rng).await;
        let seen = answered(sheets.any().get_secret(timed(get(WORKSPACE, &name)))).await;
        if let Outcome::No(reason, _) = &seen
            && reason == "SECRET_NOT_FOUND"
        {
            let request = with(create(WORKSPACE, &name, "token-0"), |r| {
                let connection_id = name.clone();
                r.owner = Some(Owner { integration: "google_sheets".to_owned(), connection_id });
                r.request_id = first_id.clone();
            });
            let made = answered(sheets.any().create_secret(timed(request))).await;
            match made {
                Outcome::No(reason, _) if reason == "SECRET_EXISTS" => {}
                other => {
                    let made = world.tally.answer("Create", other);
                    world.tally.acknowledged.add(u64::from(made.is_some()));
                }
            }
            continue;
        }
        let Some(secret) = world.tally.answer("Get", seen) else { continue };
        let request = AcquireRefreshLeaseRequest {
            workspace: WORKSPACE.to_owned(),
            name: name.clone(),
            holder: holder.clone(),
            ttl: Some(prost_types::Duration { seconds: TTL_SECONDS, nanos: 0 }),
            etag: secret.etag,
        };
        let acquired = answered(sheets.any().acquire_refresh_lease(timed(request))).await;
        let lease = match acquired {
            Outcome::No(reason, _)
                if ["LEASE_HELD", "ETAG_MISMATCH"].contains(&reason.as_str()) =>
            {
                continue;
            }
            other => match world.tally.answer("AcquireRefreshLease", other) {
                Some(lease) => lease,
                // It may have it, and finds out next time.
                None => continue,
            },
        };
        // From here on others have to wait, so it goes on until it is done.
        let read = until_answered(&world, "Resolve", || {
            let (mut client, request) = (executor.any(), timed(resolve(WORKSPACE, &[&name])));
            async move { client.resolve_secrets(request).await }
        });
        let Some(read) = read.await else { continue };
        world.tally.resolved.add(1);
        let old = value(&read, &name);
        let Some(new) = provider.refresh(&old) else {
            let told = format!("{name}: {old} was refreshed before: the grant is destroyed");
            world.tally.judge("Refresh", Verdict::Lost(told));
            return;
        };
        let request = with(update(WORKSPACE, &name), |r| {
            r.value = Some(new);
            r.fencing_token = Some(lease.fencing_token);
            r.request_id = Uuid::new_v4().to_string();
        });
        let written = until_answered(&world, "Update", || {
            let (mut client, request) = (sheets.any(), timed(request.clone()));
            async move { client.update_secret(request).await }
        });
        if let Some(written) = written.await {
            world.tally.acknowledged.add(1);
            let right = written.version == read.secrets[&name].version + 1;
            let told = || format!("{name}: version {} after its refresh", written.version);
            let verdict = if right { Verdict::Right } else { Verdict::Wrong(told()) };
            world.tally.judge("Update", verdict);
        }
    }
}

/// Calls until there is an answer; `None` if it is an error.
async fn until_answered<T, F>(world: &World, name: &str, mut call: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    loop {
        match answered(call()).await {
            Outcome::Away(why) => world.tally.away(&why),
            other => return world.tally.answer(name, other),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
