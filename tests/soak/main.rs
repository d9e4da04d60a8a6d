//! A soak: load on two replicas and one Redis, and a random fault every few
//! seconds, for a given time. What is acknowledged must not be lost, what is
//! answered must be able to be, and the processes must not grow.
//!
//!     cargo test --release --test soak -- --duration 30m
//!
//! Without `--duration` it is the short run that belongs to the tests.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests fail loudly"
)]

mod faults;
mod load;
mod oracle;
mod probe;
mod process;
mod proxy;
mod report;
mod rig;
mod rng;
mod site;
#[allow(dead_code, unreachable_pub, reason = "shared")]
#[path = "../integration/support/mod.rs"]
mod support;
mod tally;

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;

use self::{
    load::{Load, StillSecrets, World},
    process::Usage,
    report::{Audited, IdleFiles, Report},
    rig::Rig,
    rng::Rng,
    site::Caller,
};

#[derive(Parser)]
#[command(name = "soak")]
struct Args {
    /// How long faults go on, such as `30m`
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Makes the same choices again; random unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Those who change secrets
    #[arg(long, default_value_t = 6)]
    writers: usize,
    /// Those who read them
    #[arg(long, default_value_t = 6)]
    readers: usize,
    /// Secrets of each writer
    #[arg(long, default_value_t = 8)]
    secrets: usize,
    /// Average pause of each of them between two calls
    #[arg(long, default_value = "20ms", value_parser = humantime::parse_duration)]
    pace: Duration,
    /// As libtest has it: run only if its name contains this
    filter: Option<String>,
}

/// How long the load may take to finish what it has in hand.
const DRAIN: Duration = Duration::from_secs(180);

/// How long processes may take to let go of what the faults left them with.
const SETTLE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args = Args::parse();
    if args.filter.as_ref().is_some_and(|filter| !"soak".contains(filter.as_str())) {
        return ExitCode::SUCCESS;
    }
    oracle::prove();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if runtime.block_on(soak(&args)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn soak(args: &Args) -> bool {
    let seed = args.seed.unwrap_or_else(|| {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).unwrap();
        u32::from_le_bytes(bytes).into()
    });
    println!("soak: seed {seed}, {}", humantime::format_duration(args.duration));

    let mut rig = Rig::start().await;
    let first = idle_files(&rig);
    let mut platform = Caller::new(&rig.site, "platform", Rng::of(seed, "still", 1));
    let still = StillSecrets::write(&mut platform).await;
    drop(platform);
    let (availability, mut probes) = probe::start(&rig.site).await;
    let watching = rig.lives.watch();
    let load = Load {
        writers: args.writers,
        readers: args.readers,
        secrets: args.secrets,
        pace: args.pace,
    };
    let world = World::new(&rig.site, seed, &load);
    let callers = load::start(&world, &load, &still);

    let deadline = Instant::now() + args.duration;
    let happened = faults::run(&mut rig, &availability, seed, deadline).await;
    let seconds = availability.seconds();
    rig.lives.look();
    drop(watching);
    world.site.stop();
    let drained = tokio::time::timeout(DRAIN, callers.join_all()).await;
    if drained.is_err() {
        rig.findings.push("calls had no end after the last fault".to_owned());
    }
    load::verify(&world, &still).await;
    probes.shutdown().await;
    let settling = Instant::now();
    let mut idle_files = IdleFiles { first, last: idle_files(&rig) };
    while idle_files.grew() && settling.elapsed() < SETTLE {
        tokio::time::sleep(Duration::from_millis(200)).await;
        idle_files.last = self::idle_files(&rig);
    }
    rig.tend();
    rig.read_logs();

    let report = Report {
        seed,
        tally: &world.tally,
        availability: &availability,
        seconds,
        happened: &happened,
        lives: &rig.lives.all(),
        idle_files,
        audited: audited(&rig.audit_files()),
        findings: &rig.findings,
    };
    println!("{}\n\n{}", report.table(), report.json());
    let failures = report.failures();
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    failures.is_empty()
}

/// The most files that a replica has open.
fn idle_files(rig: &Rig) -> u64 {
    let living = rig.lives.living();
    let usages = living.iter().filter_map(|life| Usage::of(life.pid));
    usages.map(|usage| usage.fds).max().unwrap_or_default()
}

/// Lines of changes made, and of values handed out by Resolve.
fn audited(files: &[PathBuf]) -> Audited {
    let mut audited = Audited { changes: 0, resolved: 0 };
    for file in files {
        for line in BufReader::new(File::open(file).unwrap()).lines() {
            let line = line.unwrap();
            // kill -9 may have torn one.
            let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if line["outcome"] != "ok" {
                continue;
            }
            match line["action"].as_str().unwrap_or_default() {
                "create" | "update" | "delete" | "undelete" | "rollback" | "shred"
                | "rotate_data_key" => audited.changes += 1,
                "resolve" => audited.resolved += 1,
                _ => {}
            }
        }
    }
    audited
}
