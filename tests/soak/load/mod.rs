//! The load: who calls the service, and what they expect.

mod admins;
mod readers;
mod refreshers;
mod writers;

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

pub(crate) use self::readers::{StillSecrets, verify};
use crate::{
    oracle::Secret,
    rng::Rng,
    site::{Caller, Site},
    tally::Tally,
};

/// How much of each.
pub(crate) struct Load {
    pub(crate) writers: usize,
    pub(crate) readers: usize,
    /// Of each writer.
    pub(crate) secrets: usize,
    /// Between two calls of one of them, on average.
    pub(crate) pace: Duration,
}

/// Over which the writers' secrets are spread.
const WORKSPACES: usize = 4;

/// What all of the load share.
pub(crate) struct World {
    pub(crate) site: Arc<Site>,
    pub(crate) tally: Tally,
    pub(crate) seed: u64,
    pub(crate) pace: Duration,
    /// By writer.
    pub(crate) secrets: Vec<Vec<Arc<Secret>>>,
}

impl World {
    pub(crate) fn new(site: &Arc<Site>, seed: u64, load: &Load) -> Arc<Self> {
        let of = |writer: usize| {
            let secret = |number: usize| {
                let workspace = format!("ws{}", (writer + number) % WORKSPACES);
                Arc::new(Secret::new(&workspace, &format!("W{writer}_{number}")))
            };
            (0..load.secrets).map(secret).collect()
        };
        Arc::new(Self {
            site: Arc::clone(site),
            tally: Tally::default(),
            seed,
            pace: load.pace,
            secrets: (0..load.writers).map(of).collect(),
        })
    }

    fn rng(&self, part: &str, number: usize) -> Rng {
        Rng::of(self.seed, part, number)
    }

    fn caller(&self, name: &'static str, part: &str, number: usize) -> Caller {
        Caller::new(&self.site, name, self.rng(part, number ^ 0x1000))
    }

    /// All of one workspace.
    fn of_workspace(&self, workspace: &str) -> Vec<Arc<Secret>> {
        let all = self.secrets.iter().flatten();
        all.filter(|secret| secret.workspace == workspace).cloned().collect()
    }

    async fn pause(&self, rng: &mut Rng) {
        tokio::time::sleep(rng.between(Duration::ZERO, self.pace * 2)).await;
    }
}

/// Starts all of it.
pub(crate) fn start(world: &Arc<World>, load: &Load, still: &Arc<StillSecrets>) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for writer in 0..load.writers {
        all.spawn(writers::write(Arc::clone(world), writer));
    }
    for reader in 0..load.readers {
        all.spawn(readers::read(Arc::clone(world), reader));
    }
    all.spawn(readers::read_still(Arc::clone(world), Arc::clone(still)));
    all.spawn(readers::redact(Arc::clone(world), Arc::clone(still)));
    refreshers::start(world, &mut all);
    all.spawn(admins::rotate(Arc::clone(world)));
    all.spawn(admins::shred(Arc::clone(world)));
    all
}
