//! Integration tests, in one binary: each module tests one room from outside.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests fail loudly"
)]

mod audit;
mod floors;
mod golden;
mod identity;
mod independent_decoder;
mod keyring;
mod kms;
mod kms_faults;
mod kms_moto;
mod replicas;
mod store_embedded;
mod store_redis;
mod store_redis_faults;
mod store_redis_start;
mod store_suite;
mod support;
mod tampering;
mod tour;
mod unprintable;
mod watch;
