//! Limits that an operator sets.

use std::{num::NonZeroU32, time::Duration};

use super::{faults::Faults, limit_args::LimitArgs};
use crate::service::{Limits, Rotation};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// All of them; `None` if one is at fault.
pub(super) fn parse(f: &mut Faults, args: &LimitArgs) -> Option<Limits> {
    let max_secrets: Option<NonZeroU32> = f.parsed(
        "--max-secrets-per-workspace",
        &args.max_secrets_per_workspace,
        "a number of secrets, at least 1",
    );
    let rotation = rotation(f, args);
    let max_versions =
        f.at_most("--max-versions", &args.max_versions, 100, "a number of earlier values");
    let max_audit_events =
        f.at_most("--max-audit-events", &args.max_audit_events, 1_000_000, "a number of entries");
    let deleted_retention = f.duration("--deleted-retention", &args.deleted_retention);
    if deleted_retention.is_some_and(|kept| kept > 3_650 * DAY) {
        f.0.push("--deleted-retention: must be at most 3650days".into());
    }
    let redactions_per_minute: Option<NonZeroU32> = f.parsed(
        "--max-redactions-per-minute",
        &args.max_redactions_per_minute,
        "a number of calls, at least 1",
    );
    let preparations_per_minute: Option<NonZeroU32> = f.parsed(
        "--max-preparations-per-minute",
        &args.max_preparations_per_minute,
        "a number of calls, at least 1",
    );
    let per_second = "a number of calls, or 0 for no limit";
    let caller_calls_per_second: Option<u32> =
        f.parsed("--max-caller-calls-per-second", &args.max_caller_calls_per_second, per_second);
    let workspace_calls_per_second: Option<u32> = f.parsed(
        "--max-workspace-calls-per-second",
        &args.max_workspace_calls_per_second,
        per_second,
    );
    let workspace_calls_at_once: Option<NonZeroU32> = f.parsed(
        "--max-workspace-calls-at-once",
        &args.max_workspace_calls_at_once,
        "a number of calls, at least 1",
    );
    Some(Limits {
        max_secrets_per_workspace: max_secrets?.get().into(),
        rotation: rotation?,
        max_versions: usize::try_from(max_versions?).unwrap_or(usize::MAX),
        max_audit_events: max_audit_events?.into(),
        deleted_retention: deleted_retention?,
        redactions_per_minute: redactions_per_minute?,
        preparations_per_minute: preparations_per_minute?,
        caller_calls_per_second: NonZeroU32::new(caller_calls_per_second?),
        workspace_calls_per_second: NonZeroU32::new(workspace_calls_per_second?),
        workspace_calls_at_once: workspace_calls_at_once?,
        ..Limits::default()
    })
}

/// Shorter times and lower numbers would soon make more data keys than a
/// workspace may have.
fn rotation(f: &mut Faults, args: &LimitArgs) -> Option<Rotation> {
    const AGE: &str = "--rotate-data-keys-after";
    const CHANGES: &str = "--rotate-data-keys-after-changes";
    let age = f.duration(AGE, &args.rotate_data_keys_after);
    let rule = "a number of changes, 0 or at least 1000";
    let changes: Option<u64> = f.parsed(CHANGES, &args.rotate_data_keys_after_changes, rule);
    if age.is_some_and(|age| !age.is_zero() && age < Duration::from_secs(60 * 60)) {
        f.0.push(format!("{AGE}: must be 0s or at least 1h"));
    }
    if changes.is_some_and(|changes| (1..1_000).contains(&changes)) {
        f.0.push(format!("{CHANGES}: must be {rule}"));
    }
    let age = Some(age?).filter(|age| !age.is_zero());
    Some(Rotation { age, changes: Some(changes?).filter(|changes| *changes > 0) })
}
