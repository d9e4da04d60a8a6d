//! Asks sentinels, or nodes of a cluster, who is master.
//!
//! Whoever was cut off from the others still tells what was. So several are
//! asked, and the one that knows of the latest epoch is believed: each failover
//! and each move of a slot begins one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::time::{Instant, sleep, timeout};

use super::{
    config::RedisConfig,
    connection::{Login, Opened, StartError, dial},
    masters::Shared,
    slots::{LAST, Run},
    url::{Address, Place},
};

/// Pause between two rounds. A master that no longer is one, and does not know
/// it yet, is asked no longer than this and a round take.
const EVERY: Duration = Duration::from_millis(500);

/// The same if calls have met a change.
const AT_LEAST: Duration = Duration::from_millis(50);

/// Nodes of a cluster asked in a round.
const AT_ONCE: usize = 5;

/// How long only those who know of an earlier epoch must have answered to be
/// believed: sentinels that were set up anew begin at the first.
const BELIEVED: Duration = Duration::from_secs(10);

/// Who is master of what, by one who was asked.
struct Layout {
    epoch: u64,
    runs: Vec<Run<Address>>,
}

/// Who are asked, and what is known.
pub(super) struct Lookout {
    config: Arc<RedisConfig>,
    seeds: Vec<Address>,
    /// Connections to those who answered last.
    open: HashMap<Address, Opened>,
    round: usize,
    /// Epoch of what is believed, and when it was told last.
    believed: (u64, Instant),
}

impl Lookout {
    /// `None` if nobody need be asked.
    pub(super) fn new(config: Arc<RedisConfig>) -> Option<Self> {
        let seeds = match &config.url.place {
            Place::One(_) => return None,
            Place::Sentinels(seeds, _) | Place::Cluster(seeds) => seeds.clone(),
        };
        let (open, believed) = (HashMap::new(), (0, Instant::now()));
        Some(Self { config, seeds, open, round: 0, believed })
    }

    /// The masters to begin with.
    pub(super) async fn first(&mut self) -> Result<Vec<Run<Address>>, &'static str> {
        let layout = self.look(&[]).await?;
        self.believed = (layout.epoch, Instant::now());
        Ok(layout.runs)
    }

    /// Tells of each change, for ever.
    pub(super) async fn run(mut self, masters: Arc<Shared>) {
        let mut told = None;
        loop {
            if timeout(EVERY, masters.changed.notified()).await.is_ok() {
                sleep(AT_LEAST).await;
            }
            masters.leave_aside();
            match self.look(&masters.addresses()).await {
                Ok(layout) => {
                    told = None;
                    if self.believes(layout.epoch) {
                        masters.follow(layout.runs);
                    }
                    masters.rounds.send_modify(|rounds| *rounds += 1);
                }
                Err(why) if told == Some(why) => {}
                Err(why) => {
                    tracing::warn!("changes of the masters of Redis are not seen: {why}");
                    told = Some(why);
                }
            }
        }
    }

    /// Asks once around. Of what is told, the latest.
    async fn look(&mut self, masters: &[Address]) -> Result<Layout, &'static str> {
        let peers = self.peers(masters);
        let asks: Vec<_> = peers
            .into_iter()
            .map(|peer| {
                let open = self.open.remove(&peer);
                ask(&self.config, peer, open)
            })
            .collect();
        let (mut latest, mut why) = (None::<Layout>, "nobody to ask");
        // Connections to others than these are not used again.
        self.open.clear();
        for (peer, found) in join_all(asks).await {
            match found {
                Ok((open, layout)) => {
                    self.open.insert(peer, open);
                    if latest.as_ref().is_none_or(|latest| latest.epoch < layout.epoch) {
                        latest = Some(layout);
                    }
                }
                Err(error) => why = error,
            }
        }
        latest.ok_or(why)
    }

    /// Whom to ask: all sentinels; of a cluster, some, and others each time.
    fn peers(&mut self, masters: &[Address]) -> Vec<Address> {
        let mut peers = self.seeds.clone();
        if matches!(self.config.url.place, Place::Sentinels(..)) {
            return peers;
        }
        peers.extend(masters.iter().filter(|master| !self.seeds.contains(master)).cloned());
        let (count, start) = (peers.len().max(1), self.round);
        self.round = (start + AT_ONCE) % count;
        peers.into_iter().cycle().skip(start).take(count.min(AT_ONCE)).collect()
    }

    fn believes(&mut self, epoch: u64) -> bool {
        let (known, since) = self.believed;
        let believes = epoch >= known || since.elapsed() > BELIEVED;
        if believes {
            self.believed = (epoch, Instant::now());
        }
        believes
    }
}

