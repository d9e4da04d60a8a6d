//! From inputs to an outcome. Pure: the same in, the same out.

use serde::Serialize;

use crate::{
    cache::{Cache, Caching, Class, bisect},
    inputs::Inputs,
    usage::behind,
};

const DAY: f64 = 86_400.0;
const GIB: f64 = 1_073_741_824.0;
const MIB: f64 = 1_048_576.0;
const MICRO: f64 = 1e-6;

/// In the code: lines of the audit stream that wait (`queue_bytes`).
const AUDIT_QUEUE_BYTES: f64 = 8.0 * MIB;
/// Bytes on the wire of a KMS call, both ways.
const KMS_CALL_BYTES: f64 = 4_000.0;
/// Masters of a Redis Cluster.
const CLUSTER: f64 = 3.0;

/// What so many replicas do together, per second.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Load {
    pub(crate) replicas: f64,
    /// CPU cores of all replicas, and what takes them.
    pub(crate) cores: f64,
    pub(crate) resolve_cores: f64,
    pub(crate) kms_cores: f64,
    pub(crate) usage_cores: f64,
    /// Bytes on the wire of all replicas.
    pub(crate) bytes: f64,
    /// Resident memory of one replica, in bytes.
    pub(crate) replica_memory: f64,
    /// Data keys, of one replica.
    pub(crate) caching: Caching,
    /// KMS calls of all replicas.
    pub(crate) kms_calls: f64,
    /// Usage of so many workspaces is written, and this share is not noted at all.
    pub(crate) usage_writes: f64,
    pub(crate) usage_lost: f64,
    /// CPU cores of Redis, masters only, what takes them, and bytes. Of what they take
    /// with nothing to do, that of one.
    pub(crate) redis_cores: f64,
    pub(crate) redis_resolve_cores: f64,
    pub(crate) redis_usage_cores: f64,
    pub(crate) redis_bytes: f64,
    pub(crate) redis_written_bytes: f64,
    pub(crate) audit_bytes: f64,
}

/// How much of everything.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    pub(crate) load: Load,
    /// Replicas needed with all zones, and in all, so that a zone may be lost.
    pub(crate) replicas_needed: f64,
    pub(crate) replicas: f64,
    pub(crate) replicas_bound: &'static str,
    /// Active workspaces that ask a replica.
    pub(crate) workspaces_met: f64,
    pub(crate) store_bytes: f64,
    pub(crate) shards: f64,
    pub(crate) shards_bound: &'static str,
    pub(crate) shards_for_memory: f64,
    pub(crate) shards_for_cpu: f64,
    pub(crate) shards_for_network: f64,
    pub(crate) redis_nodes: f64,
    pub(crate) shard_bytes: f64,
    /// KMS calls at peak to the quota.
    pub(crate) kms_to_quota: f64,
    /// So many active workspaces use the quota up, at the same Resolves per second.
    pub(crate) quota_at: f64,
    /// Seconds until a replica that starts is warm; `None`: never.
    pub(crate) warm_up: Option<f64>,
    /// Most Resolves per second of one workspace, and why.
    pub(crate) one_workspace: f64,
    pub(crate) one_workspace_bound: &'static str,
    pub(crate) dollars: Dollars,
    /// Why it does not work as it is.
    pub(crate) obstacles: Vec<String>,
    /// What works only in part.
    pub(crate) warnings: Vec<String>,
}

/// Per month.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Dollars {
    pub(crate) replicas: f64,
    pub(crate) redis: f64,
    pub(crate) kms: f64,
    pub(crate) zones: f64,
}

impl Dollars {
    pub(crate) fn sum(&self) -> f64 {
        self.replicas + self.redis + self.kms + self.zones
    }
}

/// The active workspaces by how often they resolve.
pub(crate) fn classes(inputs: &Inputs) -> [Class; 2] {
    let active = inputs.workspaces * inputs.active_share;
    let class = |share: f64, load: f64| {
        let workspaces = active * share;
        let rate =
            if workspaces > 0.0 { inputs.resolves_per_second * load / workspaces } else { 0.0 };
        Class { workspaces, rate }
    };
    [class(inputs.hot_share, inputs.hot_load), class(1.0 - inputs.hot_share, 1.0 - inputs.hot_load)]
}

