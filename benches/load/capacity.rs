//! The model of `deploy/capacity` beside the real thing, at several sizes.
//!
//! Unit costs are measured first, on small stores and at one rate. The model is then asked
//! what a replica at a size does, and a replica is made to do it.

use std::{
    mem,
    str::FromStr,
    time::{Duration, Instant},
};

use crate::{
    bulk,
    cache::Class,
    drive,
    inputs::Inputs,
    model::{self, Load},
    open::{self, Answers, Did, memory, mixed},
    support::platform::Platform,
    tables::Table,
    thousands::thousands,
    units::{self, Size},
};

const NAMES: usize = 2;
const MIB: f64 = 1_048_576.0;

/// A size to look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    workspaces: usize,
    secrets: usize,
    rate: f64,
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<usize> = text.split(':').filter_map(|part| part.parse().ok()).collect();
        match parts.as_slice() {
            &[workspaces, secrets, rate]
                if workspaces > 0 && rate > 0 && secrets >= workspaces * NAMES =>
            {
                Ok(Self { workspaces, secrets, rate: rate as f64 })
            }
            _ => Err("must be WORKSPACES:SECRETS:RATE, with 2 secrets for each".to_owned()),
        }
    }
}

/// How it is done.
pub(crate) struct How {
    pub(crate) points: Vec<Point>,
    /// Soft age of data keys: they are asked for again as often as a day has it.
    pub(crate) soft: Duration,
    /// How long each is looked at.
    pub(crate) during: Duration,
    /// Workspaces on which unit costs are measured, and Resolves per second.
    pub(crate) units: usize,
    pub(crate) units_rate: f64,
}

pub(crate) async fn run(how: &How, given: &Inputs) -> Table {
    let shape = how.points[0];
    let size = Size {
        workspaces: how.units,
        secrets_each: shape.secrets / shape.workspaces,
        rate: how.units_rate,
        turn: how.during / 3,
    };
    let units = units::measure(given, size).await;
    eprintln!("unit costs: {}", units::flags(&units));
    let head = ["Workspaces", "Secrets", "Resolves/s", "What", "Model", "Measured", "Off by"];
    let mut table = Table::new("capacity", &head).of("deploy/capacity/README.md");
    for point in &how.points {
        let platform = units::platform().await;
        let mut seen = measure(how, *point, &platform).await;
        let inputs = inputs(how, *point, &units, seen.driven);
        let told = model::load(&inputs, 1.0);
        rows(&mut table, *point, &inputs, &told, &mut seen);
    }
    table
}

/// What is put into the model for a size.
fn inputs(how: &How, point: Point, units: &Inputs, driven: f64) -> Inputs {
    let each = point.secrets / point.workspaces;
    let mut inputs = Inputs {
        workspaces: point.workspaces as f64,
        secrets: (each * point.workspaces) as f64,
        resolves_per_second: point.rate,
        names_per_resolve: NAMES as f64,
        active_share: 1.0,
        changes_per_second: 0.0,
        new_workspaces_per_day: 0.0,
        restarts_per_day: 0.0,
        rotate_days: 1e12,
        earlier_versions: 0.0,
        workflows_per_secret: 1.0,
        history_per_workspace: each as f64,
        soft_minutes: how.soft.as_secs_f64() / 60.0,
        hard_minutes: how.soft.as_secs_f64() / 15.0,
        // Those of a call are in the memory measured with the unit costs.
        connections: 0.0,
        call_kib: 0.0,
        ..units.clone()
    };
    // Secrets that were asked for meanwhile. What comes last is yet to be written.
    let asked = |of: Class| {
        let per_secret =
            of.rate * (driven - inputs.usage_every).max(0.0) * NAMES as f64 / each as f64;
        of.workspaces * each as f64 * (1.0 - (-per_secret).exp())
    };
    let used: f64 = model::classes(&inputs).map(asked).iter().sum();
    inputs.used_share = used / inputs.secrets;
    inputs
}

struct Seen {
    seconds: f64,
    /// All seconds of load, before it was looked at too.
    driven: f64,
    did: Did,
    answers: Answers,
    resident: f64,
    store: f64,
}

