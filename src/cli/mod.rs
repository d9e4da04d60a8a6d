//! Floor 5: commands that call a server, clients like any other. Of the floors
//! below they use [`domain`](crate::domain)'s names and the generated types only;
//! `tests/integration/floors.rs` holds this.

mod connect;
pub mod import;
mod keys;
mod patience;
mod probe;
mod progress;

use std::io;

pub use self::{
    import::import,
    keys::keys,
    probe::{ProbeError, probe},
};

/// Why a command was not carried out, or not in full.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The server refuses, or something failed that was named before.
    #[error("{0}")]
    Refused(String),
    /// The input is wrong: all its faults, a line each.
    #[error("{}", .0.join("\nworkflow-secrets: "))]
    Input(Vec<String>),
    /// The server cannot be reached, or was lost.
    #[error("{0}")]
    Unavailable(String),
    /// Output cannot be written.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// Text of a server, without anything that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
