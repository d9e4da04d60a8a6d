//! Records beside the secrets: leases and usage.

use prost::Message as _;

use super::{pb, time_from_pb, time_to_pb};
use crate::{
    domain::{
        CallerId, FencingToken, Holding, LeaseHolder, RefreshLease, SecretName, SecretUid, Usage,
        WorkflowId,
    },
    store::StoreError,
};

const LEASE: StoreError = StoreError::Malformed("lease record");
const USAGE: StoreError = StoreError::Malformed("usage record");

/// A lease to bytes.
pub fn encode_lease(lease: &RefreshLease) -> Vec<u8> {
    let holding = lease.held_by.as_ref();
    pb::RefreshLease {
        name: lease.name.to_string(),
        uid: lease.uid.as_bytes().to_vec(),
        version: lease.version,
        fencing_token: lease.token.as_u64(),
        caller: holding.map_or_else(String::new, |by| by.caller.to_string()),
        holder: holding.map_or_else(String::new, |by| by.holder.to_string()),
        expire_time: Some(time_to_pb(lease.expire_time)),
    }
    .encode_to_vec()
}

/// A lease from the bytes under `l/name`.
///
/// # Errors
/// [`StoreError::Malformed`] also if the record names another secret.
pub fn decode_lease(name: &SecretName, bytes: &[u8]) -> Result<RefreshLease, StoreError> {
    let decode = || {
        let lease = pb::RefreshLease::decode(bytes).ok()?;
        let held_by = match lease.holder.as_str() {
            "" => None,
            holder => Some(Holding {
                caller: CallerId::parse(&lease.caller).ok()?,
                holder: LeaseHolder::parse(holder).ok()?,
            }),
        };
        Some(RefreshLease {
            name: SecretName::parse(&lease.name).ok().filter(|named| named == name)?,
            uid: SecretUid::from_bytes(lease.uid.try_into().ok()?),
            version: lease.version,
            token: FencingToken::parse(lease.fencing_token).ok()?,
            held_by,
            expire_time: time_from_pb(lease.expire_time?)?,
        })
    };
    decode().ok_or(LEASE)
}

/// Usage to bytes.
pub fn encode_usage(name: &SecretName, usage: &Usage) -> Vec<u8> {
    let workflow = |(id, time): (&WorkflowId, _)| pb::WorkflowUsage {
        workflow_id: id.to_string(),
        last_time: Some(time_to_pb(time)),
    };
    pb::Usage {
        name: name.to_string(),
        last_time: usage.last().map(time_to_pb),
        workflows: usage.workflows().map(workflow).collect(),
    }
    .encode_to_vec()
}

/// Usage from the bytes under `u/name` or `w/name`.
///
/// # Errors
/// [`StoreError::Malformed`] also if the record is of another name.
pub fn decode_usage(name: &SecretName, bytes: &[u8]) -> Result<Usage, StoreError> {
    let decode = || {
        let record = pb::Usage::decode(bytes).ok().filter(|record| record.name == name.as_str())?;
        let mut usage = Usage::default();
        usage.add(None, time_from_pb(record.last_time?)?);
        for pb::WorkflowUsage { workflow_id, last_time } in record.workflows {
            usage.add(Some(&WorkflowId::parse(&workflow_id).ok()?), time_from_pb(last_time?)?);
        }
        Some(usage)
    };
    decode().ok_or(USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;

    fn usage() -> Usage {
        let time = |seconds| Timestamp::new(seconds, 7).expect("in range");
        let mut usage = Usage::default();
        for (id, seconds) in [("wf 1", 5), ("wf-2", 3)] {
            usage.add(Some(&WorkflowId::parse(id).expect("an id")), time(seconds));
        }
        usage.add(None, time(9));
        usage
    }

    fn lease(held_by: Option<Holding>) -> RefreshLease {
        RefreshLease {
            name: SecretName::parse("STRIPE_KEY").expect("name"),
            uid: SecretUid::random(),
            version: 3,
            token: FencingToken::first(),
            held_by,
            expire_time: Timestamp::new(9, 7).expect("in range"),
        }
    }

    #[test]
    fn records_survive_the_round_trip() {
        let held_by = Some(Holding {
            caller: CallerId::parse("spiffe://td/x").expect("caller"),
            holder: LeaseHolder::parse("pod-1:7").expect("holder"),
        });
        for held_by in [held_by, None] {
            let lease = lease(held_by);
            assert_eq!(decode_lease(&lease.name, &encode_lease(&lease)), Ok(lease));
        }
        let name = SecretName::parse("STRIPE_KEY").expect("name");
        assert_eq!(decode_usage(&name, &encode_usage(&name, &usage())), Ok(usage()));
    }

    #[test]
    fn a_record_of_another_name_and_an_empty_one_are_refused() {
        let other = SecretName::parse("OTHER").expect("name");
        let lease = lease(None);
        assert_eq!(decode_lease(&other, &encode_lease(&lease)), Err(LEASE));
        assert_eq!(decode_lease(&lease.name, &[]), Err(LEASE));
        let bytes = encode_usage(&lease.name, &usage());
        assert_eq!(decode_usage(&other, &bytes), Err(USAGE));
        assert_eq!(decode_usage(&lease.name, &[]), Err(USAGE));
    }
}