/// The same as one of so many replicas meets them: all of them at a part of their rate,
/// or a part of them.
fn met(inputs: &Inputs, replicas: f64) -> [Class; 2] {
    classes(inputs).map(|of| match inputs.affinity {
        true => Class { workspaces: of.workspaces / replicas, ..of },
        false => Class { rate: of.rate / replicas, ..of },
    })
}

fn cache(inputs: &Inputs) -> Cache {
    let (soft, hard) = (inputs.soft_minutes * 60.0, inputs.hard_minutes * 60.0);
    Cache { keys: inputs.cache_keys, soft, hard }
}

/// What so many replicas do.
pub(crate) fn load(inputs: &Inputs, replicas: f64) -> Load {
    let met = met(inputs, replicas);
    let (caching, behind) = (cache(inputs).caching(&met), behind(inputs, &met));
    let extra = inputs.names_per_resolve - 1.0;
    let resolves = inputs.resolves_per_second;
    let changes = inputs.changes_per_second;
    let usage_writes = behind.writes * replicas;

    // A new workspace: its key is made and unwrapped. One replaced is unwrapped once
    // more before.
    let made = inputs.new_workspaces_per_day / DAY * 2.0
        + inputs.workspaces / (inputs.rotate_days * DAY) * 3.0;
    let restarts = inputs.restarts_per_day * replicas / DAY * caching.held;
    let kms_calls = caching.calls * replicas + made + restarts;

    let resolve_cores =
        resolves * (inputs.resolve_micros + extra * inputs.extra_name_micros) * MICRO;
    let kms_cores = kms_calls * inputs.kms_call_micros * MICRO;
    let further = (behind.names - 1.0).max(0.0);
    let usage_micros = inputs.usage_write_micros + further * inputs.usage_name_micros;
    let usage_cores = usage_writes * usage_micros * MICRO;
    let redis_resolve_micros = inputs.redis_resolve_micros + extra * inputs.redis_name_micros;
    let redis_resolve_cores = resolves * redis_resolve_micros * MICRO;
    let redis_usage_micros = inputs.redis_usage_micros + further * inputs.redis_usage_name_micros;
    let redis_usage_cores = usage_writes * redis_usage_micros * MICRO;

    let written = (usage_writes + changes) * inputs.redis_write_bytes
        + usage_writes * further * inputs.redis_usage_name_bytes;
    let redis_bytes =
        resolves * (inputs.redis_resolve_bytes + extra * inputs.redis_name_bytes) + written;
    let client_bytes = resolves * (inputs.client_bytes + extra * inputs.client_name_bytes);
    let audit_bytes = (resolves * inputs.names_per_resolve + changes) * inputs.audit_line_bytes;

    let calls = resolves / replicas * inputs.call_millis / 1e3;
    let replica_memory = inputs.idle_mib * MIB
        + caching.held * inputs.cached_key_bytes
        + inputs.connections * inputs.connection_kib * 1024.0
        + calls * inputs.call_kib * 1024.0
        + behind.bytes
        + (audit_bytes / replicas * inputs.call_millis / 1e3).min(AUDIT_QUEUE_BYTES);
    Load {
        replicas,
        cores: resolve_cores
            + kms_cores
            + usage_cores
            + changes * inputs.change_micros * MICRO
            + replicas * inputs.idle_micros * MICRO,
        resolve_cores,
        kms_cores,
        usage_cores,
        bytes: client_bytes + redis_bytes + audit_bytes + kms_calls * KMS_CALL_BYTES,
        replica_memory,
        caching,
        kms_calls,
        usage_writes,
        usage_lost: behind.lost,
        redis_cores: redis_resolve_cores
            + redis_usage_cores
            + changes * inputs.redis_change_micros * MICRO
            + inputs.redis_idle_micros * MICRO,
        redis_resolve_cores,
        redis_usage_cores,
        redis_bytes,
        redis_written_bytes: written,
        audit_bytes,
    }
}

