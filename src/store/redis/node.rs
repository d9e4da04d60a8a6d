//! One master, with a connection for each kind of call.

use std::{collections::HashMap, sync::Arc};

use redis::{Pipeline, Value};
use tokio::{
    runtime::{Handle, Id},
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use super::{
    config::RedisConfig,
    connection::Opened,
    link::{Failure, Link},
    url::Address,
};
use crate::store::StoreError;

/// Which connection of a master a call takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The shared one.
    Calls,
    /// For scans: their answers are large, and nothing else waits behind them.
    Scans,
    /// For commits that replicas must confirm.
    Confirmed,
}

/// A master that was named once. Whether it still is one, [`super::masters`]
/// knows.
pub(super) struct Node {
    pub(super) address: Address,
    calls: Link,
    /// The same for calls on other runtimes.
    near: HashMap<Id, Link>,
    scans: Link,
    replicated: Option<Replicated>,
}

/// Where commits run if replicas must confirm them.
///
/// WAIT covers the writes of its own connection and blocks it. On the shared
/// connection it would hold all reads up, hence one of its own; and a commit is
/// sent only after the one before has its answer, hence the semaphore: a commit
/// that finds no time before its deadline is then not sent at all.
struct Replicated {
    link: Link,
    turn: Semaphore,
}

impl Node {
    /// Keeps connections open from now on; one may be open already.
    pub(super) fn start(
        config: &Arc<RedisConfig>,
        address: Address,
        first: Option<Opened>,
    ) -> Self {
        let home = config.home();
        let link_on = |runtime: &Handle, first| {
            Link::start(Arc::clone(config), address.clone(), first, runtime)
        };
        let link = |first| link_on(&home, first);
        let replicated = match config.min_replicas {
            0 => None,
            _ => Some(Replicated { link: link(None), turn: Semaphore::new(1) }),
        };
        let near = config.runtimes.iter().map(|there| (there.id(), link_on(there, None)));
        Self { near: near.collect(), calls: link(first), scans: link(None), replicated, address }
    }

    /// The connection for a kind of calls, and the turn on it, if calls take
    /// turns: it is to be held until the call has its answer.
    pub(super) async fn link(
        &self,
        lane: Lane,
        deadline: Instant,
    ) -> Result<(&Link, Option<SemaphorePermit<'_>>), Failure> {
        match (lane, &self.replicated) {
            (Lane::Scans, _) => Ok((&self.scans, None)),
            (Lane::Confirmed, Some(Replicated { link, turn })) => {
                let late = StoreError::Unavailable("too many commits wait for replicas");
                match timeout_at(deadline, turn.acquire()).await {
                    Ok(Ok(turn)) => Ok((link, Some(turn))),
                    _ => Err(Failure::Store(late)),
                }
            }
            _ => Ok((self.near().unwrap_or(&self.calls), None)),
        }
    }

    /// The connection on this very runtime, if it is up.
    fn near(&self) -> Option<&Link> {
        if self.near.is_empty() {
            return None;
        }
        let here = Handle::try_current().ok()?;
        self.near.get(&here.id()).filter(|link| link.is_up())
    }

    /// Sends commands that may be carried out twice to this node, whatever became
    /// of it; once more if the connection broke.
    pub(super) async fn ask(
        &self,
        lane: Lane,
        commands: &Pipeline,
        deadline: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let (link, _turn) = self.link(lane, deadline).await?;
        match link.send(commands, 0, deadline).await {
            Err(Failure::Lost(_)) => link.send(commands, 0, deadline).await,
            other => other,
        }
    }

    /// The lanes that there are.
    pub(super) fn lanes(&self) -> impl Iterator<Item = Lane> {
        let confirmed = self.replicated.as_ref().map(|_| Lane::Confirmed);
        [Lane::Calls, Lane::Scans].into_iter().chain(confirmed)
    }

    /// Opens no more connections. Calls under way go on.
    pub(super) fn retire(&self) {
        self.calls.retire();
        self.near.values().for_each(Link::retire);
        self.scans.retire();
        if let Some(Replicated { link, .. }) = &self.replicated {
            link.retire();
        }
    }
}
