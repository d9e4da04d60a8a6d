//! Properties of the model, and the README's answer.

use clap::Parser;

use crate::{
    Cli,
    inputs::Inputs,
    model::{self, Plan, load, plan},
    report::Report,
};

fn inputs(flags: &str) -> Inputs {
    parsed(flags).unwrap().inputs
}

fn parsed(flags: &str) -> Result<Cli, String> {
    let all = ["capacity"].into_iter().chain(flags.split_whitespace());
    Cli::try_parse_from(all).map_err(|error| error.to_string())
}

fn planned(flags: &str) -> Plan {
    plan(&inputs(flags))
}

fn near(is: f64, should: f64, by: f64) {
    assert!((is - should).abs() <= by * should.abs(), "{is} is not near {should}");
}

/// What works at the size of the headline.
const GOOD: &str = "--affinity --cache-keys 1000000";

#[test]
fn more_of_anything_never_takes_less() {
    let more = [
        "--workspaces 2000000",
        "--secrets 200000000",
        "--resolves-per-second 400000",
        "--names-per-resolve 9",
        "--resolve-micros 200",
        "--kms-call-micros 5000",
        "--usage-write-micros 1000",
        "--usage-name-micros 500",
        "--redis-usage-name-micros 500",
        "--redis-usage-name-bytes 9000",
        "--change-micros 50000",
        "--idle-micros 500000",
        "--redis-resolve-micros 90",
        "--redis-usage-micros 2000",
        "--secret-bytes 5000",
        "--value-bytes 9000",
        "--earlier-versions 10",
        "--history-per-workspace 10000",
        "--workflows-per-secret 100",
        "--changes-per-second 9000",
        "--client-bytes 90000",
        "--zones 1",
        "--replica-target 0.1",
        "--redis-target 0.05",
        "--redis-fill 0.1",
        "--fragmentation 3",
        "--shard-skew 9",
        "--kms-requests 3",
        "--redis-replicas 5",
        "--restarts-per-day 100",
        "--new-workspaces-per-day 10000000",
    ];
    let before = planned(GOOD);
    for flags in more {
        let after = planned(&format!("{GOOD} {flags}"));
        let sums =
            |plan: &Plan| [plan.load.kms_calls, plan.shards, plan.redis_nodes, plan.dollars.sum()];
        // Of replicas in one zone fewer need be spare; what they do is the same.
        let same = flags.starts_with("--zones") || before.replicas <= after.replicas;
        assert!(same, "{flags}: replicas {} to {}", before.replicas, after.replicas);
        for (before, after) in sums(&before).into_iter().zip(sums(&after)) {
            let fewer = flags.starts_with("--zones") || after >= before * 0.999;
            assert!(fewer, "{flags}: {before} to {after}");
        }
        let changed = (after.dollars.sum() - before.dollars.sum()).abs() > 1e-6;
        assert!(changed, "{flags} makes no difference");
    }
}

#[test]
fn twice_the_load_takes_twice_the_replicas() {
    let flags = "--zones 2 --usage-every 1e9 --changes-per-second 0";
    let of = |rate| planned(&format!("{GOOD} {flags} --resolves-per-second {rate}"));
    let (once, twice) = (of(2_000_000), of(4_000_000));
    near(twice.replicas, 2.0 * once.replicas, 0.02);
    near(twice.load.resolve_cores, 2.0 * once.load.resolve_cores, 1e-9);
    near(twice.load.audit_bytes, 2.0 * once.load.audit_bytes, 1e-9);
    near(twice.load.redis_resolve_cores, 2.0 * once.load.redis_resolve_cores, 1e-9);
    assert_eq!(twice.store_bytes, once.store_bytes);
}

#[test]
fn parts_make_the_whole_and_enough_replicas_are_enough() {
    for flags in ["", GOOD, "--zones 1 --cache-keys 50000", "--resolves-per-second 100"] {
        let plan = planned(flags);
        let inputs = inputs(flags);
        let load = &plan.load;
        let changes = inputs.changes_per_second * inputs.change_micros / 1e6;
        let beside = changes + plan.replicas * inputs.idle_micros / 1e6;
        near(load.cores, load.resolve_cores + load.kms_cores + load.usage_cores + beside, 1e-9);
        assert_eq!(load.replicas, plan.replicas);
        let target = inputs.replica_vcpus * inputs.replica_target;
        assert!(load.cores <= plan.replicas_needed * target, "{flags}");
        // A zone less, or a replica less, still does it.
        let left = match inputs.zones {
            1.0 => plan.replicas - 1.0,
            zones => plan.replicas * (zones - 1.0) / zones,
        };
        assert!(left >= plan.replicas_needed, "{flags}");
        let most = plan.shards_for_memory.max(plan.shards_for_cpu).max(plan.shards_for_network);
        assert!(plan.shards >= most, "{flags}");
        near(plan.shard_bytes * plan.shards, plan.store_bytes, 1e-9);
    }
}

