//! What the model says, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    inputs::Inputs,
    model::{self, Plan},
    thousands::thousands,
};

/// One way to run it, beside others.
#[derive(Serialize)]
struct Way {
    name: String,
    inputs: Inputs,
    plan: Plan,
}

impl Way {
    fn of(name: &str, inputs: Inputs) -> Self {
        Self { name: name.to_owned(), plan: model::plan(&inputs), inputs }
    }
}

/// All there is to say.
#[derive(Serialize)]
pub(crate) struct Report {
    asked: Way,
    /// With affinity or without, and so on.
    options: Vec<Way>,
    /// The one asked for if it works, else the cheapest of the options that does with
    /// the soft age that was asked for.
    works: Option<Way>,
    /// The same with one input changed at a time.
    sensitivity: Vec<Way>,
}

impl Report {
    pub(crate) fn of(inputs: &Inputs) -> Self {
        let asked = Way::of("As asked for", inputs.clone());
        let options = options(inputs);
        let mut working: Vec<_> = options
            .iter()
            .filter(|way| way.plan.obstacles.is_empty())
            .filter(|way| way.inputs.soft_minutes == inputs.soft_minutes)
            .collect();
        working.sort_by(|a, b| a.plan.dollars.sum().total_cmp(&b.plan.dollars.sum()));
        let works = match asked.plan.obstacles.as_slice() {
            [] => Some(Way::of(&asked.name, inputs.clone())),
            _ => working.first().map(|way| Way::of(&way.name, way.inputs.clone())),
        };
        let base = works.as_ref().unwrap_or(&asked);
        let sensitivity = sensitivity(&base.inputs);
        Self { sensitivity, asked, options, works }
    }

    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// Markdown.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, to: &mut String) -> std::fmt::Result {
        let Self { asked, options, works, sensitivity } = self;
        writeln!(
            to,
            "{} workspaces, {} secrets, {} Resolves/s of {} names{}:\n",
            thousands(asked.inputs.workspaces),
            thousands(asked.inputs.secrets),
            thousands(asked.inputs.resolves_per_second),
            asked.inputs.names_per_resolve,
            if asked.inputs.affinity { ", affinity" } else { "" },
        )?;
        outcome(to, asked)?;
        writeln!(
            to,
            "\nData keys, other ways (`--max-data-keys` is the cache; `--forget-data-keys-after` allows a soft age of 15 min at most today):\n"
        )?;
        ways(to, options)?;
        let base = match works {
            Some(way) if !asked.plan.obstacles.is_empty() => {
                writeln!(to, "\nThe cheapest that works with this soft age: {}.\n", way.name)?;
                outcome(to, way)?;
                way
            }
            Some(way) => way,
            None => {
                writeln!(to, "\nNone of them works with this soft age.")?;
                asked
            }
        };
        writeln!(to, "\nThe same, one input changed at a time:\n")?;
        let as_above = Way::of("As above", base.inputs.clone());
        ways(to, std::iter::once(&as_above).chain(sensitivity))
    }
}

fn outcome(to: &mut String, way: &Way) -> std::fmt::Result {
    writeln!(to, "| What | How much | Bound by, made of |\n|---|---|---|")?;
    for (what, much, why) in lines(&way.inputs, &way.plan) {
        writeln!(to, "| {what} | {much} | {why} |")?;
    }
    let Plan { obstacles, warnings, .. } = &way.plan;
    let works = if obstacles.is_empty() { "It works" } else { "It does not work like this" };
    let more = if obstacles.len() + warnings.len() == 0 { "." } else { ":\n" };
    writeln!(to, "\n{works}{more}")?;
    obstacles.iter().chain(warnings).try_for_each(|text| writeln!(to, "- {text}"))
}

