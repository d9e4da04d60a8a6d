#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests fail loudly"
)]
//! All integration tests, in one binary.

mod kms;
mod kms_faults;
mod kms_moto;
mod support;
