//! Sends calls to the master that has their keys.
//!
//! The client library's own cluster connection is not used: it opens
//! connections that nobody checks, with TLS settings read once; its redirects
//! and its repetitions after a lost connection have one limit in common, so a
//! commit could not follow the former without suffering the latter; and it
//! sends WAIT to all masters, not where the commit went. Its sentinel client
//! believes the first sentinel that answers, also one that was cut off.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{
    config::RedisConfig,
    connection::{Opened, StartError, open},
    link::{Failure, Refused, jitter},
    lookout::Lookout,
    node::{Lane, Node},
    slots::{LAST, Map, Run},
    url::{Address, Place},
};
use crate::store::StoreError;

/// First and longest pause before a refused command is sent again.
pub(super) const PAUSES: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(100));

/// Redirections that are followed without a pause.
const AT_ONCE: u32 = 2;

/// How long a node is kept that was named by a redirection only.
const ASIDE: Duration = Duration::from_secs(10);

/// All masters, and the task that keeps up with changes of them.
pub(super) struct Masters {
    shared: Arc<Shared>,
    lookout: Option<AbortHandle>,
}

pub(super) struct Shared {
    config: Arc<RedisConfig>,
    /// The runtime that connected: a call on another may be what names a node.
    home: Handle,
    map: ArcSwap<Map>,
    /// Nodes that redirections named and the map did not.
    aside: Mutex<HashMap<Address, (Arc<Node>, Instant)>>,
    /// Wakes the lookout: what it told is out of date.
    pub(super) changed: Notify,
    /// Rounds of the lookout that are done.
    pub(super) rounds: watch::Sender<u64>,
}

impl Masters {
    /// Finds the masters and checks them. Of a cluster, one must fit, and each
    /// that does not must be out of reach: its keys are unavailable until it is
    /// back. Also tells whether all have an append-only file.
    pub(super) async fn connect(config: Arc<RedisConfig>) -> Result<(Self, bool), StartError> {
        let mut lookout = Lookout::new(Arc::clone(&config));
        let told = match (&config.url.place, &mut lookout) {
            (Place::One(address), _) => {
                vec![Run { from: 0, to: LAST, master: address.clone() }]
            }
            (_, Some(lookout)) => lookout.first().await.map_err(StartError::NoMaster)?,
            (_, None) => return Err(StartError::NoMaster("nobody to ask")),
        };
        let mut addresses: Vec<_> = told.iter().map(|run| &run.master).collect();
        addresses.sort_by_key(|address| address.to_string());
        addresses.dedup();
        let opened = join_all(addresses.iter().map(|address| open(&config, address))).await;
        let durable = opened.iter().flatten().all(|opened| opened.durable);
        let mut first = usable(&config, &addresses, opened)?;
        let (mut nodes, home) = (HashMap::new(), Handle::current());
        let runs = told.into_iter().map(|Run { from, to, master }| {
            let node = nodes.entry(master).or_insert_with_key(|address| {
                Arc::new(Node::start(&config, &home, address.clone(), first.remove(address)))
            });
            Run { from, to, master: Arc::clone(node) }
        });
        let map = ArcSwap::from_pointee(Map::new(runs.collect()));
        let (aside, changed, rounds) = (Mutex::default(), Notify::new(), watch::Sender::new(0));
        let shared = Arc::new(Shared { config, home, map, aside, changed, rounds });
        let lookout =
            lookout.map(|lookout| tokio::spawn(lookout.run(Arc::clone(&shared))).abort_handle());
        Ok((Self { shared, lookout }, durable))
    }

    /// The masters as they were last told.
    pub(super) fn map(&self) -> Arc<Map> {
        self.shared.map.load_full()
    }

    /// The same of a cluster, told after this call began.
    pub(super) async fn map_of_now(&self, deadline: Instant) -> Result<Arc<Map>, StoreError> {
        if self.shared.config.url.is_cluster() {
            let mut rounds = self.shared.rounds.subscribe();
            // The next may have begun already.
            for _ in 0..2 {
                self.shared.changed.notify_one();
                timeout_at(deadline, rounds.changed())
                    .await
                    .map_err(|_| StoreError::Unavailable("the masters of Redis are not known"))?
                    .map_err(|_| StoreError::Unavailable("the masters of Redis are not known"))?;
            }
        }
        Ok(self.map())
    }

    /// Wakes the lookout: what it told is out of date.
    pub(super) fn look_again(&self) {
        self.shared.changed.notify_one();
    }

    /// A node that a redirection names.
    pub(super) fn aside(&self, address: &Address) -> Arc<Node> {
        self.shared.aside(address)
    }

