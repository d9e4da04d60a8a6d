//! Floor 0: types that cannot be wrong. Whoever holds one need not check it.

mod key;
mod lease;
mod names;
mod plaintext;
mod rates;
mod secret;
mod time;
mod trail;
mod uid;
mod usage;

pub use key::{KeyMaterial, KeyMaterialLength, WrappedDataKey};
pub use lease::{FencingToken, Holding, LeaseTtl, RefreshLease};
pub use names::{
    Actor, Alias, CallerId, ConnectionId, Description, Environment, Integration, LeaseHolder,
    Refusal, RequestId, RunId, SecretName, TraceId, WorkflowId, WorkspaceId,
};
pub use plaintext::{MAX_VALUE_BYTES, Plaintext};
pub use rates::Rates;
pub use secret::{
    DeletedSecret, EarlierVersion, Etag, ManagedBy, Owner, Revision, SecretMetadata, ValueMetadata,
};
pub use time::{Clock, Deadline, SystemClock, Timestamp};
pub use trail::TrailEntry;
pub use uid::{DataKeyId, SecretUid};
pub use usage::Usage;