type Asked = (Address, Result<(Opened, Layout), &'static str>);

/// Asks one, on the connection that is open or a new one.
async fn ask(config: &RedisConfig, peer: Address, open: Option<Opened>) -> Asked {
    let answer = async {
        let (login, commands) = match &config.url.place {
            Place::Sentinels(_, name) => (Login::Sentinel, ask_sentinel(name)),
            _ => (Login::Redis, ask_node()),
        };
        if let Some(mut open) = open
            && let Some(replies) = exchange(config, &mut open, &commands).await
        {
            return Ok((open, replies));
        }
        let dialling = dial(config, &peer, login);
        let mut open = match timeout(config.connect_timeout, dialling).await {
            Ok(Ok(open)) => open,
            Ok(Err(StartError::Denied(_))) => return Err("access denied"),
            Ok(Err(StartError::Tls(why))) => return Err(why),
            _ => return Err("cannot be reached"),
        };
        let replies = exchange(config, &mut open, &commands).await.ok_or("does not answer")?;
        Ok((open, replies))
    };
    let layout = match answer.await {
        Err(why) => Err(why),
        Ok((open, replies)) => match &config.url.place {
            Place::Sentinels(..) => sentinel_answer(replies),
            _ => node_answer(replies, &peer),
        }
        .map(|layout| (open, layout)),
    };
    (peer, layout)
}

async fn exchange(
    config: &RedisConfig,
    open: &mut Opened,
    commands: &Pipeline,
) -> Option<Vec<Value>> {
    let sent = open.commands.send_packed_commands(commands, 0, commands.len());
    timeout(config.response_timeout, sent).await.ok()?.ok()
}

fn ask_sentinel(name: &str) -> Pipeline {
    let mut commands = Pipeline::new();
    commands.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    commands.cmd("SENTINEL").arg("MASTER").arg(name);
    commands
}

/// The first names the new master as soon as a failover has made it one, which
/// the second does at its end; both with the epoch of that failover.
fn sentinel_answer(replies: Vec<Value>) -> Result<Layout, &'static str> {
    let Ok([address, state]) = <[Value; 2]>::try_from(replies) else {
        return Err("an answer of a sentinel was not understood");
    };
    let (host, port) = match address {
        Value::Array(parts) => match <[Value; 2]>::try_from(parts) {
            Ok([host, port]) => (text(host), text(port)),
            Err(_) => (None, None),
        },
        Value::Nil => return Err("a sentinel does not know the master's name"),
        Value::ServerError(error) if matches!(error.code(), "NOPERM" | "NOAUTH") => {
            return Err("access denied");
        }
        Value::ServerError(_) => return Err("it is no sentinel"),
        _ => (None, None),
    };
    let master = host
        .zip(port.and_then(|port| port.parse().ok()))
        .map(|(host, port)| Address { host, port })
        .ok_or("an answer of a sentinel was not understood")?;
    let epoch = match state {
        Value::Array(fields) => {
            let mut fields = fields.into_iter().map(text);
            fields.find(|field| field.as_deref() == Some("config-epoch"));
            fields.next().flatten().and_then(|epoch| epoch.parse().ok())
        }
        Value::ServerError(error) if error.code() == "NOPERM" => return Err("access denied"),
        _ => None,
    };
    let epoch = epoch.ok_or("an answer of a sentinel was not understood")?;
    Ok(Layout { epoch, runs: vec![Run { from: 0, to: LAST, master }] })
}

fn ask_node() -> Pipeline {
    let mut commands = Pipeline::new();
    commands.cmd("CLUSTER").arg("INFO");
    commands.cmd("CLUSTER").arg("SLOTS");
    commands
}

