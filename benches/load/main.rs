//! The whole service under load, each server a process of its own.
//!
//! ```sh
//! cargo bench --bench load                    # everything, about 15 minutes
//! cargo bench --bench load -- hot             # one part: hot, cold, list, growth
//! cargo bench --bench load -- hot --seconds 1 --rounds 2
//! cargo bench --bench load -- --update        # and put the tables into the README
//! ```
//!
//! `hot` runs a bare tonic echo, the same with one HMGET, and the service, all with the
//! same mutual TLS, in turns of a few seconds, so that whatever else the machine does
//! meets all alike. Client, servers and Redis share the machine: ratios count, and the CPU
//! time of a server, which the kernel counts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails loudly")]
#![allow(clippy::indexing_slicing, reason = "a bench fails loudly")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output")]

#[allow(dead_code, unreachable_pub, clippy::panic, clippy::indexing_slicing, reason = "shared")]
#[allow(clippy::expect_used, clippy::unwrap_used, reason = "shared")]
#[path = "../../tests/integration/support/mod.rs"]
mod support;

mod bulk;
mod drive;
#[path = "../shared/echo.rs"]
mod echo;
mod hot;
mod process;
mod server;
mod tables;

use std::{alloc::System, time::Duration};

use clap::Parser;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::runtime::Runtime;
use zeroizing_alloc::ZeroAlloc;

/// That of the program, and counts.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<&StatsAlloc<System>> = ZeroAlloc(&INSTRUMENTED_SYSTEM);

#[derive(Debug, Parser)]
struct Options {
    /// Parts to run: hot, cold, list, growth; without any, all
    parts: Vec<String>,
    /// Seconds of one turn of one server
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Turns of each server
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Calls at once, of `hot`
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    at_once: Vec<usize>,
    /// Names of a call, of `hot`
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10])]
    names: Vec<usize>,
    /// Workspaces of `cold`
    #[arg(long, default_value_t = 10_000)]
    workspaces: usize,
    /// Secrets of `list`
    #[arg(long, default_value_t = 100_000)]
    listed: usize,
    /// Most secrets of `growth`
    #[arg(long, default_value_t = 1_000_000)]
    stored: usize,
    /// Put the tables into the README
    #[arg(long)]
    update: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    if let Some(role) = std::env::args().nth(1).filter(|role| role.starts_with("server-")) {
        return server::run(&role);
    }
    let options = Options::parse();
    let wanted = |part: &str| options.parts.is_empty() || options.parts.iter().any(|p| p == part);
    let turn = Duration::from_secs(options.seconds);
    let mut tables = Vec::new();
    Runtime::new().unwrap().block_on(async {
        if wanted("hot") {
            let shape = hot::Shape { at_once: options.at_once, names: options.names };
            tables.push(hot::run(turn, options.rounds, &shape).await);
        }
        if wanted("cold") {
            tables.push(bulk::cold(options.workspaces).await);
        }
        if wanted("list") {
            tables.push(bulk::list(options.listed).await);
        }
        if wanted("growth") {
            tables.push(bulk::growth(options.stored, turn).await);
        }
    });
    for table in &tables {
        println!("\n{}", table.text());
        if options.update {
            table.put_into_readme();
        }
    }
}
