//! What tests share.

pub mod fake_kms;
pub mod manual_clock;
pub mod memory_store;
pub mod pki;
