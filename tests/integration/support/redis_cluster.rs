//! A Redis Cluster of real processes of the test's own, ended by their pids.

use std::time::Duration;

use futures_util::future::join_all;
use redis::Commands as _;

use super::{
    platform::free_address,
    redis_server::{Options, RedisServer, until_within},
};

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) struct RedisCluster {
    /// Three masters, each with a third of the slots, then their replicas, if
    /// there are any, in the same order.
    pub(crate) nodes: Vec<RedisServer>,
}

/// The first slot of each master, and the end.
const BOUNDS: [u16; 4] = [0, 5_461, 10_923, 16_384];

/// Options of a node.
fn node(options: Options) -> Options {
    options
        .set("cluster-enabled", &["yes"])
        .set("cluster-port", &[&free_address().port().to_string()])
        // Short, and yet long enough for a busy machine.
        .set("cluster-node-timeout", &["2500"])
        .set("cluster-require-full-coverage", &["no"])
        .set("cluster-replica-validity-factor", &["0"])
        .set("cluster-allow-replica-migration", &["no"])
}

impl RedisCluster {
    /// Three masters with a replica each.
    pub(crate) async fn six() -> Self {
        Self::start(6, Options::default()).await
    }

    /// Three masters.
    pub(crate) async fn three() -> Self {
        Self::start(3, Options::default()).await
    }

    pub(crate) async fn start(count: usize, options: Options) -> Self {
        let starts = (0..count).map(|_| RedisServer::start(node(options.clone())));
        let nodes = join_all(starts).await;
        for (at, node) in nodes.iter().enumerate() {
            node.expect(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            if let (Some(from), Some(to)) = (BOUNDS.get(at), BOUNDS.get(at + 1)) {
                let (from, to) = (from.to_string(), (to - 1).to_string());
                node.expect(&["CLUSTER", "ADDSLOTSRANGE", &from, &to]);
            }
            if at > 0 {
                let [port, bus] = [node.port().to_string(), node.option("cluster-port")];
                nodes[0].expect(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
            }
        }
        let cluster = Self { nodes };
        let known = format!("cluster_known_nodes:{count}\r");
        let all = |words: &[&str]| {
            cluster.nodes.iter().all(|node| {
                let info = node.cli(&["CLUSTER", "INFO"]);
                words.iter().all(|word| info.contains(word))
            })
        };
        let complete = [known.as_str(), "cluster_state:ok", "cluster_slots_assigned:16384"];
        until_within(MINUTE, || all(&complete)).await;
        for (at, replica) in cluster.nodes.iter().enumerate().skip(3) {
            replica.expect(&["CLUSTER", "REPLICATE", &cluster.id(at - 3)]);
        }
        let replicas = || {
            cluster.nodes.iter().skip(3).all(|replica| {
                replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
            })
        };
        until_within(MINUTE, replicas).await;
        // Masters tell of their replicas only once they have heard of them, and
        // replicas vote for nobody until they know each other's places.
        let seen = || {
            cluster.nodes.iter().all(|node| {
                node.cli(&["CLUSTER", "NODES"]).matches(" connected").count() == count
                    && node.cli(&["CLUSTER", "NODES"]).matches("slave").count() == count - 3
            })
        };
        until_within(MINUTE, seen).await;
        cluster
    }

    /// One more master, which has no slots: the last of the nodes.
    pub(crate) async fn join(&mut self) {
        let joining = RedisServer::start(node(Options::default())).await;
        let count = self.nodes.len() + 1;
        joining.expect(&["CLUSTER", "SET-CONFIG-EPOCH", &count.to_string()]);
        let [port, bus] = [joining.port().to_string(), joining.option("cluster-port")];
        self.nodes[0].expect(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        self.nodes.push(joining);
        let seen = || {
            let told = self.nodes.iter().map(|node| node.cli(&["CLUSTER", "NODES"]));
            told.into_iter().all(|nodes| nodes.matches(" connected").count() == count)
                && self
                    .nodes
                    .iter()
                    .all(|n| n.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        };
        until_within(MINUTE, seen).await;
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> =
            self.nodes.iter().take(3).map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    pub(crate) fn id(&self, node: usize) -> String {
        self.nodes[node].cli(&["CLUSTER", "MYID"])
    }

    /// Workspaces whose keys the master has at first, named by it.
    pub(crate) fn workspaces(&self, master: usize, count: usize) -> Vec<String> {
        (0..)
            .map(|number| format!("ws-{master}-{number}"))
            .filter(|name| (BOUNDS[master]..BOUNDS[master + 1]).contains(&self.slot(name)))
            .take(count)
            .collect()
    }

    /// As Redis computes it.
    pub(crate) fn slot(&self, tag: &str) -> u16 {
        self.nodes[1].cli(&["CLUSTER", "KEYSLOT", tag]).parse().unwrap()
    }

    /// Waits until a node is master. Other nodes may hang.
    pub(crate) async fn promoted(&self, node: usize) {
        until_within(MINUTE, || self.nodes[node].cli(&["ROLE"]).starts_with("master")).await;
    }

    /// Begins to move a slot.
    pub(crate) fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.nodes[to].expect(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)]);
        self.nodes[from].expect(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)]);
    }

    /// Moves the keys of the slot, all of a workspace in one step.
    pub(crate) fn move_keys(&self, slot: u16, from: usize, to: usize) {
        let url = self.nodes[from].url();
        let mut source = redis::Client::open(url).unwrap().get_connection().unwrap();
        let keys: Vec<String> = redis::cmd("CLUSTER")
            .arg(&["GETKEYSINSLOT", &slot.to_string(), "1000"])
            .query(&mut source)
            .unwrap();
        if !keys.is_empty() {
            self.move_some(&keys, from, to);
            let left: bool = source.exists(&keys[0]).unwrap_or(false);
            assert!(!left);
        }
    }

    /// Moves these keys, which are there.
    pub(crate) fn move_some(&self, keys: &[String], from: usize, to: usize) {
        let url = self.nodes[from].url();
        let mut source = redis::Client::open(url).unwrap().get_connection().unwrap();
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(self.nodes[to].port()).arg("").arg(0).arg(5_000);
        let () = migrate.arg("KEYS").arg(keys).query(&mut source).unwrap();
    }

    /// Ends the move on all masters.
    pub(crate) fn end_move(&self, slot: u16, to: usize) {
        let (slot, id) = (slot.to_string(), self.id(to));
        for node in [to].into_iter().chain((0..3).filter(|node| *node != to)) {
            self.nodes[node].expect(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        }
    }
}
