//! Destroys a workspace.

use redis::Value;

use super::{
    NOT_UNDERSTOOD, RedisStore,
    call::{Call, denied},
    slots::slot,
};
use crate::{
    domain::WorkspaceId,
    store::{Key, Record, Shredded, StoreError, first_revision},
};

impl RedisStore {
    /// Records first, in one step. From then on no request can be remembered,
    /// so the outcomes found afterwards are all there are.
    pub(super) async fn destroy(
        &self,
        workspace: &WorkspaceId,
        tombstone: &Record,
    ) -> Result<Shredded, StoreError> {
        let keys = ["records", "index", "revision"].map(|key| self.key(workspace, key)).to_vec();
        let replicas = self.config.min_replicas;
        let arguments = vec![
            Key::tombstone().as_str().as_bytes().to_vec(),
            tombstone.to_stored(),
            first_revision().to_string().into_bytes(),
            if replicas > 0 { b"1".to_vec() } else { Vec::new() },
        ];
        let call =
            Call { lua: &self.shred, slot: slot(workspace.as_str()), keys, arguments, replicas };
        let (reply, acknowledged) = self.write(call).await?;
        let Some(Value::Array(reply)) = reply else { return Err(NOT_UNDERSTOOD) };
        let mut reply = reply.into_iter();
        let shredded = match (reply.next(), reply.next(), reply.next()) {
            (Some(Value::Int(count)), Some(Value::BulkString(stored)), None) => Shredded {
                records: u64::try_from(count).unwrap_or(0),
                tombstone: Record::from_stored(stored)?,
            },
            (Some(Value::BulkString(word)), None, None) if word == b"denied" => {
                return Err(denied());
            }
            _ => return Err(NOT_UNDERSTOOD),
        };
        self.forget_requests(workspace).await?;
        acknowledged?;
        Ok(shredded)
    }
}
