//! Stand-ins that behave: they keep the contract of what they stand for, count
//! calls and fail on demand.

pub mod fake_kms;
pub mod manual_clock;
pub mod memory_store;
