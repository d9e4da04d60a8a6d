//! Integration tests, in one binary: each module tests one room from outside.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests fail loudly"
)]

mod attacks;
mod audit;
mod audit_failures;
mod bad_input;
mod bad_messages;
mod canary;
mod canary_dev;
mod cancelled;
mod certificates;
mod changes;
mod check;
mod cli;
mod cold_and_hot;
mod dev_mode;
mod document_attacks;
mod documents;
mod documents_faults;
mod edge_attacks;
mod examples;
mod floors;
mod foreign_client;
mod golden;
mod grpcurl;
mod hostile;
mod idempotency;
mod identity;
mod independent_decoder;
mod keyring;
mod keys;
mod killed;
mod kms;
mod kms_down;
mod kms_faults;
mod kms_moto;
mod kms_table;
mod leases;
mod lifecycle;
mod listing;
mod matchers;
mod memory;
mod on_engines;
mod operations;
mod overload;
mod prepare;
mod process;
mod redact;
mod redis_down;
mod redis_faults;
mod refresh_storm;
mod reload;
mod render;
mod replicas;
mod restore;
mod shutdown;
mod startup;
mod store_embedded;
mod store_redis;
mod store_redis_faults;
mod store_redis_start;
mod store_suite;
mod support;
mod system_managed;
mod tampering;
mod telemetry;
mod topology;
mod tour;
mod unprintable;
mod usage;
mod usage_replicas;
mod watch;
mod witnessed;
mod workers;
mod write_storm;
