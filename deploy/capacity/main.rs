//! How many replicas, Redis shards, KMS calls and dollars a load takes.
//!
//! ```sh
//! cargo run --release --example capacity -- --workspaces 1000000 --secrets 100000000 \
//!   --resolves-per-second 200000
//! ```
//!
//! README.md beside this file has the formulas, what they assume, how far they were
//! checked, and the answer for that size.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output")]

mod cache;
mod inputs;
mod model;
mod report;
#[cfg(test)]
mod tests;
mod thousands;
mod usage;

use std::{fs, io, path::Path, process::ExitCode};

use clap::Parser;

use crate::{inputs::Inputs, report::Report};

/// From measured unit costs to replicas, Redis shards and memory, KMS calls and dollars.
#[derive(Debug, Parser)]
#[command(name = "capacity", allow_negative_numbers = true)]
struct Cli {
    #[command(flatten)]
    inputs: Inputs,
    /// JSON in place of tables
    #[arg(long)]
    json: bool,
    /// Put the tables into deploy/capacity/README.md
    #[arg(long, conflicts_with = "json")]
    update: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(wrong) = cli.inputs.check() {
        eprintln!("error: {wrong}");
        return ExitCode::from(2);
    }
    let report = Report::of(&cli.inputs);
    let text = if cli.json { report.json().map_err(io::Error::other) } else { Ok(report.text()) };
    let done = text.and_then(|text| match cli.update {
        true => update(&text),
        false => {
            println!("{text}");
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

const BEGIN: &str = "<!-- capacity -->\n";
const END: &str = "<!-- /capacity -->";

/// What stands in the README, and where.
fn readme() -> io::Result<(std::path::PathBuf, [String; 3])> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/capacity/README.md");
    let text = fs::read_to_string(&path)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (tables, after) = rest.split_once(END)?;
        Some([before, tables, after].map(str::to_owned))
    });
    let missing = || io::Error::other(format!("{}: no place for it", path.display()));
    parts.ok_or_else(missing).map(|parts| (path.clone(), parts))
}

fn update(tables: &str) -> io::Result<()> {
    let (path, [before, _, after]) = readme()?;
    fs::write(path, format!("{before}{BEGIN}{tables}{END}{after}"))
}