fn lines(inputs: &Inputs, plan: &Plan) -> Vec<(&'static str, String, String)> {
    let load = &plan.load;
    let each = |all: f64| all / plan.replicas;
    let per_second = |bytes: f64| format!("{:.1} MB/s", bytes / 1e6);
    let gib = |bytes: f64| format!("{:.1} GiB", bytes / 1_073_741_824.0);
    let spare = match inputs.zones {
        zones if zones < 2.0 => "and one more".to_owned(),
        zones => format!("in {zones} zones, of which one may be lost"),
    };
    let dollars = &plan.dollars;
    vec![
        (
            "Replicas",
            thousands(plan.replicas),
            format!("{}; {} needed, {spare}", plan.replicas_bound, plan.replicas_needed),
        ),
        (
            "CPU of the service",
            format!("{:.1} cores", load.cores),
            format!(
                "Resolves {:.1}, KMS calls {:.1}, usage {:.1}, changes and idling {:.1}",
                load.resolve_cores,
                load.kms_cores,
                load.usage_cores,
                load.cores - load.resolve_cores - load.kms_cores - load.usage_cores
            ),
        ),
        (
            "Memory of a replica",
            gib(load.replica_memory),
            format!(
                "of {} GiB; {} data keys of {} active workspaces that ask it",
                inputs.replica_gib,
                thousands(load.caching.held),
                thousands(plan.workspaces_met)
            ),
        ),
        (
            "Network of a replica",
            per_second(each(load.bytes)),
            format!("of {} Gbit/s", inputs.replica_gbit),
        ),
        (
            "Audit stream of a replica",
            per_second(each(load.audit_bytes)),
            format!("all: {:.1} TB a day", load.audit_bytes * 86_400.0 / 1e12),
        ),
        (
            "KMS calls",
            format!("{}/s", thousands(load.kms_calls)),
            format!(
                "{:.0} % of the quota; {:.1} % of the Resolves wait for one",
                plan.kms_to_quota * 100.0,
                load.caching.cold * 100.0
            ),
        ),
        (
            "KMS quota used up at",
            format!("{} active workspaces", rounded(plan.quota_at)),
            "at the same Resolves/s and replicas".to_owned(),
        ),
        (
            "Warm after a start",
            warm(plan),
            format!(
                "{} KMS calls at once, {} ms each, and the rest of the quota",
                inputs.kms_places, inputs.kms_millis
            ),
        ),
        (
            "Usage written",
            format!("{} workspaces/s", thousands(load.usage_writes)),
            format!("{:.0} % not noted", load.usage_lost * 100.0),
        ),
        (
            "Redis shards",
            thousands(plan.shards),
            format!(
                "{}; for memory {}, CPU {}, network {}",
                plan.shards_bound,
                plan.shards_for_memory,
                plan.shards_for_cpu,
                plan.shards_for_network
            ),
        ),
        (
            "Redis nodes",
            thousands(plan.redis_nodes),
            format!("{} replicas of each shard", inputs.redis_replicas),
        ),
        (
            "Redis memory",
            gib(plan.store_bytes),
            format!(
                "{} a shard; {:.0} bytes a secret with all that belongs to it",
                gib(plan.shard_bytes),
                plan.store_bytes / inputs.secrets
            ),
        ),
        (
            "CPU of Redis, masters",
            format!("{:.1} cores", load.redis_cores),
            format!(
                "Resolves {:.1}, usage {:.1}",
                load.redis_resolve_cores, load.redis_usage_cores
            ),
        ),
        (
            "One workspace, at most",
            format!("{} Resolves/s", thousands(plan.one_workspace)),
            plan.one_workspace_bound.to_owned(),
        ),
        (
            "Dollars a month",
            thousands(dollars.sum()),
            format!(
                "replicas {}, Redis {}, KMS {}, between zones {}",
                thousands(dollars.replicas),
                thousands(dollars.redis),
                thousands(dollars.kms),
                thousands(dollars.zones)
            ),
        ),
    ]
}

