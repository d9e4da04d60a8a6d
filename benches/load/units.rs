//! What one of everything costs, measured on small stores and at one rate.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};

use crate::{
    bulk, drive,
    echo::VALUE,
    inputs::Inputs,
    open::{self, Did, memory},
    process::Server,
    server::SERVICE,
    support::{
        platform::{self, Client, Platform},
        redis_server::Options,
    },
};

/// Usage is written every 5 s.
const USAGE_WRITTEN: Duration = Duration::from_millis(5_500);
/// Cold passes, hot passes.
const PASSES: usize = 4;
const CONNECTIONS: usize = 4;

/// How it is measured.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) workspaces: usize,
    pub(crate) secrets_each: usize,
    pub(crate) rate: f64,
    pub(crate) turn: Duration,
}

/// Redis with an append-only file, synced each second: to sync each write costs time, not
/// CPU, and depends on the disk. No rewriting of the file amid a measurement.
pub(crate) async fn platform() -> Platform {
    let redis = Options::default()
        .set("appendonly", &["yes"])
        .set("appendfsync", &["everysec"])
        .set("auto-aof-rewrite-percentage", &["0"]);
    Platform::start_with(redis).await
}

pub(crate) fn start(platform: &Platform, more: &[&str]) -> Server {
    let audit = platform.file("audit.jsonl");
    let flags = [&["--audit", audit.to_str().unwrap()], more].concat();
    Server::start(SERVICE, platform, &flags)
}

pub(crate) async fn executors(platform: &Platform, server: &Server) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(drive::client(platform, server, "executor").await);
    }
    clients
}

/// Memory of Redis when it has been used and holds next to nothing: scripts and such have
/// their room then.
pub(crate) async fn empty(platform: &Platform) -> f64 {
    let server = start(platform, &[]);
    let people = drive::client(platform, &server, "platform").await;
    bulk::fill(&people, 0..1, |_| ("first".to_owned(), "KEY".to_owned())).await;
    memory(platform)
}

/// Measures; what it cannot measure here is as in `given`.
pub(crate) async fn measure(given: &Inputs, size: Size) -> Inputs {
    let platform = platform().await;
    let mut units = given.clone();
    stored(&mut units, &platform, size).await;
    called(&mut units, &platform, size).await;
    units
}

/// Bytes, and what a Create costs.
async fn stored(units: &mut Inputs, platform: &Platform, size: Size) {
    let Size { workspaces, secrets_each, .. } = size;
    let empty = empty(platform).await;
    let of = |prefix: &'static str| {
        move |number: usize| {
            (format!("{prefix}-{}", number % workspaces), format!("KEY_{}", number / workspaces))
        }
    };
    let all = workspaces * secrets_each;
    let rest = (all - workspaces) as f64;
    let (first, full, change) = {
        let mut server = start(platform, &["--max-audit-events", "0"]);
        let people = drive::client(platform, &server, "platform").await;
        bulk::fill(&people, 0..workspaces, of("a")).await;
        let first = memory(platform);
        let before = Did::by_now(platform, &mut server);
        bulk::fill(&people, workspaces..all, of("a")).await;
        let did = Did::by_now(platform, &mut server).since(&before);
        let full = memory(platform);
        // Some of them: these bytes are few, and tables grow by doubling.
        let some = workspaces * secrets_each.min(20);
        let mut updated = full;
        for bytes in [&mut units.version_bytes, &mut units.request_id_bytes] {
            let with_id = updated > full;
            update(&people, (0..some).map(of("a")), with_id).await;
            *bytes = (memory(platform) - updated) / some as f64;
            updated = memory(platform);
        }
        units.request_id_bytes = (units.request_id_bytes - units.version_bytes).max(0.0);
        (first, full, did)
    };
    let updated = memory(platform);
    units.secret_bytes = (full - first) / rest;
    units.workspace_bytes = (first - empty) / workspaces as f64 - units.secret_bytes;
    units.change_micros = change.service_micros / rest;
    units.redis_change_micros = change.redis_micros / rest;
    let server = start(platform, &[]);
    let people = drive::client(platform, &server, "platform").await;
    bulk::fill(&people, 0..all, of("b")).await;
    units.history_bytes = ((memory(platform) - updated) - (full - empty)) / all as f64;
}

/// Gives secrets a new value each.
async fn update(people: &Client, places: impl Iterator<Item = (String, String)>, with_id: bool) {
    stream::iter(places.enumerate())
        .for_each_concurrent(16, |(number, (workspace, name))| {
            let mut people = people.clone();
            let request = platform::with(platform::update(&workspace, &name), |update| {
                update.value = Some(VALUE.to_owned());
                if with_id {
                    update.request_id = format!("0190b1d2-7c3e-4000-8000-{number:012}");
                }
            });
            async move { _ = people.update_secret(request).await.unwrap() }
        })
        .await;
}

