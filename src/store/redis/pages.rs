//! Walks through all keys of a master.
//!
//! A cursor of SCAN means something to the process that gave it and to no
//! other, and keys move between masters. So each step also asks which process
//! answers, and a walk that met a change starts again.

use std::sync::Arc;

use redis::{Pipeline, Value};

use super::{
    NOT_UNDERSTOOD, RedisStore,
    node::Lane,
    slots::{LAST, Map, slot},
    text,
};
use crate::{
    domain::WorkspaceId,
    store::{StoreError, WorkspacesCursor},
};

/// Keys that one step of SCAN looks at.
const COUNT: usize = 1_000;

/// Changes of master during which remembered requests are forgotten.
const RESTARTS: usize = 5;

/// Where a listing goes on: the slots from `from` to `to`, all of one master,
/// are being looked at; those before are done.
struct Page {
    from: u16,
    to: u16,
    cursor: String,
    /// The process that gave the cursor; empty before the first step.
    process: String,
}

impl Page {
    fn start(from: u16) -> Self {
        Self { from, to: LAST, cursor: "0".to_owned(), process: String::new() }
    }

    fn parse(cursor: &WorkspacesCursor) -> Option<Self> {
        let mut parts = cursor.0.split(' ');
        let (from, to) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let (cursor, process) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        (parts.next().is_none() && from <= to && to <= LAST).then_some(Self {
            from,
            to,
            cursor,
            process,
        })
    }

    fn end(self) -> WorkspacesCursor {
        let Self { from, to, cursor, process } = self;
        WorkspacesCursor(format!("{from} {to} {cursor} {process}"))
    }
}

/// What a step found.
struct Step {
    process: String,
    next: String,
    keys: Vec<String>,
}

impl RedisStore {
    /// One step through all workspaces, slot after slot.
    pub(super) async fn page(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        let mut page = match cursor {
            None => Page::start(0),
            Some(cursor) => {
                Page::parse(cursor).ok_or(StoreError::Malformed("cursor of a listing"))?
            }
        };
        let head = format!("{}:{{", self.config.prefix);
        let tail = "}:records";
        let before = owner(&self.masters.map(), page.from)?;
        let hashes = |scan: &mut redis::Cmd| {
            scan.arg("TYPE").arg("hash");
        };
        let step = self.step(page.from, &page.cursor, &format!("{head}*{tail}"), hashes).await?;
        let now = self.known_after(&step).await?;
        let after = owner(&now, page.from)?;
        if before.0 != after.0 || !(page.process.is_empty() || page.process == step.process) {
            return Ok((Vec::new(), Some(Page::start(page.from).end())));
        }
        page.to = page.to.min(before.1).min(after.1);
        page.process = step.process;
        let next = match (step.next.as_str(), page.to) {
            ("0", LAST) => None,
            ("0", to) => Some(Page::start(to.saturating_add(1))),
            _ => Some(Page { cursor: step.next, ..page }),
        };
        // What does not parse is not ours.
        let name = |key: &String| {
            let name = key.strip_prefix(&head)?.strip_suffix(tail)?;
            WorkspaceId::parse(name).ok()
        };
        Ok((step.keys.iter().filter_map(name).collect(), next.map(Page::end)))
    }

    /// Forgets all requests of a workspace that remembers no more of them.
    pub(super) async fn forget_requests(&self, workspace: &WorkspaceId) -> Result<(), StoreError> {
        for _ in 0..RESTARTS {
            if self.forget_requests_of_one(workspace).await? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("the master of Redis changes"))
    }

    /// Whether it was one master from beginning to end.
    async fn forget_requests_of_one(&self, workspace: &WorkspaceId) -> Result<bool, StoreError> {
        let slot = slot(workspace.as_str());
        let pattern = self.key(workspace, "request:*");
        let before = owner(&self.masters.map(), slot)?.0;
        let (mut cursor, mut process) = ("0".to_owned(), None);
        loop {
            let step = self.step(slot, &cursor, &pattern, |_| {}).await?;
            if *process.get_or_insert_with(|| step.process.clone()) != step.process {
                return Ok(false);
            }
            if !step.keys.is_empty() {
                let mut command = redis::cmd("UNLINK");
                command.arg(&step.keys);
                self.ask(slot, Lane::Scans, command).await?;
            }
            if step.next == "0" {
                let now = self.known_after(&step).await?;
                return Ok(owner(&now, slot)?.0 == before);
            }
            cursor = step.next;
        }
    }

    /// The masters after a step. Whether the last was of the one that had the
    /// slots all the time, only somebody asked after it can tell.
    async fn known_after(&self, step: &Step) -> Result<Arc<Map>, StoreError> {
        match step.next.as_str() {
            "0" => self.masters.map_of_now(self.deadline()).await,
            _ => Ok(self.masters.map()),
        }
    }

    async fn step(
        &self,
        slot: u16,
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
        let replies = self.masters.send(slot, lane, self.deadline(), commands).await?;
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

/// Address of the master of a slot, and the last slot that it has in a row.
fn owner(map: &Map, slot: u16) -> Result<(String, u16), StoreError> {
    let owner = map.owner(slot).map(|(node, to)| (node.address.to_string(), to));
    owner.ok_or(StoreError::Unavailable("no node of Redis has the slot"))
}