async fn measure(how: &How, point: Point, platform: &Platform) -> Seen {
    let each = point.secrets / point.workspaces;
    let empty = units::empty(platform).await;
    {
        let server = units::start(platform, &[]);
        let people = drive::client(platform, &server, "platform").await;
        let place = move |number: usize| {
            (format!("ws-{}", number / each), format!("KEY_{}", number % each))
        };
        let rate = bulk::fill(&people, 0..each * point.workspaces, place).await;
        eprintln!("filled: {} secrets, {rate:.0}/s", each * point.workspaces);
    }
    let forget = format!("{}ms", how.soft.as_millis() * 4);
    let mut server = units::start(platform, &["--forget-data-keys-after", &forget]);
    let clients = units::executors(platform, &server).await;

    let defaults = inputs(how, point, &crate::defaults(), 0.0);
    let (hot_share, hot_load) = (defaults.hot_share, defaults.hot_load);
    let hot = ((point.workspaces as f64 * hot_share).round() as u64).max(1);
    let others = (point.workspaces as u64 - hot).max(1);
    let request = |number: u64| {
        let random = mixed(number);
        let is_hot = (random >> 40) as f64 / f64::from(1 << 24) < hot_load;
        let pick = mixed(random);
        let workspace = if is_hot { pick % hot } else { hot + pick % others };
        let workspace = workspace.min(point.workspaces as u64 - 1);
        let first = mixed(pick) as usize % each;
        let names: Vec<_> =
            (0..NAMES).map(|next| format!("KEY_{}", (first + next) % each)).collect();
        drive::request(&format!("ws-{workspace}"), &names)
    };
    let seldom = point.rate * (1.0 - hot_load) / others as f64;
    let start = Instant::now();
    open::resolve(&clients, point.rate, request, async |answers| {
        // Until keys are of all ages, those of the others too.
        tokio::time::sleep(how.soft * 3 + Duration::from_secs_f64((3.0 / seldom).min(60.0))).await;
        // From one writing of usage to another: between them, there is none.
        open::usage_is_written(platform).await;
        let first = Did::by_now(platform, &mut server);
        *answers.lock().unwrap() = Answers::default();
        tokio::time::sleep(how.during).await;
        open::usage_is_written(platform).await;
        let last = Did::by_now(platform, &mut server);
        Seen {
            seconds: first.seconds(&last),
            driven: start.elapsed().as_secs_f64(),
            did: last.since(&first),
            answers: mem::take(&mut answers.lock().unwrap()),
            resident: server.resident() as f64 * 1024.0,
            store: memory(platform) - empty,
        }
    })
    .await
}

fn rows(table: &mut Table, point: Point, inputs: &Inputs, told: &Load, seen: &mut Seen) {
    let seconds = seen.seconds;
    let per_second = |all: f64| all / seconds;
    let lines = [
        ("Service, CPU cores", told.cores, per_second(seen.did.service_micros) / 1e6, 3),
        ("Service, memory, MiB", told.replica_memory / MIB, seen.resident / MIB, 1),
        ("KMS calls/s", told.kms_calls, per_second(seen.did.kms_calls), 1),
        ("Usage written, workspaces/s", told.usage_writes, per_second(seen.did.scripts), 1),
        ("Redis, CPU cores", told.redis_cores, per_second(seen.did.redis_micros) / 1e6, 3),
        ("Redis, memory, MiB", model::store_bytes(inputs) / MIB, seen.store / MIB, 1),
        ("Redis, network, MB/s", told.redis_bytes / 1e6, per_second(seen.did.redis_bytes) / 1e6, 2),
    ];
    for (what, model, measured, digits) in lines {
        table.row(&[
            thousands(point.workspaces as f64),
            thousands(point.secrets as f64),
            thousands(point.rate),
            what.to_owned(),
            format!("{model:.digits$}"),
            format!("{measured:.digits$}"),
            format!("{:+.0} %", (model / measured - 1.0) * 100.0),
        ]);
    }
    eprintln!(
        "{:.0} calls in {:.1} s, p50 {:.2} ms, p99 {:.2} ms",
        seen.answers.all(),
        seen.seconds,
        seen.answers.permille(500),
        seen.answers.permille(990),
    );
}
