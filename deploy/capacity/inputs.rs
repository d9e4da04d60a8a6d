//! What goes into the model: flags, each with its default, its unit and where the
//! default comes from. Every number that anybody may want to change is here.
//!
//! Unit costs are those of one thread of the machine they were measured on. To put in
//! your own: `cargo bench --bench load -- capacity` prints them as flags.

use clap::Args;
use serde::Serialize;

/// All inputs. Times of work are CPU microseconds.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Inputs {
    /// Workspaces in the store
    #[arg(long, default_value = "1000000", value_parser = whole, help_heading = LOAD)]
    pub(crate) workspaces: f64,
    /// Secrets in the store, all workspaces together
    #[arg(long, default_value = "100000000", value_parser = whole, help_heading = LOAD)]
    pub(crate) secrets: f64,
    /// Resolves per second at peak, all workspaces together
    #[arg(long, default_value = "200000", value_parser = positive, help_heading = LOAD)]
    pub(crate) resolves_per_second: f64,
    /// Names in one Resolve, on average, at most 100
    #[arg(long, default_value = "2", value_parser = names, help_heading = LOAD)]
    pub(crate) names_per_resolve: f64,
    /// Share of the workspaces that resolve at all at peak. Assumed: all of them
    #[arg(long, default_value = "1", value_parser = share, help_heading = LOAD)]
    pub(crate) active_share: f64,
    /// Share of the active workspaces that are hot. Assumed; read it off your audit stream
    #[arg(long, default_value = "0.1", value_parser = share, help_heading = LOAD)]
    pub(crate) hot_share: f64,
    /// Share of the Resolves that hot workspaces make. Assumed, as above
    #[arg(long, default_value = "0.8", value_parser = share, help_heading = LOAD)]
    pub(crate) hot_load: f64,
    /// Creates and Updates per second. Assumed: one secret in 72 is a token renewed hourly
    #[arg(long, default_value = "400", value_parser = not_negative, help_heading = LOAD)]
    pub(crate) changes_per_second: f64,
    /// Share of the changes that bear a request_id, remembered for a day
    #[arg(long, default_value = "1", value_parser = share_or_none, help_heading = LOAD)]
    pub(crate) request_id_share: f64,
    /// Workspaces created per day
    #[arg(long, default_value = "1000", value_parser = not_negative, help_heading = LOAD)]
    pub(crate) new_workspaces_per_day: f64,

    /// Bytes of a value, on average: padded to powers of two from 64 on, with 25 of its own
    #[arg(long, default_value = "29", value_parser = value_bytes, help_heading = STORED)]
    pub(crate) value_bytes: f64,
    /// Earlier versions kept per secret, on average
    #[arg(long, default_value = "1", value_parser = not_negative, help_heading = STORED)]
    pub(crate) earlier_versions: f64,
    /// Share of the secrets that a run has asked for
    #[arg(long, default_value = "1", value_parser = share_or_none, help_heading = STORED)]
    pub(crate) used_share: f64,
    /// Workflows remembered per such secret, at most 100
    #[arg(long, default_value = "2", value_parser = not_negative, help_heading = STORED)]
    pub(crate) workflows_per_secret: f64,
    /// Entries of the audit history per workspace (`--max-audit-events`: at most 10,000)
    #[arg(long, default_value = "200", value_parser = not_negative, help_heading = STORED)]
    pub(crate) history_per_workspace: f64,

    /// Service: a Resolve of one name with its audit line. `load -- hot`, 64 at once
    #[arg(long, default_value = "55", value_parser = positive, help_heading = CPU)]
    pub(crate) resolve_micros: f64,
    /// Service: each further name. `load -- hot`, 10 names
    #[arg(long, default_value = "6.5", value_parser = not_negative, help_heading = CPU)]
    pub(crate) extra_name_micros: f64,
    /// Service: a KMS call. `load -- capacity`, and as much again assumed for TLS to AWS
    #[arg(long, default_value = "590", value_parser = not_negative, help_heading = CPU)]
    pub(crate) kms_call_micros: f64,
    /// Service: writing the usage of one workspace behind. `load -- capacity`
    #[arg(long, default_value = "72", value_parser = not_negative, help_heading = CPU)]
    pub(crate) usage_write_micros: f64,
    /// Service: each further name of it. `load -- capacity`
    #[arg(long, default_value = "12", value_parser = not_negative, help_heading = CPU)]
    pub(crate) usage_name_micros: f64,
    /// Service: a Create or Update. `load -- capacity`
    #[arg(long, default_value = "156", value_parser = not_negative, help_heading = CPU)]
    pub(crate) change_micros: f64,
    /// Redis: the reads of a Resolve of one name (HMGET and GET). At 4,000/s; 41 at few
    /// hundred, when it serves each by itself. `load -- capacity`
    #[arg(long, default_value = "24", value_parser = positive, help_heading = CPU)]
    pub(crate) redis_resolve_micros: f64,
    /// Redis: each further name of a Resolve. `load -- capacity`
    #[arg(long, default_value = "2", value_parser = not_negative, help_heading = CPU)]
    pub(crate) redis_name_micros: f64,
    /// Redis: writing the usage of one workspace (a read, a script). `load -- capacity`
    #[arg(long, default_value = "50", value_parser = not_negative, help_heading = CPU)]
    pub(crate) redis_usage_micros: f64,
    /// Redis: each further name of it. `load -- capacity`
    #[arg(long, default_value = "8", value_parser = not_negative, help_heading = CPU)]
    pub(crate) redis_usage_name_micros: f64,
    /// Redis: a Create or Update, append-only file included. `load -- capacity`
    #[arg(long, default_value = "65", value_parser = not_negative, help_heading = CPU)]
    pub(crate) redis_change_micros: f64,
    /// Service: a replica with nothing to do, per second. `load -- capacity`
    #[arg(long, default_value = "1800", value_parser = not_negative, help_heading = CPU)]
    pub(crate) idle_micros: f64,
    /// Redis: a shard with nothing to do, per second. `load -- capacity`
    #[arg(long, default_value = "1900", value_parser = not_negative, help_heading = CPU)]
    pub(crate) redis_idle_micros: f64,

    /// vCPUs of a replica. c7g.xlarge
    #[arg(long, default_value = "4", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) replica_vcpus: f64,
    /// Memory of a replica, GiB. c7g.xlarge
    #[arg(long, default_value = "8", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) replica_gib: f64,
    /// Network of a replica, Gbit/s. Baseline of c7g.xlarge
    #[arg(long, default_value = "1.876", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) replica_gbit: f64,
    /// Share of CPU and network of a replica to use at peak, a zone being lost
    #[arg(long, default_value = "0.6", value_parser = share, help_heading = REPLICAS)]
    pub(crate) replica_target: f64,
    /// Zones; one may be lost. With 1 there is one replica more than needed
    #[arg(long, default_value = "3", value_parser = whole, help_heading = REPLICAS)]
    pub(crate) zones: f64,
    /// Resident memory without work, MiB. `load -- hot` prints it
    #[arg(long, default_value = "20", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) idle_mib: f64,
    /// Memory of a cached data key, bytes. `load -- cold`: growth by workspaces
    #[arg(long, default_value = "2450", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) cached_key_bytes: f64,
    /// Connections of callers to a replica
    #[arg(long, default_value = "500", value_parser = not_negative, help_heading = REPLICAS)]
    pub(crate) connections: f64,
    /// Memory of a connection, KiB (TLS, HTTP/2). Assumed
    #[arg(long, default_value = "64", value_parser = not_negative, help_heading = REPLICAS)]
    pub(crate) connection_kib: f64,
    /// Memory of a call under way, KiB. Assumed
    #[arg(long, default_value = "32", value_parser = not_negative, help_heading = REPLICAS)]
    pub(crate) call_kib: f64,
    /// Time that a hot Resolve takes, milliseconds. `load -- hot`, p50 at 64 at once
    #[arg(long, default_value = "3", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) call_millis: f64,
    /// Calls of a workspace at work at once per replica (`--max-workspace-calls-at-once`)
    #[arg(long, default_value = "16", value_parser = whole, help_heading = REPLICAS)]
    pub(crate) workspace_calls: f64,
    /// Bytes on the wire of a Resolve, both ways, with TLS, TCP and IP. Computed
    #[arg(long, default_value = "900", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) client_bytes: f64,
    /// Bytes of each further name, both ways. Computed
    #[arg(long, default_value = "180", value_parser = not_negative, help_heading = REPLICAS)]
    pub(crate) client_name_bytes: f64,
    /// Bytes of an audit line, of which a Resolve leaves one per name. Computed from UUIDs
    #[arg(long, default_value = "380", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) audit_line_bytes: f64,
    /// Seconds between two writes of usage. In the code: 5
    #[arg(long, default_value = "5", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) usage_every: f64,
    /// Time of writing the usage of a workspace, milliseconds; 8 at once. Assumed: 2 trips
    #[arg(long, default_value = "1.5", value_parser = positive, help_heading = REPLICAS)]
    pub(crate) usage_write_millis: f64,

    /// All calls of a workspace go to one replica (by the load balancer or the client)
    #[arg(long, help_heading = KMS)]
    pub(crate) affinity: bool,
    /// Data keys cached per replica (`--max-data-keys`)
    #[arg(long, default_value = "10000", value_parser = whole, help_heading = KMS)]
    pub(crate) cache_keys: f64,
    /// Age at which a key in use is asked for again, minutes. A quarter of
    /// `--forget-data-keys-after`, so at most 15 today
    #[arg(long, default_value = "15", value_parser = positive, help_heading = KMS)]
    pub(crate) soft_minutes: f64,
    /// Age at which a key is dropped, minutes (`--forget-data-keys-after`)
    #[arg(long, default_value = "60", value_parser = positive, help_heading = KMS)]
    pub(crate) hard_minutes: f64,
    /// KMS requests per second that the account may make in the region. 10,000 by
    /// default, 20,000 or 100,000 in some regions, adjustable
    /// (docs.aws.amazon.com/kms/latest/developerguide/requests-per-second.html, 2026-11)
    #[arg(long, default_value = "10000", value_parser = positive, help_heading = KMS)]
    pub(crate) kms_quota: f64,
    /// Time of a KMS call, milliseconds. Assumed
    #[arg(long, default_value = "10", value_parser = positive, help_heading = KMS)]
    pub(crate) kms_millis: f64,
    /// KMS calls at once per replica. In the code: 50
    #[arg(long, default_value = "50", value_parser = whole, help_heading = KMS)]
    pub(crate) kms_places: f64,
    /// Days after which a data key is replaced (`--rotate-data-keys-after`)
    #[arg(long, default_value = "365", value_parser = positive, help_heading = KMS)]
    pub(crate) rotate_days: f64,
    /// Restarts of each replica per day, one replica after another
    #[arg(long, default_value = "1", value_parser = not_negative, help_heading = KMS)]
    pub(crate) restarts_per_day: f64,

    /// Bytes of a workspace (its keys in Redis, its data key). `load -- capacity`
    #[arg(long, default_value = "403", value_parser = positive, help_heading = REDIS)]
    pub(crate) workspace_bytes: f64,
    /// Bytes of a secret (metadata, value, index), 100 per workspace. `load -- capacity`
    #[arg(long, default_value = "766", value_parser = positive, help_heading = REDIS)]
    pub(crate) secret_bytes: f64,
    /// Bytes of an earlier version. `load -- capacity`
    #[arg(long, default_value = "506", value_parser = not_negative, help_heading = REDIS)]
    pub(crate) version_bytes: f64,
    /// Bytes of the usage of a secret with one workflow. `load -- capacity`
    #[arg(long, default_value = "246", value_parser = not_negative, help_heading = REDIS)]
    pub(crate) usage_bytes: f64,
    /// Bytes of each further workflow. Computed: an id and a time
    #[arg(long, default_value = "56", value_parser = not_negative, help_heading = REDIS)]
    pub(crate) workflow_bytes: f64,
    /// Bytes of an entry of the audit history. `load -- capacity`
    #[arg(long, default_value = "338", value_parser = not_negative, help_heading = REDIS)]
    pub(crate) history_bytes: f64,
    /// Bytes of a remembered request_id. `load -- capacity`
    #[arg(long, default_value = "463", value_parser = not_negative, help_heading = REDIS)]
    pub(crate) request_id_bytes: f64,
    /// Resident memory of Redis to what it says it uses. Assumed
    #[arg(long, default_value = "1.1", value_parser = at_least_one, help_heading = REDIS)]
    pub(crate) fragmentation: f64,
    /// Memory of a Redis node, GiB. r7g.xlarge
    #[arg(long, default_value = "32", value_parser = positive, help_heading = REDIS)]
    pub(crate) redis_gib: f64,
    /// Share of it for maxmemory; the rest is for copies while it forks, for replication
    /// and for the system
    #[arg(long, default_value = "0.7", value_parser = share, help_heading = REDIS)]
    pub(crate) maxmemory_share: f64,
    /// Share of maxmemory to fill; the rest is for growth until somebody adds shards
    #[arg(long, default_value = "0.8", value_parser = share, help_heading = REDIS)]
    pub(crate) redis_fill: f64,
    /// Share of its one core that a shard may use at peak
    #[arg(long, default_value = "0.6", value_parser = share, help_heading = REDIS)]
    pub(crate) redis_target: f64,
    /// Load of the busiest shard to the average
    #[arg(long, default_value = "1.2", value_parser = at_least_one, help_heading = REDIS)]
    pub(crate) shard_skew: f64,
    /// Replicas of each shard
    #[arg(long, default_value = "2", value_parser = whole_or_none, help_heading = REDIS)]
    pub(crate) redis_replicas: f64,
    /// Network of a Redis node, Gbit/s. Baseline of r7g.xlarge
    #[arg(long, default_value = "1.876", value_parser = positive, help_heading = REDIS)]
    pub(crate) redis_gbit: f64,
    /// Bytes between service and Redis for a Resolve of one name. `load -- capacity`
    #[arg(long, default_value = "900", value_parser = positive, help_heading = REDIS)]
    pub(crate) redis_resolve_bytes: f64,
    /// The same for each further name. `load -- capacity`
    #[arg(long, default_value = "450", value_parser = not_negative, help_heading = REDIS)]
    pub(crate) redis_name_bytes: f64,
    /// The same to write: usage of a workspace, or a change. `load -- capacity`
    #[arg(long, default_value = "1050", value_parser = positive, help_heading = REDIS)]
    pub(crate) redis_write_bytes: f64,
    /// The same for each further name of a write of usage. `load -- capacity`
    #[arg(long, default_value = "400", value_parser = not_negative, help_heading = REDIS)]
    pub(crate) redis_usage_name_bytes: f64,

    /// A replica's hour. c7g.xlarge, on demand, us-east-1, Linux: replace by your own
    #[arg(long, default_value = "0.145", value_parser = not_negative, help_heading = DOLLARS)]
    pub(crate) replica_hour: f64,
    /// A Redis node's hour. r7g.xlarge, on demand, us-east-1, Linux: replace by your own
    #[arg(long, default_value = "0.2142", value_parser = not_negative, help_heading = DOLLARS)]
    pub(crate) redis_hour: f64,
    /// 10,000 KMS requests (aws.amazon.com/kms/pricing, 2026-11)
    #[arg(long, default_value = "0.03", value_parser = not_negative, help_heading = DOLLARS)]
    pub(crate) kms_requests: f64,
    /// A KMS key's month; there is one (same page)
    #[arg(long, default_value = "1", value_parser = not_negative, help_heading = DOLLARS)]
    pub(crate) kms_key: f64,
    /// A GB between zones, in and out together: replace by your own
    #[arg(long, default_value = "0.02", value_parser = not_negative, help_heading = DOLLARS)]
    pub(crate) zone_gb: f64,
    /// Hours of a month
    #[arg(long, default_value = "730", value_parser = positive, help_heading = DOLLARS)]
    pub(crate) month_hours: f64,
}

