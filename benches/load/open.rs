//! Callers that come at a rate, whether or not earlier ones have their answer.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use workflow_secrets::grpc::proto::ResolveSecretsRequest;

use crate::{
    process::Server,
    support::platform::{Client, Platform},
};

/// What a service, its Redis and its KMS have done since they began.
#[derive(Clone, Copy)]
pub(crate) struct Did {
    pub(crate) service_micros: f64,
    pub(crate) redis_micros: f64,
    pub(crate) redis_bytes: f64,
    pub(crate) kms_calls: f64,
    pub(crate) scripts: f64,
    at: Instant,
}

impl Did {
    pub(crate) fn by_now(platform: &Platform, server: &mut Server) -> Self {
        let info = info(platform, &["cpu", "stats"]);
        let seconds = number(&info, "used_cpu_sys") + number(&info, "used_cpu_user");
        let bytes = ["total_net_input_bytes", "total_net_output_bytes"];
        Self {
            service_micros: server.used().cpu_micros,
            redis_micros: seconds * 1e6,
            redis_bytes: bytes.iter().map(|name| number(&info, name)).sum(),
            kms_calls: platform.kms.decrypts() as f64,
            scripts: platform.redis.calls("evalsha") as f64,
            at: Instant::now(),
        }
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            service_micros: self.service_micros - before.service_micros,
            redis_micros: self.redis_micros - before.redis_micros,
            redis_bytes: self.redis_bytes - before.redis_bytes,
            kms_calls: self.kms_calls - before.kms_calls,
            scripts: self.scripts - before.scripts,
            at: before.at,
        }
    }

    /// From the first to the last look, in seconds.
    pub(crate) fn seconds(&self, last: &Self) -> f64 {
        (last.at - self.at).as_secs_f64()
    }
}

/// Bytes that Redis says it uses, callers' buffers apart.
pub(crate) fn memory(platform: &Platform) -> f64 {
    let info = info(platform, &["memory"]);
    let beside = ["mem_clients_normal", "mem_aof_buffer"];
    number(&info, "used_memory") - beside.iter().map(|name| number(&info, name)).sum::<f64>()
}

fn info(platform: &Platform, sections: &[&str]) -> String {
    platform.redis.cli(&[&["INFO"], sections].concat())
}

fn number(info: &str, name: &str) -> f64 {
    let head = format!("{name}:");
    let line = info.lines().find_map(|line| line.strip_prefix(&head));
    line.unwrap_or_else(|| panic!("INFO has no {name}")).trim().parse().unwrap()
}

/// Answers that came, and those that did not.
#[derive(Default)]
pub(crate) struct Answers {
    /// In microseconds since a call was due.
    latencies: Vec<u32>,
    failed: usize,
}

impl Answers {
    /// How many, unless calls failed: what was measured would then say nothing.
    pub(crate) fn all(&self) -> f64 {
        let all = self.latencies.len() + self.failed;
        assert!(self.failed * 1_000 <= all, "{} of {all} failed: too much here", self.failed);
        all as f64
    }

    /// So many of a thousand calls took at most this, in milliseconds.
    pub(crate) fn permille(&mut self, share: usize) -> f64 {
        self.latencies.sort_unstable();
        let place = self.latencies.len().saturating_sub(1) * share / 1000;
        self.latencies.get(place).map_or(f64::NAN, |micros| f64::from(*micros) / 1e3)
    }
}

/// Resolves at this rate while `meanwhile` goes on, which gets the answers as they come.
/// The request of a call is made from its number.
pub(crate) async fn resolve<T>(
    clients: &[Client],
    rate: f64,
    request: impl Fn(u64) -> ResolveSecretsRequest,
    meanwhile: impl AsyncFnOnce(&Mutex<Answers>) -> T,
) -> T {
    let answers = Arc::new(Mutex::new(Answers::default()));
    let stop = CancellationToken::new();
    let drive = async {
        let start = Instant::now();
        let mut calls = JoinSet::new();
        for number in 0.. {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            // Timers are good for a millisecond: those due within one go together.
            if due > Instant::now() {
                let wake = tokio::time::sleep_until((due + Duration::from_millis(1)).into());
                if stop.run_until_cancelled(wake).await.is_none() {
                    break;
                }
            } else if stop.is_cancelled() {
                break;
            }
            let mut client = clients[number as usize % clients.len()].clone();
            let (request, answers) = (request(number), Arc::clone(&answers));
            calls.spawn(async move {
                let answer = client.resolve_secrets(request).await;
                let took = u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX);
                let mut answers = answers.lock().unwrap();
                match answer {
                    Ok(_) => answers.latencies.push(took),
                    Err(_) => answers.failed += 1,
                }
            });
            while calls.try_join_next().is_some() {}
        }
        calls.join_all().await;
    };
    let watch = async {
        let outcome = meanwhile(&answers).await;
        stop.cancel();
        outcome
    };
    tokio::join!(drive, watch).1
}

/// Resolves so often at this rate; none may fail.
pub(crate) async fn resolve_each(
    clients: &[Client],
    rate: f64,
    count: usize,
    request: impl Fn(usize) -> ResolveSecretsRequest,
) {
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for number in 0..count {
        tokio::time::sleep_until((start + Duration::from_secs_f64(number as f64 / rate)).into())
            .await;
        let (mut client, request) = (clients[number % clients.len()].clone(), request(number));
        calls.spawn(async move { _ = client.resolve_secrets(request).await.unwrap() });
    }
    calls.join_all().await;
}

/// Waits until the service begins to write usage, which it does now and then.
pub(crate) async fn usage_is_written(platform: &Platform) {
    let scripts = || platform.redis.calls("evalsha");
    let (mut before, mut quiet) = (scripts(), 0);
    // If it never pauses, any moment is as good.
    for _ in 0..75 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = scripts();
        match now > before {
            true if quiet >= 3 => return,
            true => quiet = 0,
            false => quiet += 1,
        }
        before = now;
    }
}

/// A number that looks random, from another.
pub(crate) fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