/// What Redis holds, as it counts it (`used_memory`).
pub(crate) fn store_bytes(inputs: &Inputs) -> f64 {
    // A value is padded with what is sealed beside it.
    let padded = |value: f64| match value + 25.0 {
        sealed if sealed <= 4_096.0 => sealed.max(64.0).log2().ceil().exp2(),
        sealed => (sealed / 4_096.0).ceil() * 4_096.0,
    };
    let longer = padded(inputs.value_bytes) - padded(1.0);
    let workflows = (inputs.workflows_per_secret - 1.0).clamp(0.0, 99.0);
    let usage = inputs.usage_bytes + workflows * inputs.workflow_bytes;
    let secret = inputs.secret_bytes
        + longer
        + inputs.earlier_versions * (inputs.version_bytes + longer)
        + inputs.used_share * usage;
    let workspace = inputs.workspace_bytes + inputs.history_per_workspace * inputs.history_bytes;
    let requests = inputs.changes_per_second * DAY * inputs.request_id_share;
    inputs.secrets * secret + inputs.workspaces * workspace + requests * inputs.request_id_bytes
}

/// Replicas that do the load of so many, with what bounds them.
fn replicas_for(inputs: &Inputs, load: &Load) -> (f64, &'static str) {
    let cpu = load.cores / (inputs.replica_vcpus * inputs.replica_target);
    let network = load.bytes * 8.0 / (inputs.replica_gbit * 1e9 * inputs.replica_target);
    let bound = if cpu >= network { "CPU" } else { "network" };
    (cpu.max(network).ceil().max(1.0), bound)
}

/// So many more that a zone may be lost; in one zone, one.
fn with_spare(inputs: &Inputs, needed: f64) -> f64 {
    if inputs.zones < 2.0 {
        return needed + 1.0;
    }
    (needed / (inputs.zones - 1.0)).ceil() * inputs.zones
}

/// How much of everything the inputs ask for.
pub(crate) fn plan(inputs: &Inputs) -> Plan {
    // The least that are enough. How much there is to do depends on how many they are:
    // more replicas ask the KMS more, or with affinity less, as each has fewer keys.
    let mut tried = 1.0_f64;
    let (load, needed, replicas_bound) = loop {
        let load = load(inputs, with_spare(inputs, tried));
        let (needed, bound) = replicas_for(inputs, &load);
        if needed <= tried {
            break (load, needed, bound);
        }
        tried = (tried + 1.0).max((tried * 1.01).floor());
    };
    let replicas = load.replicas;

    let store_bytes = store_bytes(inputs);
    let room = inputs.redis_gib * GIB * inputs.maxmemory_share * inputs.redis_fill;
    let shards_for_memory = (store_bytes * inputs.fragmentation / room).ceil();
    let shards_for_cpu = (load.redis_cores * inputs.shard_skew / inputs.redis_target).ceil();
    let shards_for_network = (load.redis_bytes * inputs.shard_skew * 8.0
        / (inputs.redis_gbit * 1e9 * inputs.redis_target))
        .ceil();
    let (mut shards, mut shards_bound) = [
        (shards_for_memory, "memory"),
        (shards_for_cpu, "CPU of a shard's one core"),
        (shards_for_network, "network"),
    ]
    .into_iter()
    .fold((1.0, "one is enough"), |most, next| if next.0 > most.0 { next } else { most });
    if shards > 1.0 && shards < CLUSTER {
        (shards, shards_bound) = (CLUSTER, "least of a cluster");
    }
    let redis_nodes = shards * (1.0 + inputs.redis_replicas);

    let month = inputs.month_hours * 3_600.0;
    // Of what replicas send and get, and Redis replicates, this part leaves the zone.
    let leaves = 1.0 - 1.0 / inputs.zones.max(1.0);
    let copied = load.redis_written_bytes * inputs.redis_replicas;
    let crossing = (load.bytes - load.audit_bytes + copied) * leaves;
    let dollars = Dollars {
        replicas: replicas * inputs.replica_hour * inputs.month_hours,
        redis: redis_nodes * inputs.redis_hour * inputs.month_hours,
        kms: load.kms_calls * month / 1e4 * inputs.kms_requests + inputs.kms_key,
        zones: crossing * month / 1e9 * inputs.zone_gb,
    };

    let left = (inputs.kms_quota - load.kms_calls).max(0.0);
    let most = (inputs.kms_places / (inputs.kms_millis / 1e3)).min(left);
    let warm_up = cache(inputs).warm_up(&met(inputs, replicas), most);
    let (one_workspace, one_workspace_bound) = one_workspace(inputs, replicas);
    let mut plan = Plan {
        replicas_needed: needed,
        replicas,
        replicas_bound,
        workspaces_met: met(inputs, replicas).iter().map(|of| of.workspaces).sum(),
        store_bytes,
        shards,
        shards_bound,
        shards_for_memory,
        shards_for_cpu,
        shards_for_network,
        redis_nodes,
        shard_bytes: store_bytes / shards,
        kms_to_quota: load.kms_calls / inputs.kms_quota,
        quota_at: quota_at(inputs, replicas),
        warm_up,
        one_workspace,
        one_workspace_bound,
        dollars,
        obstacles: Vec::new(),
        warnings: Vec::new(),
        load,
    };
    plan.obstacles = obstacles(inputs, &plan);
    if plan.load.usage_lost > 0.0 {
        plan.warnings.push(format!(
            "Usage: {:.0} % of it is not noted, as more names are asked for between two \
             writes than a replica notes",
            plan.load.usage_lost * 100.0
        ));
    }
    plan
}

