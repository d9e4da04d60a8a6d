//! All keys of slots of a cluster.
//!
//! SCAN walks through one node. While a slot moves, its keys are on two, and what
//! moves behind the back of a walk is found by neither. So a node is asked for
//! all keys of a slot at once, and in the same breath for a key of the slot that
//! is never there: its answer tells whether the node has the slot alone, who else
//! has keys of it, or who has the slot now.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};
use tokio::time::{Instant, sleep};

use super::{
    NOT_UNDERSTOOD, RedisStore,
    link::{Failure, Refused, classify, jitter},
    masters::PAUSES,
    node::{Lane, Node},
    url::Address,
};
use crate::store::StoreError;

/// Most keys of one slot: about 100 MB of answer.
const MOST: usize = 1_000_000;

/// After tries until the deadline.
const MOVES: StoreError = StoreError::Unavailable("a slot of Redis is being moved: run this again");

/// Keys removed in one round trip.
const UNLINK: usize = 100;

/// Looks for requests that may find some.
const LOOKS: usize = 5;

/// What a node has of a slot.
struct Part {
    /// Ours.
    keys: Vec<String>,
    /// With those of others.
    count: usize,
    stand: Stand,
}

/// Keys of slots from one on.
pub(super) struct Found {
    pub(super) keys: Vec<String>,
    /// With those of others.
    pub(super) count: usize,
    /// The last slot.
    pub(super) to: u16,
}

/// How a slot stands, as a node says.
#[derive(PartialEq, Eq)]
enum Stand {
    /// It has all keys of the slot.
    Whole,
    /// It has the slot, and keys of it go there.
    Leaves(Address),
    /// It does not have the slot.
    Elsewhere(Address),
    /// It cannot tell now.
    Unknown,
}

/// What was found out of a slot.
enum Look {
    /// All its keys.
    Whole(Vec<String>),
    /// Another has it.
    Elsewhere(Address),
    /// To be looked at again.
    Unsettled,
}

/// When a slot that does not stand still is looked at again.
struct Patience {
    deadline: Instant,
    pause: std::time::Duration,
}

impl Patience {
    /// False when there is no time left.
    async fn again(&mut self) -> bool {
        if Instant::now() + self.pause >= self.deadline {
            return false;
        }
        sleep(jitter(self.pause)).await;
        self.pause = PAUSES.1.min(self.pause * 2);
        true
    }
}

impl RedisStore {
    fn patience(&self) -> Patience {
        Patience { deadline: self.deadline(), pause: PAUSES.0 }
    }

    /// All keys of at most `most` slots from this one on.
    pub(super) async fn keys_of_slots(&self, from: u16, most: u16) -> Result<Found, StoreError> {
        let mut patience = self.patience();
        let (parts, to) = loop {
            let map = self.masters.map();
            let none = StoreError::Unavailable("no node of Redis has the slot");
            let (node, end) = map.owner(from).ok_or(none)?;
            let to = end.min(from.saturating_add(most.saturating_sub(1)));
            let slots: Vec<_> = (from..=to).collect();
            match self.parts(node, &slots, false, patience.deadline).await {
                Ok(parts) => break (parts, to),
                Err(failure @ Failure::Refused(_)) => {
                    self.masters.look_again();
                    if !patience.again().await {
                        return Err(failure.into());
                    }
                }
                Err(failure) => return Err(failure.into()),
            }
        };
        let mut found = Found { keys: Vec::new(), count: 0, to };
        for (part, slot) in parts.into_iter().zip(from..=to) {
            found.count += part.count;
            found.keys.extend(match part.stand {
                Stand::Whole => part.keys,
                _ => self.keys_of_slot(slot).await?,
            });
        }
        Ok(found)
    }

    /// All keys of a slot, wherever they are.
    async fn keys_of_slot(&self, slot: u16) -> Result<Vec<String>, StoreError> {
        let mut patience = self.patience();
        let mut named = None;
        loop {
            let owner = || self.masters.map().owner(slot).map(|(node, _)| Arc::clone(node));
            let look = match named.take().or_else(owner) {
                None => Look::Unsettled,
                Some(node) => match self.look(&node, slot, patience.deadline).await {
                    Err(Failure::Refused(_)) => Look::Unsettled,
                    look => look?,
                },
            };
            match look {
                Look::Whole(mut keys) => {
                    keys.sort_unstable();
                    keys.dedup();
                    return Ok(keys);
                }
                Look::Elsewhere(address) => named = Some(self.masters.aside(&address)),
                Look::Unsettled => {}
            }
            self.masters.look_again();
            if !patience.again().await {
                return Err(MOVES);
            }
        }
    }

