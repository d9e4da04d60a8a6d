//! One master, with a connection for each kind of call.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::{
    runtime::{Handle, Id},
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use super::{
    config::RedisConfig,
    connection::Opened,
    link::{Failure, Link, Part},
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
    /// Keeps connections open from now on, on `home` unless they are another runtime's;
    /// one may be open already.
    pub(super) fn start(
        config: &Arc<RedisConfig>,
        home: &Handle,
        address: Address,
        first: Option<Opened>,
    ) -> Self {
        let link_on = |first, on: (&Handle, Part)| {
            Link::start(Arc::clone(config), address.clone(), first, on)
        };
        let link = |first| link_on(first, (home, Part::Main));
        let replicated = match config.min_replicas {
            0 => None,
            _ => Some(Replicated { link: link(None), turn: Semaphore::new(1) }),
        };
        // First: the others must be younger.
        let calls = link(first);
        let near = config.runtimes.iter();
        let near = near.map(|there| (there.id(), link_on(None, (there, Part::Near)))).collect();
        Self { calls, near, scans: link(None), replicated, address }
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

    /// The connection on this very runtime, if it is up, and younger than the main
    /// one. That is given up when it turns out to lead to no master, and opened anew
    /// to whatever the address leads to then: this one must not go on with what was.
    fn near(&self) -> Option<&Link> {
        if self.near.is_empty() {
            return None;
        }
        let link = self.near.get(&Handle::try_current().ok()?.id())?;
        let ((begun, _), (_, main)) = (link.up()?, self.calls.up()?);
        if begun < main {
            link.give_up();
            return None;
        }
        Some(link)
    }

    /// Sends a command by each connection of other runtimes that is up: one that
    /// leads to no master, or nowhere, is replaced then. So is none idle for long.
    pub(super) async fn try_near(&self, command: &Pipeline, deadline: Instant) {
        let up = self.near.values().filter(|link| link.up().is_some());
        join_all(up.map(|link| link.send(command, 0, deadline))).await;
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