#[test]
fn affinity_saves_a_call_for_every_other_replica() {
    // Workspaces so busy that each replica has all their keys all the time.
    let flags = "--workspaces 100 --secrets 1000 --cache-keys 1000 --hot-share 0.5 --hot-load 0.5 \
                 --restarts-per-day 0 --new-workspaces-per-day 0 --rotate-days 1e12";
    let without = load(&inputs(flags), 20.0).kms_calls;
    let with = load(&inputs(&format!("{flags} --affinity")), 20.0).kms_calls;
    near(without / with, 20.0, 1e-3);
    near(with, 100.0 / 900.0, 1e-3);
}

#[test]
fn shards_are_bound_by_whatever_is_scarcest() {
    let bound = |flags: &str| planned(&format!("{GOOD} {flags}")).shards_bound;
    assert_eq!(bound(""), "memory");
    assert_eq!(bound("--redis-gib 1024"), "CPU of a shard's one core");
    assert_eq!(bound("--redis-gib 1024 --redis-gbit 0.05"), "network");
    let plan = planned(&format!("{GOOD} --redis-gib 1024 --shard-skew 1.5 --redis-target 0.5"));
    assert_eq!(plan.shards, (plan.load.redis_cores * 3.0).ceil());
    let small = "--workspaces 10 --secrets 100 --resolves-per-second 10 --changes-per-second 0";
    assert_eq!(bound(small), "one is enough");
    assert_eq!(bound(&format!("{small} --redis-gib 0.0012")), "least of a cluster");
}

#[test]
fn at_the_break_point_the_quota_is_just_used_up() {
    for affinity in ["", "--affinity"] {
        let flags = format!("--cache-keys 100000000 {affinity}");
        let found = planned(&flags);
        let at = found.quota_at;
        let calls = |workspaces: f64| {
            let inputs = Inputs { workspaces, ..inputs(&flags) };
            load(&inputs, found.replicas).kms_calls
        };
        near(calls(at), 10_000.0, 0.001);
        assert!(calls(at * 1.1) > 10_000.0 && calls(at * 0.9) < 10_000.0);
        let over = found.kms_to_quota > 1.0;
        assert_eq!(over, at < 1e6);
        assert_eq!(over, found.obstacles.iter().any(|text| text.contains("quota")));
    }
}

#[test]
fn values_are_padded_as_the_service_pads_them() {
    let bytes = |value: f64| {
        let inputs = Inputs { value_bytes: value, earlier_versions: 0.0, ..inputs("") };
        model::store_bytes(&inputs) / inputs.secrets
    };
    let more = |value: f64| bytes(value) - bytes(1.0);
    for (value, padded) in
        [(39.0, 64.0), (40.0, 128.0), (103.0, 128.0), (4_071.0, 4_096.0), (4_072.0, 8_192.0)]
    {
        near(more(value) + 64.0, padded, 1e-6);
    }
    // Earlier versions too.
    let of = |value_bytes: f64, earlier_versions: f64| {
        let inputs = Inputs { value_bytes, earlier_versions, ..inputs("") };
        model::store_bytes(&inputs) / inputs.secrets
    };
    near(of(100.0, 3.0) - of(1.0, 3.0), 4.0 * 64.0, 1e-6);
}

#[test]
fn usage_beyond_what_a_replica_notes_is_told() {
    // Two names of each Resolve, each with a workflow: 20 notes a second and Resolve.
    let lost = |rate: f64| {
        let flags = "--affinity --cache-keys 1000000 --hot-load 0.1 --usage-write-millis 0.001";
        load(&Inputs { resolves_per_second: rate, ..inputs(flags) }, 1.0).usage_lost
    };
    assert_eq!(lost(4_900.0), 0.0);
    near(lost(10_000.0), 0.5, 0.05);
}