    /// Looks at a slot where it is, and, if it is on its way, then where it goes:
    /// a key that the one no longer had is there by then. Unless it came back
    /// meanwhile, so the one is asked once more.
    async fn look(&self, node: &Node, slot: u16, deadline: Instant) -> Result<Look, Failure> {
        let part = self.part(node, slot, false, deadline).await?;
        let to = match part.stand {
            Stand::Whole => return Ok(Look::Whole(part.keys)),
            Stand::Elsewhere(address) => return Ok(Look::Elsewhere(address)),
            Stand::Unknown => return Ok(Look::Unsettled),
            Stand::Leaves(to) => to,
        };
        let there = self.part(&self.masters.aside(&to), slot, true, deadline).await?;
        let after = self.part(node, slot, false, deadline).await?;
        let steady = match after.stand {
            Stand::Leaves(still) | Stand::Elsewhere(still) => still == to,
            Stand::Whole | Stand::Unknown => false,
        };
        Ok(match there.stand {
            Stand::Whole if steady => Look::Whole([part.keys, there.keys].concat()),
            _ => Look::Unsettled,
        })
    }

    async fn part(
        &self,
        node: &Node,
        slot: u16,
        asking: bool,
        deadline: Instant,
    ) -> Result<Part, Failure> {
        let parts = self.parts(node, &[slot], asking, deadline).await?;
        parts.into_iter().next().ok_or(Failure::Store(NOT_UNDERSTOOD))
    }

    /// What a node has of slots; `asking`, also of those that are on their way to
    /// it.
    async fn parts(
        &self,
        node: &Node,
        slots: &[u16],
        asking: bool,
        deadline: Instant,
    ) -> Result<Vec<Part>, Failure> {
        let mut commands = Pipeline::new();
        for slot in slots {
            commands.cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(MOST);
            if asking {
                commands.cmd("ASKING");
            }
            commands.cmd("GET").arg(self.never_there(*slot).ok_or(Failure::Store(NOT_UNDERSTOOD))?);
        }
        let replies = node.ask(Lane::Scans, &commands, deadline).await?;
        let each = if asking { 3 } else { 2 };
        let head = format!("{}:", self.config.prefix);
        let ours = |key: &Value| match key {
            Value::BulkString(key) if key.starts_with(head.as_bytes()) => {
                String::from_utf8(key.clone()).ok()
            }
            _ => None,
        };
        let parts = replies.chunks(each).map(|replies| match replies {
            [Value::Array(keys), .., stand] => {
                let count = keys.len();
                if count >= MOST {
                    let many = "a slot of Redis has too many keys to be listed";
                    return Err(Failure::Store(StoreError::Unavailable(many)));
                }
                let keys = keys.iter().filter_map(ours).collect();
                Ok(Part { keys, count, stand: stand_of(stand, &node.address)? })
            }
            [Value::ServerError(error), ..] => Err(classify(error, &node.address)),
            _ => Err(Failure::Store(NOT_UNDERSTOOD)),
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        match parts.len() == slots.len() {
            true => Ok(parts),
            false => Err(Failure::Store(NOT_UNDERSTOOD)),
        }
    }

    /// Removes the keys of a slot that start so, of which no more are made.
    pub(super) async fn unlink_all(&self, slot: u16, start: &str) -> Result<(), StoreError> {
        for _ in 0..LOOKS {
            let mut keys = self.keys_of_slot(slot).await?;
            keys.retain(|key| key.starts_with(start));
            if keys.is_empty() {
                return Ok(());
            }
            for keys in keys.chunks(UNLINK) {
                let unlink = |key| {
                    let mut command = redis::cmd("UNLINK");
                    command.arg(key);
                    command
                };
                let commands: Vec<Cmd> = keys.iter().map(unlink).collect();
                let all = |pipeline: &mut Pipeline| {
                    for command in &commands {
                        pipeline.add_command(command.clone());
                    }
                };
                let replies = self.ask_all(slot, Lane::Scans, all).await?;
                for (reply, command) in replies.into_iter().zip(commands) {
                    // On another node than the first of them.
                    if matches!(reply, Value::ServerError(_)) {
                        self.ask(slot, Lane::Scans, command).await?;
                    }
                }
            }
        }
        Err(MOVES)
    }
}

fn stand_of(reply: &Value, asked: &Address) -> Result<Stand, Failure> {
    match reply {
        Value::Nil | Value::BulkString(_) => Ok(Stand::Whole),
        Value::ServerError(error) => match classify(error, asked) {
            Failure::Refused(Refused::Ask(to)) => Ok(Stand::Leaves(to)),
            Failure::Refused(Refused::Moved(to)) => Ok(Stand::Elsewhere(to)),
            Failure::Refused(Refused::Later(_)) => Ok(Stand::Unknown),
            failure => Err(failure),
        },
        _ => Err(Failure::Store(NOT_UNDERSTOOD)),
    }
}
