//! What tests share.

pub mod pki;