/// What a Resolve costs, and what follows from it.
async fn called(units: &mut Inputs, platform: &Platform, size: Size) {
    let Size { rate, turn, .. } = size;
    let mut server = start(platform, &[]);
    let clients = executors(platform, &server).await;
    let idle = idle(platform, &mut server).await;
    [units.idle_micros, units.redis_idle_micros] = idle;
    let at_rate = async |server: &mut Server, count: usize, during: Duration| {
        let asked = drive::names(count);
        let call = |_| drive::request("a-0", &asked);
        let (did, calls) = open::resolve(&clients, rate, call, async |answers| {
            let before = Did::by_now(platform, server);
            *answers.lock().unwrap() = open::Answers::default();
            tokio::time::sleep(during).await;
            let calls = answers.lock().unwrap().all();
            (Did::by_now(platform, server).since(&before), calls)
        })
        .await;
        let seconds = during.as_secs_f64();
        [
            (did.service_micros - idle[0] * seconds) / calls,
            (did.redis_micros - idle[1] * seconds) / calls,
            did.redis_bytes / calls,
        ]
    };
    at_rate(&mut server, 1, turn / 2).await;
    let one = at_rate(&mut server, 1, turn).await;
    let several = at_rate(&mut server, 5.min(size.secrets_each), turn).await;
    let further = (5.min(size.secrets_each) - 1).max(1) as f64;
    let extra = |what: usize| ((several[what] - one[what]) / further).max(0.0);
    units.resolve_micros = one[0];
    units.extra_name_micros = extra(0);
    units.redis_resolve_micros = one[1];
    units.redis_name_micros = extra(1);
    units.redis_resolve_bytes = one[2];
    units.redis_name_bytes = extra(2);
    // With the buffers of these calls.
    units.idle_mib = server.resident() as f64 / 1024.0;

    // Once each, so that each leaves a write of usage; the first time, its record too.
    let before = memory(platform);
    pass(&clients, size, 1).await;
    units.usage_bytes = (memory(platform) - before) / size.workspaces as f64;
    let hot = passes(platform, &mut server, &clients, size, 1, &idle).await;
    let several = 5.min(size.secrets_each);
    pass(&clients, size, several).await;
    let hot_several = passes(platform, &mut server, &clients, size, several, &idle).await;
    drop(server);
    // Keys of 4 s are too old by the next pass.
    let mut server = start(platform, &["--forget-data-keys-after", "4s"]);
    let clients = executors(platform, &server).await;
    pass(&clients, size, 1).await;
    let cold = passes(platform, &mut server, &clients, size, 1, &idle).await;
    // What the Resolve of a pass costs, without its usage.
    let [service, redis, bytes] = one;
    units.usage_write_micros = (hot[0] - service).max(0.0);
    units.redis_usage_micros = (hot[1] - redis).max(0.0);
    units.redis_write_bytes = (hot[3] - bytes).max(1.0);
    let name = |what: usize| ((hot_several[what] - hot[what]) / further).max(0.0);
    units.usage_name_micros = (name(0) - units.extra_name_micros).max(0.0);
    units.redis_usage_name_micros = (name(1) - units.redis_name_micros).max(0.0);
    units.redis_usage_name_bytes = (name(3) - units.redis_name_bytes).max(0.0);
    units.kms_call_micros = (cold[0] - hot[0]).max(0.0) / cold[2].max(1.0);
}

/// CPU of the service and of Redis per second, with nothing to do.
async fn idle(platform: &Platform, server: &mut Server) -> [f64; 2] {
    tokio::time::sleep(USAGE_WRITTEN).await;
    let (before, start) = (Did::by_now(platform, server), Instant::now());
    tokio::time::sleep(USAGE_WRITTEN).await;
    let did = Did::by_now(platform, server).since(&before);
    let seconds = start.elapsed().as_secs_f64();
    [did.service_micros / seconds, did.redis_micros / seconds]
}

/// Resolves once in each workspace, at the rate of all else: a call costs less among many.
async fn pass(clients: &[Client], size: Size, names: usize) {
    let asked = drive::names(names);
    let call = |number| drive::request(&format!("b-{number}"), &asked);
    open::resolve_each(clients, size.rate, size.workspaces, call).await;
    tokio::time::sleep(USAGE_WRITTEN).await;
}

/// Of a Resolve with its write of usage: CPU of the service, of Redis, KMS calls, bytes to
/// and from Redis.
async fn passes(
    platform: &Platform,
    server: &mut Server,
    clients: &[Client],
    size: Size,
    names: usize,
    idle: &[f64; 2],
) -> [f64; 4] {
    let (before, start) = (Did::by_now(platform, server), Instant::now());
    for _ in 0..PASSES {
        pass(clients, size, names).await;
    }
    let did = Did::by_now(platform, server).since(&before);
    let seconds = start.elapsed().as_secs_f64();
    let calls = (PASSES * size.workspaces) as f64;
    [
        (did.service_micros - idle[0] * seconds) / calls,
        (did.redis_micros - idle[1] * seconds) / calls,
        did.kms_calls / calls,
        did.redis_bytes / calls,
    ]
}

/// As flags of the model.
pub(crate) fn flags(units: &Inputs) -> String {
    let flags = [
        ("resolve-micros", units.resolve_micros),
        ("extra-name-micros", units.extra_name_micros),
        ("kms-call-micros", units.kms_call_micros),
        ("usage-write-micros", units.usage_write_micros),
        ("usage-name-micros", units.usage_name_micros),
        ("change-micros", units.change_micros),
        ("idle-micros", units.idle_micros),
        ("redis-idle-micros", units.redis_idle_micros),
        ("redis-resolve-micros", units.redis_resolve_micros),
        ("redis-name-micros", units.redis_name_micros),
        ("redis-usage-micros", units.redis_usage_micros),
        ("redis-usage-name-micros", units.redis_usage_name_micros),
        ("redis-change-micros", units.redis_change_micros),
        ("idle-mib", units.idle_mib),
        ("workspace-bytes", units.workspace_bytes),
        ("secret-bytes", units.secret_bytes),
        ("usage-bytes", units.usage_bytes),
        ("history-bytes", units.history_bytes),
        ("version-bytes", units.version_bytes),
        ("request-id-bytes", units.request_id_bytes),
        ("redis-resolve-bytes", units.redis_resolve_bytes),
        ("redis-name-bytes", units.redis_name_bytes),
        ("redis-write-bytes", units.redis_write_bytes),
        ("redis-usage-name-bytes", units.redis_usage_name_bytes),
    ];
    flags.map(|(name, number)| format!("--{name} {number:.1}")).join(" ")
}
