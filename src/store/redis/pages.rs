//! Walks through all keys: of one master with SCAN, of a cluster slot after slot,
//! see [`super::whole_slots`].
//!
//! A cursor of SCAN means something to the process that gave it and to no
//! other. So each step also asks which process answers, and a walk that met a
//! change starts again.

use redis::{Pipeline, Value};

use super::{
    NOT_UNDERSTOOD, RedisStore,
    node::Lane,
    slots::{LAST, slot},
    text,
    whole_slots::Found,
};
use crate::{
    domain::WorkspaceId,
    store::{StoreError, WorkspacesCursor},
};

/// Keys that one step of SCAN looks at.
const COUNT: usize = 1_000;

/// Slots looked at in the first step, and at most in one.
const SLOTS: (u16, u16) = (64, 512);

/// Keys in a step, ours or not, above which the next one looks at fewer slots, and
/// below which it looks at more.
const KEYS: (usize, usize) = (4_000, 1_000);

/// Changes of master during which remembered requests are forgotten.
const RESTARTS: usize = 5;

const NO_CURSOR: StoreError = StoreError::Malformed("cursor of a listing");

/// Where the walk through one master goes on.
struct Walk {
    cursor: String,
    /// The process that gave the cursor; empty before the first step.
    process: String,
}

impl Walk {
    fn start() -> Self {
        Self { cursor: "0".to_owned(), process: String::new() }
    }

    fn parse(cursor: &WorkspacesCursor) -> Option<Self> {
        let (cursor, process) = cursor.0.split_once(' ')?;
        Some(Self { cursor: cursor.to_owned(), process: process.to_owned() })
    }

    fn end(self) -> WorkspacesCursor {
        WorkspacesCursor(format!("{} {}", self.cursor, self.process))
    }
}

/// What a step found.
struct Step {
    process: String,
    next: String,
    keys: Vec<String>,
}

impl RedisStore {
    /// One step through all workspaces.
    pub(super) async fn page(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        let head = format!("{}:{{", self.config.prefix);
        let tail = "}:records";
        let (keys, next) = if self.config.url.is_cluster() {
            self.page_of_slots(cursor).await?
        } else {
            self.page_of_one(cursor, &format!("{head}*{tail}")).await?
        };
        // What does not parse is not ours.
        let name = |key: &String| {
            let name = key.strip_prefix(&head)?.strip_suffix(tail)?;
            WorkspaceId::parse(name).ok()
        };
        Ok((keys.iter().filter_map(name).collect(), next))
    }

    /// The cursor names the first slot, and how many there may be.
    async fn page_of_slots(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<String>, Option<WorkspacesCursor>), StoreError> {
        let (from, most): (u16, u16) = match cursor {
            None => {
                // Who was master before knows nothing of what came since.
                self.masters.map_of_now(self.deadline()).await?;
                (0, SLOTS.0)
            }
            Some(cursor) => cursor
                .0
                .split_once(' ')
                .and_then(|(from, most)| Some((from.parse().ok()?, most.parse().ok()?)))
                .filter(|(from, most)| *from <= LAST && *most > 0)
                .ok_or(NO_CURSOR)?,
        };
        let Found { keys, count, to } = self.keys_of_slots(from, most).await?;
        let next = match count {
            many if many > KEYS.0 => (most / 2).max(1),
            few if few < KEYS.1 => most.saturating_mul(2).min(SLOTS.1),
            _ => most,
        };
        let next = (to < LAST).then(|| WorkspacesCursor(format!("{} {next}", to + 1)));
        Ok((keys, next))
    }

    async fn page_of_one(
        &self,
        cursor: Option<&WorkspacesCursor>,
        pattern: &str,
    ) -> Result<(Vec<String>, Option<WorkspacesCursor>), StoreError> {
        let walk = match cursor {
            None => Walk::start(),
            Some(cursor) => Walk::parse(cursor).ok_or(NO_CURSOR)?,
        };
        let hashes = |scan: &mut redis::Cmd| {
            scan.arg("TYPE").arg("hash");
        };
        let before = self.master();
        let step = self.step(&walk.cursor, pattern, hashes).await?;
        if before != self.master() || !(walk.process.is_empty() || walk.process == step.process) {
            return Ok((Vec::new(), Some(Walk::start().end())));
        }
        let next = Walk { cursor: step.next, process: step.process };
        Ok((step.keys, (next.cursor != "0").then(|| next.end())))
    }

    /// Forgets all requests of a workspace that remembers no more of them.
    pub(super) async fn forget_requests(&self, workspace: &WorkspaceId) -> Result<(), StoreError> {
        if self.config.url.is_cluster() {
            let slot = slot(workspace.as_str());
            return self.unlink_all(slot, &self.key(workspace, "request:")).await;
        }
        for _ in 0..RESTARTS {
            if self.forget_requests_of_one(workspace).await? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("the master of Redis changes"))
    }

    /// Whether it was one master from beginning to end.
    async fn forget_requests_of_one(&self, workspace: &WorkspaceId) -> Result<bool, StoreError> {
        let pattern = self.key(workspace, "request:*");
        let before = self.master();
        let (mut cursor, mut process) = ("0".to_owned(), None);
        loop {
            let step = self.step(&cursor, &pattern, |_| {}).await?;
            if *process.get_or_insert_with(|| step.process.clone()) != step.process {
                return Ok(false);
            }
            if !step.keys.is_empty() {
                let mut command = redis::cmd("UNLINK");
                command.arg(&step.keys);
                self.ask(0, Lane::Scans, command).await?;
            }
            if step.next == "0" {
                return Ok(self.master() == before);
            }
            cursor = step.next;
        }
    }

    /// Address of the one master.
    fn master(&self) -> Option<String> {
        self.masters.map().owner(0).map(|(node, _)| node.address.to_string())
    }

    async fn step(
        &self,
        cursor: &str,
        pattern: &str,
        more: impl Fn(&mut redis::Cmd) + Send + Sync,
    ) -> Result<Step, StoreError> {
        let commands = |commands: &mut Pipeline| {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(COUNT);
            more(&mut scan);
            commands.add_command(scan);
            commands.cmd("INFO").arg("server");
        };
        let lane = (Lane::Scans, true);
        let replies = self.masters.send(0, lane, self.deadline(), commands).await?;
        let Ok([Value::Array(found), info]) = <[Value; 2]>::try_from(replies) else {
            return Err(NOT_UNDERSTOOD);
        };
        let Ok([next, Value::Array(keys)]) = <[Value; 2]>::try_from(found) else {
            return Err(NOT_UNDERSTOOD);
        };
        let info = text(info)?;
        let process = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        let process = process.filter(|id| !id.is_empty()).ok_or(NOT_UNDERSTOOD)?.to_owned();
        let keys = keys.into_iter().map(text).collect::<Result<_, _>>()?;
        Ok(Step { process, next: text(next)?, keys })
    }
}
