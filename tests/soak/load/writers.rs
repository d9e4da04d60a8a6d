//! Writers: create, update, roll back, delete and undelete, each change under
//! one request_id until its outcome is known.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;
use workflow_secrets::grpc::proto::{self, RollbackSecretRequest, UndeleteSecretRequest};

use super::World;
use crate::{
    oracle::{Secret, State, Verdict},
    rng::Rng,
    site::{Caller, Outcome, answered, timed},
    support::platform::{create, delete, update, with},
};

/// How long a change may go without a known outcome; no fault lasts so long.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy)]
enum Change {
    Create,
    Update,
    Describe,
    RollBack(u64),
    Delete { permanent: bool },
    Undelete,
}

/// Changes its secrets in turn until the soak is over.
pub(crate) async fn write(world: Arc<World>, writer: usize) {
    let mut rng = world.rng("writer", writer);
    let mut caller = world.caller("platform", "writer", writer);
    let secrets = &world.secrets[writer];
    // What each was before it was deleted, if it may come back.
    let mut deleted = vec![None; secrets.len()];
    while !world.site.is_over() {
        let number = rng.below(secrets.len());
        change(&world, &secrets[number], &mut deleted[number], &mut caller, &mut rng).await;
        world.pause(&mut rng).await;
    }
}

fn choose(rng: &mut Rng, now: State, deleted: Option<State>) -> Change {
    match (now, deleted) {
        (State::Absent, Some(_)) if rng.percent(80) => Change::Undelete,
        (State::Absent, _) => Change::Create,
        (State::Present { version, .. }, _) => match rng.below(100) {
            0..6 => Change::Delete { permanent: rng.percent(50) },
            6..16 => Change::Describe,
            16..26 if version > 1 => {
                Change::RollBack(version - 1 - rng.below(5.min(version as usize - 1)) as u64)
            }
            _ => Change::Update,
        },
    }
}

async fn change(
    world: &World,
    secret: &Secret,
    deleted: &mut Option<State>,
    caller: &mut Caller,
    rng: &mut Rng,
) {
    let now = secret.now();
    let change = choose(rng, now, *deleted);
    let next = match change {
        Change::Create => secret.create(),
        Change::Update => secret.update(),
        Change::Describe => secret.become_(now),
        Change::RollBack(to) => secret.roll_back(to),
        Change::Delete { .. } => secret.become_(State::Absent),
        Change::Undelete => secret.become_(deleted.unwrap()),
    };
    let (id, start) = (Uuid::new_v4().to_string(), Instant::now());
    loop {
        match attempt(secret, change, next, &id, caller).await {
            Outcome::Answer(told) => {
                secret.acknowledge();
                world.tally.acknowledged.add(1);
                world.tally.judge(&format!("{change:?}"), check(secret, next, told));
                *deleted = match change {
                    Change::Delete { permanent: false } => Some(now),
                    Change::Create | Change::Undelete | Change::Delete { .. } => None,
                    _ => *deleted,
                };
                return;
            }
            Outcome::Away(why) => {
                world.tally.away(&why);
                if start.elapsed() > PATIENCE {
                    world.tally.unexpected(&format!("{change:?}"), "no outcome", &why);
                    // What it is now nobody knows: the rest tells of it.
                    return secret.acknowledge();
                }
                tokio::time::sleep(rng.between(world.pace, world.pace * 10)).await;
            }
            Outcome::No(reason, text) => {
                let told = format!("{change:?} of {}/{}", secret.workspace, secret.name);
                // By the row of states it must be possible.
                match reason.as_str() {
                    "SECRET_NOT_FOUND" | "SECRET_EXISTS" | "VERSION_NOT_FOUND" => {
                        world.tally.lost.add(format!("{told}: {reason} after {now:?}"));
                    }
                    _ => world.tally.unexpected(&told, &reason, &text),
                }
                return secret.withdraw();
            }
        }
    }
}

/// One try; what the answer tells of the secret.
async fn attempt(
    secret: &Secret,
    change: Change,
    next: State,
    id: &str,
    caller: &mut Caller,
) -> Outcome<Option<proto::Secret>> {
    let mut client = caller.any();
    let (workspace, name) = (secret.workspace.clone(), secret.name.clone());
    let value = || match next {
        State::Present { serial, .. } => secret.value(serial),
        State::Absent => String::new(),
    };
    let request_id = id.to_owned();
    match change {
        Change::Create => {
            let request = with(create(&workspace, &name, &value()), |r| r.request_id = request_id);
            some(answered(client.create_secret(timed(request))).await)
        }
        Change::Update | Change::Describe => {
            let request = with(update(&workspace, &name), |r| {
                r.request_id = request_id;
                match change {
                    Change::Update => r.value = Some(value()),
                    _ => r.description = Some(id.to_owned()),
                }
            });
            some(answered(client.update_secret(timed(request))).await)
        }
        Change::RollBack(version) => {
            let etag = String::new();
            let request = RollbackSecretRequest { workspace, name, version, etag, request_id };
            some(answered(client.rollback_secret(timed(request))).await)
        }
        Change::Undelete => {
            let request = UndeleteSecretRequest { workspace, name, uid: String::new(), request_id };
            some(answered(client.undelete_secret(timed(request))).await)
        }
        Change::Delete { permanent } => {
            let request = with(delete(&workspace, &name), |r| {
                r.permanent = permanent;
                r.request_id = request_id;
            });
            match answered(client.delete_secret(timed(request))).await {
                Outcome::Answer(()) => Outcome::Answer(None),
                Outcome::Away(why) => Outcome::Away(why),
                Outcome::No(reason, text) => Outcome::No(reason, text),
            }
        }
    }
}

fn some<T>(outcome: Outcome<T>) -> Outcome<Option<T>> {
    match outcome {
        Outcome::Answer(answer) => Outcome::Answer(Some(answer)),
        Outcome::Away(why) => Outcome::Away(why),
        Outcome::No(reason, text) => Outcome::No(reason, text),
    }
}

/// A lower version than it must have: an acknowledged change before is gone. A
/// higher one: this one was carried out twice.
fn check(secret: &Secret, next: State, told: Option<proto::Secret>) -> Verdict {
    let (State::Present { version, .. }, Some(told)) = (next, told) else { return Verdict::Right };
    let what = || format!("{}: version {}, not {version}", secret.name, told.version);
    match told.version.cmp(&version) {
        std::cmp::Ordering::Less => Verdict::Lost(what()),
        std::cmp::Ordering::Equal => Verdict::Right,
        std::cmp::Ordering::Greater => Verdict::Wrong(what()),
    }
}
