//! The whole service under load, each server a process of its own.
//!
//! ```sh
//! cargo bench --bench load                    # everything, about 25 minutes
//! cargo bench --bench load -- hot             # one part: hot, cold, list, growth, capacity
//! cargo bench --bench load -- hot --seconds 1 --rounds 2
//! cargo bench --bench load -- --update        # and put the tables into README and deploy/capacity
//! ```
//!
//! `hot` runs a bare tonic echo, the same with one HMGET, and the service, all with the
//! same mutual TLS, in turns of a few seconds, so that whatever else the machine does
//! meets all alike. Client, servers and Redis share the machine: ratios count, and the CPU
//! time of a server, which the kernel counts.
//!
//! `capacity` sets what the model in `deploy/capacity` says of a replica beside what one
//! does, at the sizes of `--points`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails loudly")]
#![allow(clippy::indexing_slicing, reason = "a bench fails loudly")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of things")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output")]

#[allow(dead_code, unreachable_pub, clippy::panic, clippy::indexing_slicing, reason = "shared")]
#[allow(clippy::expect_used, clippy::unwrap_used, reason = "shared")]
#[path = "../../tests/integration/support/mod.rs"]
mod support;

mod bulk;
#[allow(dead_code, reason = "shared")]
#[path = "../../deploy/capacity/cache.rs"]
mod cache;
mod capacity;
mod drive;
#[path = "../shared/echo.rs"]
mod echo;
mod hot;
#[allow(dead_code, reason = "shared")]
#[path = "../../deploy/capacity/inputs.rs"]
mod inputs;
#[allow(dead_code, reason = "shared")]
#[path = "../../deploy/capacity/model.rs"]
mod model;
mod open;
mod process;
mod server;
mod tables;
#[path = "../../deploy/capacity/thousands.rs"]
mod thousands;
mod units;
#[path = "../../deploy/capacity/usage.rs"]
mod usage;

use std::{alloc::System, time::Duration};

use clap::Parser;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::runtime::Runtime;
use zeroizing_alloc::ZeroAlloc;

use crate::{
    capacity::{How, Point},
    inputs::Inputs,
};

/// That of the program, and counts.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<&StatsAlloc<System>> = ZeroAlloc(&INSTRUMENTED_SYSTEM);

#[derive(Debug, Parser)]
struct Options {
    /// Parts to run: hot, cold, list, growth, capacity; without any, all
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
    /// Sizes of `capacity`: workspaces, secrets, Resolves per second
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "100:10000:500,1000:100000:2000,5000:500000:4000"
    )]
    points: Vec<Point>,
    /// Seconds for which `capacity` looks at each
    #[arg(long, default_value_t = 30)]
    point_seconds: u64,
    /// Seconds until `capacity` has a data key asked for again, at least 1
    #[arg(long, default_value_t = 5)]
    soft_seconds: u64,
    /// Workspaces on which `capacity` measures unit costs
    #[arg(long, default_value_t = 400)]
    units: usize,
    /// Resolves per second for that
    #[arg(long, default_value_t = 1_000)]
    units_rate: u32,
    /// Put the tables into the files they stand in
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
        if wanted("capacity") {
            let how = How {
                points: options.points.clone(),
                soft: Duration::from_secs(options.soft_seconds),
                during: Duration::from_secs(options.point_seconds),
                units: options.units,
                units_rate: f64::from(options.units_rate),
            };
            tables.push(capacity::run(&how, &defaults()).await);
        }
        if wanted("growth") {
            tables.push(bulk::growth(options.stored, turn).await);
        }
    });
    for table in &tables {
        println!("\n{}", table.text());
        if options.update {
            table.put_into_file();
        }
    }
}

/// What the model takes if it is told nothing.
fn defaults() -> Inputs {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        inputs: Inputs,
    }
    Cli::parse_from(["capacity"]).inputs
}
