//! Whether the service can be used: each replica is asked ten times a second to
//! resolve one secret of a warm workspace, and to change another.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::timeout};

use crate::{
    site::{REPLICAS, Site},
    support::platform::{create, resolve, update, with},
};

const WORKSPACE: &str = "probe";

/// How long one look may take. Longer than a store that answers slowly needs.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

const KINDS: [Kind; 2] = [Kind::Read, Kind::Write];

/// What the probes found.
pub(crate) struct Availability {
    start: Instant,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// By second: whether a call of each kind succeeded in it.
    seconds: Vec<[bool; 2]>,
    /// By replica and kind: when the last call that succeeded was made.
    last: [[Option<Instant>; 2]; REPLICAS],
}

impl Availability {
    /// So many whole seconds have gone by.
    pub(crate) fn seconds(&self) -> usize {
        self.start.elapsed().as_secs() as usize
    }

    /// In which second of the soak a moment lies.
    pub(crate) fn second_of(&self, moment: Instant) -> usize {
        (moment - self.start).as_secs() as usize
    }

    /// Whether no call of this kind succeeded in that second, on any replica.
    pub(crate) fn was_away(&self, second: usize, kind: Kind) -> bool {
        !self.found.lock().unwrap().seconds.get(second).is_some_and(|kinds| kinds[kind as usize])
    }

    /// Whether each replica has answered calls of both kinds that were made
    /// after this.
    pub(crate) fn is_whole_since(&self, moment: Instant) -> bool {
        let found = self.found.lock().unwrap();
        found.last.iter().flatten().all(|last| last.is_some_and(|last| last > moment))
    }

    fn succeeded(&self, replica: usize, kind: Kind, made: Instant) {
        let second = self.seconds();
        let mut found = self.found.lock().unwrap();
        if found.seconds.len() <= second {
            found.seconds.resize(second + 1, [false; 2]);
        }
        found.seconds[second][kind as usize] = true;
        found.last[replica][kind as usize] = Some(made);
    }
}

/// Goes on for as long as the second value lives.
pub(crate) async fn start(site: &Arc<Site>) -> (Arc<Availability>, JoinSet<()>) {
    let mut platform = site.client(0, "platform");
    for name in ["READ".to_owned()].into_iter().chain((0..REPLICAS).map(|n| format!("WRITE_{n}"))) {
        platform.create_secret(create(WORKSPACE, &name, "here")).await.unwrap();
    }
    let found = Mutex::default();
    let availability = Arc::new(Availability { start: Instant::now(), found });
    let mut probes = JoinSet::new();
    for replica in 0..REPLICAS {
        for kind in KINDS {
            probes.spawn(probe(Arc::clone(site), Arc::clone(&availability), replica, kind));
        }
    }
    (availability, probes)
}

async fn probe(site: Arc<Site>, availability: Arc<Availability>, replica: usize, kind: Kind) {
    let caller = match kind {
        Kind::Read => "executor",
        Kind::Write => "platform",
    };
    let mut client = site.client(replica, caller);
    for number in 0_u64.. {
        let made = Instant::now();
        let succeeded = match kind {
            Kind::Read => {
                let call = client.resolve_secrets(resolve(WORKSPACE, &["READ"]));
                timeout(PATIENCE, call).await.is_ok_and(|answer| answer.is_ok())
            }
            Kind::Write => {
                // A replica each, or they would get into each other's way.
                let request = with(update(WORKSPACE, &format!("WRITE_{replica}")), |r| {
                    r.description = Some(number.to_string());
                });
                let call = client.update_secret(request);
                timeout(PATIENCE, call).await.is_ok_and(|answer| answer.is_ok())
            }
        };
        if succeeded {
            availability.succeeded(replica, kind, made);
        }
        tokio::time::sleep_until((made + Duration::from_millis(100)).into()).await;
    }
}
