//! workflow-secrets keeps API keys and OAuth tokens of a workflow-automation
//! platform and hands them to running workflows.
//!
//! Imports go strictly downward: a file may use the floors below its own and
//! its siblings' public items, never a floor above. `kms` and `store` never
//! see each other; `matcher` and `template` are pure. `tests/integration/floors.rs` holds this.
//!
//! | Floor | Module | Room |
//! |---|---|---|
//! | 5 | `main`, [`admin`], [`app`], [`config`], [`process`], [`telemetry`], [`watch`] | arguments, exit codes, wiring |
//! | 5 | [`cli`] | commands that call a server; of the floors below they use names and generated types |
//! | 4 | [`grpc`] | proto to domain and back, identity, TLS, the one error map |
//! | 3 | [`service`] | one file per operation or policy |
//! | 2 | [`envelope`] | sealing and opening values, data keys |
//! | 1 | [`kms`], [`store`] | two traits and their adapters |
//! | 1 | [`matcher`], [`template`] | values in text; references in text and JSON |
//! | 0 | [`domain`] | types that cannot be wrong |
//! | 0 | [`metrics`] | what is counted and timed |

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod envelope;
pub mod grpc;
pub mod kms;
pub mod matcher;
pub mod metrics;
pub mod process;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod template;
pub mod watch;