/// The most Resolves per second of one workspace: it lies on one shard, on each replica
/// so many of its calls are at work, and with affinity it has one replica.
fn one_workspace(inputs: &Inputs, replicas: f64) -> (f64, &'static str) {
    let extra = inputs.names_per_resolve - 1.0;
    let redis = inputs.redis_resolve_micros + extra * inputs.redis_name_micros;
    let service = inputs.resolve_micros + extra * inputs.extra_name_micros;
    let replicas = if inputs.affinity { 1.0 } else { replicas };
    let bounds = [
        (inputs.redis_target / redis / MICRO, "CPU of its shard's one core"),
        (inputs.workspace_calls / (inputs.call_millis / 1e3) * replicas, "its calls at once"),
        (
            replicas * inputs.replica_vcpus * inputs.replica_target / service / MICRO,
            "CPU of its replicas",
        ),
    ];
    bounds.into_iter().fold(
        (f64::INFINITY, ""),
        |least, next| {
            if next.0 < least.0 { next } else { least }
        },
    )
}

/// Active workspaces with which the KMS quota is used up, all else being equal.
fn quota_at(inputs: &Inputs, replicas: f64) -> f64 {
    let calls = |active: f64| {
        let inputs = Inputs { workspaces: active.max(1.0), active_share: 1.0, ..inputs.clone() };
        load(&inputs, replicas).kms_calls
    };
    bisect(1.0, 1e10, |active| calls(active) < inputs.kms_quota)
}

fn obstacles(inputs: &Inputs, plan: &Plan) -> Vec<String> {
    let load = &plan.load;
    let mut found = Vec::new();
    let mut add = |is: bool, text: String| {
        if is {
            found.push(text);
        }
    };
    let met = plan.workspaces_met;
    add(
        plan.kms_to_quota > 1.0,
        format!(
            "KMS: {:.0} calls per second, {:.1} times the quota: affinity, a larger cache or a \
             longer soft age is needed",
            load.kms_calls, plan.kms_to_quota
        ),
    );
    add(
        met > inputs.cache_keys,
        format!(
            "Cache: a replica meets {met:.0} active workspaces and keeps {:.0} data keys; \
             {:.0} % of the Resolves wait for the KMS",
            inputs.cache_keys,
            load.caching.cold * 100.0
        ),
    );
    let calls = load.caching.calls * inputs.kms_millis / 1e3;
    add(
        calls > inputs.kms_places,
        format!(
            "KMS: {calls:.0} calls at once per replica, with places for {:.0}",
            inputs.kms_places
        ),
    );
    add(
        plan.load.replica_memory > inputs.replica_gib * GIB * 0.8,
        format!("Memory: a replica needs {:.1} GiB", load.replica_memory / GIB),
    );
    add(plan.warm_up.is_none(), "Start: a replica never gets warm".to_owned());
    let [hot, _] = classes(inputs);
    add(
        hot.rate > plan.one_workspace,
        format!(
            "Hot workspaces: {:.0} Resolves per second each, and one may have {:.0}",
            hot.rate, plan.one_workspace
        ),
    );
    found
}