fn ways<'w>(to: &mut String, ways: impl IntoIterator<Item = &'w Way>) -> std::fmt::Result {
    let head = [
        "",
        "KMS calls/s",
        "of the quota",
        "Resolves that wait",
        "Warm after",
        "Replicas",
        "Shards",
        "KMS dollars",
        "All dollars",
        "Works",
    ];
    writeln!(to, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()))?;
    ways.into_iter().try_for_each(|Way { name, plan, .. }| {
        writeln!(
            to,
            "| {name} | {} | {:.0} % | {:.1} % | {} | {} | {} | {} | {} | {} |",
            thousands(plan.load.kms_calls),
            plan.kms_to_quota * 100.0,
            plan.load.caching.cold * 100.0,
            warm(plan),
            thousands(plan.replicas),
            thousands(plan.shards),
            thousands(plan.dollars.kms),
            thousands(plan.dollars.sum()),
            if plan.obstacles.is_empty() { "yes" } else { "no" },
        )
    })
}

fn warm(plan: &Plan) -> String {
    plan.warm_up.map_or("never".to_owned(), |seconds| format!("{seconds:.0} s"))
}

/// Affinity or not, the age asked for or an hour, the cache asked for or room for all.
fn options(inputs: &Inputs) -> Vec<Way> {
    let mut options = Vec::new();
    for affinity in [false, true] {
        for (soft_minutes, hard_minutes) in
            [(inputs.soft_minutes, inputs.hard_minutes), (60.0, inputs.hard_minutes.max(240.0))]
        {
            for cache_keys in [inputs.cache_keys, inputs.workspaces] {
                let name = format!(
                    "{}, soft age {soft_minutes} min, cache {}",
                    if affinity { "Affinity" } else { "No affinity" },
                    thousands(cache_keys),
                );
                let changed =
                    Inputs { affinity, soft_minutes, hard_minutes, cache_keys, ..inputs.clone() };
                options.push(Way::of(&name, changed));
            }
        }
    }
    options
}

fn sensitivity(inputs: &Inputs) -> Vec<Way> {
    type Change = fn(&mut Inputs);
    let changes: [(&str, Change); 16] = [
        ("A tenth of the active workspaces", |to| to.active_share /= 10.0),
        ("No hot workspaces", |to| to.hot_load = to.hot_share),
        ("Affinity the other way", |to| to.affinity = !to.affinity),
        ("A tenth of the cache", |to| to.cache_keys = (to.cache_keys / 10.0).ceil()),
        ("Half the soft age", |to| to.soft_minutes /= 2.0),
        ("Half the Resolves/s", |to| to.resolves_per_second /= 2.0),
        ("Twice the Resolves/s", |to| to.resolves_per_second *= 2.0),
        ("Three more names per Resolve", |to| {
            to.names_per_resolve = (to.names_per_resolve + 3.0).min(100.0);
        }),
        ("Twice the CPU per Resolve", |to| to.resolve_micros *= 2.0),
        ("Twice the CPU per KMS call", |to| to.kms_call_micros *= 2.0),
        ("Twice the CPU of Redis", |to| {
            to.redis_resolve_micros *= 2.0;
            to.redis_name_micros *= 2.0;
            to.redis_usage_micros *= 2.0;
            to.redis_usage_name_micros *= 2.0;
            to.redis_change_micros *= 2.0;
        }),
        ("Usage written every minute", |to| to.usage_every = 60.0),
        ("Twice the bytes per secret", |to| to.secret_bytes *= 2.0),
        ("Full audit histories", |to| to.history_per_workspace = 10_000.0),
        ("Ten times the changes", |to| to.changes_per_second *= 10.0),
        ("Replicas of twice the size", |to| {
            to.replica_vcpus *= 2.0;
            to.replica_gib *= 2.0;
            to.replica_gbit *= 2.0;
            to.replica_hour *= 2.0;
        }),
    ];
    let changed = |(name, change): (&str, Change)| {
        let mut changed = inputs.clone();
        change(&mut changed);
        Way::of(name, changed)
    };
    changes.into_iter().map(changed).collect()
}

/// To two digits.
fn rounded(number: f64) -> String {
    let unit = 10_f64.powf(number.max(1.0).log10().floor() - 1.0).max(1.0);
    thousands((number / unit).round() * unit)
}
