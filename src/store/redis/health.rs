//! Whether Redis can be used.

use futures_util::future::join_all;
use redis::Pipeline;

use super::{
    RedisStore,
    link::{DISK_FAILS, Failure, Refused},
    node::Node,
};
use crate::store::StoreError;

impl RedisStore {
    /// Deletes a key that is never there. That changes nothing, yet Redis
    /// refuses it for the same reasons as any write (replica, too few replicas)
    /// except full memory. That, and a failing disk, do not keep secrets from
    /// being resolved.
    ///
    /// A cluster is well if one of its masters is: the workspaces of that one
    /// are served, and taking this process out of service would help no other.
    pub(super) async fn probe_any(&self) -> Result<(), StoreError> {
        let map = self.masters.map();
        let masters = map.masters();
        let probes = masters.iter().map(|node| async {
            let key = if self.config.url.is_cluster() {
                let none = StoreError::Unavailable("a node of Redis has no slot");
                map.slot_of(node).and_then(|slot| self.never_there(slot)).ok_or(none)?
            } else {
                format!("{}:health", self.config.prefix)
            };
            self.probe(node, &key).await
        });
        let mut found = Err(StoreError::Unavailable("no master of Redis is known"));
        for health in join_all(probes).await {
            match health {
                Ok(()) => return Ok(()),
                Err(error) => found = Err(error),
            }
        }
        found
    }

    /// A key in a slot of a cluster that nobody makes.
    pub(super) fn never_there(&self, slot: u16) -> Option<String> {
        let tag = self.tags.as_ref()?.of(slot)?;
        Some(format!("{}:{{{tag}}}:health", self.config.prefix))
    }

    /// Whether a master can be reached and written to.
    async fn probe(&self, node: &Node, key: &str) -> Result<(), StoreError> {
        for lane in node.lanes() {
            let mut pipeline = Pipeline::new();
            pipeline.cmd("DEL").arg(key);
            let deadline = self.deadline();
            match node.ask(lane, &pipeline, deadline).await {
                // It serves, though no longer this slot.
                Ok(_) | Err(Failure::Refused(Refused::Moved(_) | Refused::Ask(_))) => {}
                Err(Failure::Store(error)) if error == DISK_FAILS => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        let mut pipeline = Pipeline::new();
        pipeline.cmd("DEL").arg(key);
        node.try_near(&pipeline, self.deadline()).await;
        Ok(())
    }
}