#[test]
fn one_workspace_has_one_shard_and_with_affinity_one_replica() {
    let of = |flags: &str| {
        let plan = planned(flags);
        (plan.one_workspace, plan.one_workspace_bound)
    };
    let flags = "--names-per-resolve 1 --redis-resolve-micros 20 --redis-target 0.5";
    near(of(flags).0, 25_000.0, 1e-9);
    assert_eq!(of(flags).1, "CPU of its shard's one core");
    let flags = "--affinity --call-millis 4 --workspace-calls 20";
    assert_eq!(of(flags), (5_000.0, "its calls at once"));
    let flags = "--affinity --workspace-calls 1000 --names-per-resolve 1 --resolve-micros 100 \
                 --replica-vcpus 2 --replica-target 0.5";
    assert_eq!(of(flags), (10_000.0, "CPU of its replicas"));
}

#[test]
fn wrong_flags_are_told_what_would_be_right() {
    let wrong = [
        ("--workspaces 0", "must be a whole number from 1"),
        ("--workspaces -5", "must be a whole number from 1"),
        ("--workspaces 1.5", "must be a whole number from 1"),
        ("--secrets NaN", "must be a whole number from 1"),
        ("--secrets 1e300", "more than 1e13"),
        ("--resolves-per-second inf", "must be a number above 0"),
        ("--resolves-per-second many", "must be a number above 0"),
        ("--resolve-micros 0", "must be a number above 0"),
        ("--kms-requests -0.1", "must be 0 or a number above"),
        ("--hot-share 0", "must be a share: above 0"),
        ("--used-share 1.01", "must be a share: from 0 to 1"),
        ("--names-per-resolve 101", "from 1 to 100"),
        ("--value-bytes 65537", "from 1 to 65536"),
        ("--fragmentation 0.9", "must be 1 or a number above"),
        ("--json --update", "cannot be used with"),
    ];
    for (flags, rule) in wrong {
        let told = parsed(flags).map(|_| ()).unwrap_err();
        let flag = flags.split(' ').next().unwrap();
        assert!(told.contains(rule) && told.contains(flag), "{flags}: {told}");
    }
    let together = [
        ("--workspaces 10 --active-share 0.01", "--active-share"),
        ("--hard-minutes 5", "--hard-minutes"),
        ("--hot-share 0.5 --hot-load 0.4", "--hot-load"),
        ("--hot-share 1 --hot-load 1", ""),
    ];
    for (flags, flag) in together {
        match inputs(flags).check() {
            Ok(()) => assert_eq!(flag, ""),
            Err(told) => assert!(!flag.is_empty() && told.starts_with(flag), "{flags}: {told}"),
        }
    }
}

#[test]
fn no_input_that_is_taken_makes_a_number_that_is_none() {
    for flags in [
        "--workspaces 1 --secrets 1 --resolves-per-second 0.000001",
        "--workspaces 1 --secrets 1 --resolves-per-second 100000",
        "--workspaces 10000000000 --secrets 1",
        "--cache-keys 1",
        "--hot-share 1 --hot-load 1",
        "--hot-load 1",
        "--changes-per-second 0 --used-share 0 --earlier-versions 0 --workflows-per-secret 0",
        "--soft-minutes 60",
        "--zones 1 --redis-replicas 0",
    ] {
        let inputs = inputs(flags);
        assert_eq!(inputs.check(), Ok(()));
        let report = Report::of(&inputs);
        let json = report.json().unwrap();
        // That is what serde_json makes of NaN and infinity; a warm-up may be missing.
        let may = |line: &str| ["warm_up", "works"].iter().any(|name| line.contains(name));
        let none = json.lines().filter(|line| line.contains("null") && !may(line));
        assert_eq!(none.collect::<Vec<_>>(), Vec::<&str>::new(), "{flags}");
        let text = report.text();
        assert!(!text.contains("NaN") && !text.contains("inf"), "{flags}: {text}");
    }
}

#[test]
fn the_readme_has_what_the_program_says() {
    let (_, [_, tables, _]) = crate::readme().unwrap();
    let said = Report::of(&inputs("")).text();
    let update = "cargo run --example capacity -- --update";
    assert!(tables == said, "deploy/capacity/README.md is out of date: {update}");
}