fn node_answer(replies: Vec<Value>, asked: &Address) -> Result<Layout, &'static str> {
    let Ok([info, slots]) = <[Value; 2]>::try_from(replies) else { return Err(NO_NODE_SAYS_SO) };
    for reply in [&info, &slots] {
        match reply {
            Value::ServerError(error) if matches!(error.code(), "NOPERM" | "NOAUTH") => {
                return Err("access denied");
            }
            Value::ServerError(_) => return Err("it is no node of a cluster"),
            _ => {}
        }
    }
    let epoch = text(info)
        .and_then(|info| {
            info.lines().find_map(|l| l.strip_prefix("cluster_current_epoch:")?.parse().ok())
        })
        .ok_or(NO_NODE_SAYS_SO)?;
    let Value::Array(slots) = slots else { return Err(NO_NODE_SAYS_SO) };
    let mut runs = slots
        .into_iter()
        .map(|entry| run(entry, asked))
        .collect::<Option<Vec<_>>>()
        .ok_or(NO_NODE_SAYS_SO)?;
    if runs.is_empty() {
        return Err("a node knows of no slots");
    }
    runs.sort_by_key(|run| run.from);
    Ok(Layout { epoch, runs })
}

const NO_NODE_SAYS_SO: &str = "an answer of a cluster node was not understood";

/// Reads first slot, last slot, and of the nodes after them the first, which is
/// the master: host, port, and more. Without a host it is that of the node asked.
fn run(entry: Value, asked: &Address) -> Option<Run<Address>> {
    let Value::Array(entry) = entry else { return None };
    let mut entry = entry.into_iter();
    let (Value::Int(from), Value::Int(to)) = (entry.next()?, entry.next()?) else { return None };
    let Value::Array(master) = entry.next()? else { return None };
    let mut master = master.into_iter();
    let host = match master.next()? {
        Value::Nil => asked.host.clone(),
        host => text(host).filter(|host| !host.is_empty()).unwrap_or_else(|| asked.host.clone()),
    };
    let Value::Int(port) = master.next()? else { return None };
    let (from, to) = (u16::try_from(from).ok()?, u16::try_from(to).ok()?);
    let port = u16::try_from(port).ok()?;
    (from <= to && to <= LAST).then_some(Run { from, to, master: Address { host, port } })
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail loudly")]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.into(), port }
    }

    #[test]
    fn answers_of_sentinels_are_read() {
        let address = || Value::Array(vec![bulk("10.0.0.7"), bulk("6380")]);
        let state = |name| Value::Array(["name", "m", name, "12"].map(bulk).to_vec());
        let layout = sentinel_answer(vec![address(), state("config-epoch")]).ok().unwrap();
        assert_eq!(layout.epoch, 12);
        assert_eq!(layout.runs[0].master, at("10.0.0.7", 6380));
        for bad in [
            vec![],
            vec![address()],
            vec![address(), state("other")],
            vec![address(), Value::Nil],
            vec![Value::Nil, state("config-epoch")],
            vec![Value::Array(vec![bulk("h"), bulk("65536")]), state("config-epoch")],
            vec![Value::Array(vec![bulk("h")]), state("config-epoch")],
        ] {
            assert!(sentinel_answer(bad).is_err());
        }
    }

    #[test]
    fn answers_of_nodes_are_read() {
        let info = || bulk("cluster_state:ok\r\ncluster_current_epoch:7\r\ncluster_size:3\r\n");
        let entry = |from, to, host: Value, port| {
            let master = Value::Array(vec![host, Value::Int(port), bulk("id")]);
            Value::Array(vec![Value::Int(from), Value::Int(to), master])
        };
        let answer = |entries: Vec<Value>| {
            node_answer(vec![info(), Value::Array(entries)], &at("asked", 1)).map(|layout| {
                let runs = layout.runs.into_iter().map(|run| (run.from, run.to, run.master));
                (layout.epoch, runs.collect::<Vec<_>>())
            })
        };
        let told = answer(vec![
            entry(8_192, 16_383, Value::Nil, 2),
            entry(0, 100, bulk("a"), 1),
            entry(101, 8_191, bulk(""), 3),
        ]);
        let runs = vec![
            (0, 100, at("a", 1)),
            (101, 8_191, at("asked", 3)),
            (8_192, 16_383, at("asked", 2)),
        ];
        assert_eq!(told, Ok((7, runs)));
        assert!(answer(vec![]).is_err());
        for (from, to, port) in [(1, 0, 1), (0, 16_384, 1), (-1, 5, 1), (0, 5, 65_536)] {
            assert!(answer(vec![entry(from, to, bulk("a"), port)]).is_err(), "{from} {to} {port}");
        }
        assert!(node_answer(vec![bulk(""), Value::Array(vec![])], &at("asked", 1)).is_err());
    }
}
