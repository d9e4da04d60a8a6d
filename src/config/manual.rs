//! What shells and `man` know of the command line, made from its definition.

use std::{
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;

const NAME: &str = "workflow-secrets";

/// Writes the completion script of a shell.
///
/// # Errors
/// It cannot be written.
pub fn completions(shell: Shell, to: &mut impl Write) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    // clap_complete 4.6.11 spells a name with a hyphen in two ways in its script
    // for bash, which then completes no command (clap-rs/clap issue 6421).
    let script = String::from_utf8_lossy(&script);
    to.write_all(script.replace("workflow__subcmd__secrets", "workflow__secrets").as_bytes())
}

/// Writes `workflow-secrets.1` and a page for each command into a directory.
///
/// # Errors
/// The directory is not there or cannot be written to.
pub fn man_pages(directory: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), directory)
}