const LOAD: &str = "Load";
const STORED: &str = "What is stored";
const CPU: &str = "Unit costs, CPU microseconds";
const REPLICAS: &str = "Replicas";
const KMS: &str = "KMS";
const REDIS: &str = "Redis";
const DOLLARS: &str = "Dollars";

const MOST: f64 = 1e13;

impl Inputs {
    /// What no single flag shows.
    pub(crate) fn check(&self) -> Result<(), String> {
        let wrong = [
            (self.workspaces * self.active_share < 1.0, "--active-share: not one workspace"),
            (self.hard_minutes < self.soft_minutes, "--hard-minutes: less than --soft-minutes"),
            (
                self.hot_load < self.hot_share,
                "--hot-load: less than --hot-share, so the hot ones would be the others",
            ),
            (
                self.hot_share == 1.0 && self.hot_load < 1.0,
                "--hot-share: with 1 there is nobody for the rest of the load",
            ),
        ];
        wrong.iter().find(|(is, _)| *is).map_or(Ok(()), |(_, what)| Err((*what).to_owned()))
    }
}

fn number(text: &str, rule: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.replace('_', "").parse::<f64>() {
        Ok(number) if number.is_finite() && number > MOST => {
            Err(format!("more than {MOST:e}: a slip of the keyboard?"))
        }
        Ok(number) if number.is_finite() && fits(number) => Ok(number),
        _ => Err(format!("must be {rule}")),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |number| number >= 1e-9)
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "0 or a number above", |number| number >= 0.0)
}

fn at_least_one(text: &str) -> Result<f64, String> {
    number(text, "1 or a number above", |number| number >= 1.0)
}

fn whole(text: &str) -> Result<f64, String> {
    number(text, "a whole number from 1", |number| number >= 1.0 && number.fract() == 0.0)
}

fn whole_or_none(text: &str) -> Result<f64, String> {
    number(text, "a whole number from 0", |number| number >= 0.0 && number.fract() == 0.0)
}

fn names(text: &str) -> Result<f64, String> {
    number(text, "a number from 1 to 100", |number| (1.0..=100.0).contains(&number))
}

fn value_bytes(text: &str) -> Result<f64, String> {
    number(text, "a number from 1 to 65536", |number| (1.0..=65_536.0).contains(&number))
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a share: above 0 and no more than 1", |number| number > 0.0 && number <= 1.0)
}

fn share_or_none(text: &str) -> Result<f64, String> {
    number(text, "a share: from 0 to 1", |number| (0.0..=1.0).contains(&number))
}
