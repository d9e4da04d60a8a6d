//! Stand-ins that behave: they keep the contract of what they stand for, count
//! calls and fail on demand.

pub(crate) mod fake_kms;
pub(crate) mod manual_clock;
pub(crate) mod memory_store;
