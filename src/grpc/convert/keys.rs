//! Messages of KeyService.

use super::{Faults, proto, timestamp};
use crate::{
    domain::{DataKeyId, WorkspaceId},
    service::{
        DescribeWorkspaceKeys, Error, FieldViolation, KeyFate, ReencryptWorkspace, Reencrypted,
        RewrapDataKeys, Rewrapped, RotateDataKey, ShredWorkspace, ShreddedWorkspace, WorkspaceKeys,
    },
    store::codec::StoredKey,
};

pub(in crate::grpc) fn describe(
    message: proto::DescribeWorkspaceKeysRequest,
) -> Result<DescribeWorkspaceKeys, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    faults.finish(workspace.map(|workspace| DescribeWorkspaceKeys { workspace }))
}

pub(in crate::grpc) fn rotate(
    message: proto::RotateDataKeyRequest,
) -> Result<RotateDataKey, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let data_key = faults.optional("data_key_id", &message.data_key_id, DataKeyId::parse);
    faults.finish(workspace.map(|workspace| RotateDataKey { workspace, data_key }))
}

pub(in crate::grpc) fn shred(
    message: proto::ShredWorkspaceRequest,
) -> Result<ShredWorkspace, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    if message.confirm != message.workspace {
        faults.0.push(FieldViolation::new("confirm", "must be the workspace once more"));
    }
    faults.finish(workspace.map(|workspace| ShredWorkspace { workspace }))
}

pub(in crate::grpc) fn reencrypt(
    message: proto::ReencryptWorkspaceRequest,
) -> Result<ReencryptWorkspace, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let forget_requests = message.forget_requests;
    faults.finish(workspace.map(|workspace| ReencryptWorkspace { workspace, forget_requests }))
}

pub(in crate::grpc) fn reencrypted(step: Reencrypted) -> proto::ReencryptWorkspaceResponse {
    let failures = step.failures.into_iter().map(|failure| proto::ReencryptFailure {
        name: failure.name.map_or_else(String::new, |name| name.to_string()),
        version: failure.version,
        reason: failure.reason.to_owned(),
    });
    let retired_keys = step.keys.into_iter().map(|(id, fate)| {
        let (fate, until) = match fate {
            KeyFate::Destroyed => (proto::DataKeyFate::Destroyed, None),
            KeyFate::Needed => (proto::DataKeyFate::Needed, None),
            KeyFate::Remembered(until) => (proto::DataKeyFate::Remembered, Some(timestamp(until))),
        };
        proto::RetiredKey { data_key_id: id.to_string(), fate: fate.into(), until }
    });
    proto::ReencryptWorkspaceResponse {
        pass: step.pass,
        values: step.values,
        moved: step.moved,
        verified: step.verified,
        failed: step.failed,
        failures: failures.collect(),
        retired_keys: retired_keys.collect(),
        done: step.done,
    }
}

pub(in crate::grpc) fn rewrap(
    message: proto::RewrapDataKeysRequest,
) -> Result<RewrapDataKeys, Error> {
    let mut faults = Faults::default();
    let workspace = faults.optional("workspace", &message.workspace, WorkspaceId::parse);
    let kms_key = (!message.kms_key.is_empty()).then_some(message.kms_key);
    faults.finish(Some(RewrapDataKeys { workspace, kms_key }))
}

pub(in crate::grpc) fn rewrapped(step: Rewrapped) -> proto::RewrapDataKeysResponse {
    let failures = step.failures.into_iter().map(|failure| proto::RewrapFailure {
        workspace: failure.workspace.to_string(),
        data_key_id: failure.data_key.map_or_else(String::new, |id| id.to_string()),
        reason: failure.reason.to_owned(),
    });
    proto::RewrapDataKeysResponse {
        pass: step.pass,
        workspaces: step.workspaces,
        rewrapped: step.rewrapped,
        unchanged: step.unchanged,
        failed: step.failed,
        failures: failures.collect(),
        kms_key: step.kms_key,
        done: step.done,
    }
}

pub(in crate::grpc) fn shredded(all: ShreddedWorkspace) -> proto::ShredWorkspaceResponse {
    proto::ShredWorkspaceResponse {
        workspace: all.workspace.to_string(),
        shred_time: Some(timestamp(all.time)),
        shredded_by: all.by,
        destroyed_records: all.records,
    }
}

pub(in crate::grpc) fn keys(all: WorkspaceKeys) -> proto::WorkspaceKeys {
    let key = |StoredKey { wrapped, retire_time, .. }: StoredKey| {
        let state = match retire_time {
            None => proto::DataKeyState::Active,
            Some(_) => proto::DataKeyState::Retired,
        };
        proto::WorkspaceKey {
            data_key_id: wrapped.id.to_string(),
            state: state.into(),
            kms_key: wrapped.kms_key_id,
            create_time: Some(timestamp(wrapped.create_time)),
            retire_time: retire_time.map(timestamp),
        }
    };
    proto::WorkspaceKeys {
        workspace: all.workspace.to_string(),
        keys: all.keys.into_iter().map(key).collect(),
    }
}