    /// Sends commands to the master of a slot, again and elsewhere while the
    /// answer proves that nothing has run, until the deadline. Those that may be
    /// carried out twice are sent once more if the connection broke.
    pub(super) async fn send(
        &self,
        slot: u16,
        (lane, repeatable): (Lane, bool),
        deadline: Instant,
        commands: impl Fn(&mut Pipeline) + Send + Sync,
    ) -> Result<Vec<Value>, Failure> {
        let (mut redirected, mut lost, mut refusals) = (None, false, 0_u32);
        let (mut pause, longest) = PAUSES;
        loop {
            let refused = match redirected.take().or_else(|| self.owner(slot)) {
                None => Refused::Later("no node of Redis has the slot"),
                Some((node, asking)) => {
                    let (link, _turn) = node.link(lane, deadline).await?;
                    let mut pipeline = Pipeline::new();
                    if asking {
                        pipeline.cmd("ASKING");
                    }
                    // Only now: how long they may wait is what the turn has left.
                    commands(&mut pipeline);
                    match pin!(link.send(&pipeline, usize::from(asking), deadline)).await {
                        Err(Failure::Refused(refused)) => refused,
                        Err(Failure::Lost(_)) if repeatable && !lost => {
                            lost = true;
                            continue;
                        }
                        other => return other,
                    }
                }
            };
            refusals = refusals.saturating_add(1);
            let mut at_once = refusals <= AT_ONCE;
            match &refused {
                Refused::Moved(to) => {
                    self.shared.changed.notify_one();
                    redirected = Some((self.shared.aside(to), false));
                }
                Refused::Ask(to) => redirected = Some((self.shared.aside(to), true)),
                Refused::Later(_) => {
                    self.shared.changed.notify_one();
                    at_once = false;
                }
            }
            if at_once {
                continue;
            }
            if Instant::now() + pause >= deadline {
                return Err(Failure::Refused(refused));
            }
            sleep(jitter(pause)).await;
            pause = longest.min(pause * 2);
        }
    }

    fn owner(&self, slot: u16) -> Option<(Arc<Node>, bool)> {
        let map = self.shared.map.load();
        let (node, _) = map.owner(slot)?;
        Some((Arc::clone(node), false))
    }
}

impl Drop for Masters {
    fn drop(&mut self) {
        if let Some(lookout) = &self.lookout {
            lookout.abort();
        }
    }
}

/// The connections that were opened, unless one was refused for what the
/// server is, or all failed.
fn usable(
    config: &RedisConfig,
    addresses: &[&Address],
    opened: Vec<Result<Opened, StartError>>,
) -> Result<HashMap<Address, Opened>, StartError> {
    let several = config.url.is_cluster();
    let mut usable = HashMap::new();
    let mut failed = None;
    for (address, opened) in addresses.iter().zip(opened) {
        match opened {
            Ok(opened) => {
                usable.insert((*address).clone(), opened);
            }
            Err(error) => {
                let away = matches!(error, StartError::Unreachable(_) | StartError::NotWritable(_));
                tracing::warn!(%error, node = %address, "no connection to Redis");
                if !(several && away) {
                    return Err(error);
                }
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if usable.is_empty() => Err(error),
        _ => Ok(usable),
    }
}

impl Shared {
    /// Sends calls to these masters from now on.
    pub(super) fn follow(&self, told: Vec<Run<Address>>) {
        let old = self.map.load_full();
        if old.is(&told) {
            return;
        }
        let mut nodes: HashMap<_, _> = old
            .masters()
            .into_iter()
            .map(|node| (node.address.clone(), Arc::clone(node)))
            .collect();
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        let mut runs = Vec::new();
        for Run { from, to, master } in told {
            if let Some((node, _)) = aside.remove(&master) {
                nodes.insert(master.clone(), node);
            }
            let node = nodes.entry(master).or_insert_with_key(|at| Arc::new(self.node(at)));
            runs.push(Run { from, to, master: Arc::clone(node) });
        }
        let new = Map::new(runs);
        let masters = new.masters();
        let names: Vec<_> = masters.iter().map(|node| node.address.to_string()).collect();
        tracing::info!(masters = names.join(" "), "other masters of Redis");
        let gone = |node: &&Arc<Node>| masters.iter().all(|kept| kept.address != node.address);
        // Their calls under way end by themselves; those that wait go on to the
        // new ones.
        let retired: Vec<_> = old.masters().into_iter().filter(gone).cloned().collect();
        self.map.store(Arc::new(new));
        retired.iter().for_each(|node| node.retire());
    }

    /// Closes connections to nodes that no redirection has named for a while.
    pub(super) fn leave_aside(&self) {
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        aside.retain(|_, (_, named)| named.elapsed() < ASIDE);
    }

    fn node(&self, address: &Address) -> Node {
        Node::start(&self.config, &self.home, address.clone(), None)
    }

    /// A node that a redirection names.
    fn aside(&self, address: &Address) -> Arc<Node> {
        let map = self.map.load();
        if let Some(node) = map.masters().into_iter().find(|node| node.address == *address) {
            return Arc::clone(node);
        }
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        let (node, named) = aside
            .entry(address.clone())
            .or_insert_with_key(|address| (Arc::new(self.node(address)), Instant::now()));
        *named = Instant::now();
        Arc::clone(node)
    }

    /// Addresses of the masters.
    pub(super) fn addresses(&self) -> Vec<Address> {
        self.map.load().masters().into_iter().map(|node| node.address.clone()).collect()
    }
}
