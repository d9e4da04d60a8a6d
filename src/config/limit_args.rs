//! Flags of the limits that an operator sets.

use clap::Args;

/// What one workspace or caller may have, and how long data keys and what was deleted
/// are kept.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Secrets that one workspace may hold, at least 1
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_SECRETS_PER_WORKSPACE",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "10000"
    )]
    pub max_secrets_per_workspace: String,

    /// Earlier values kept of each user-managed secret, at most 100
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_VERSIONS",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "10"
    )]
    pub max_versions: String,

    /// How long a deleted user-managed secret may come back, at most 3650days;
    /// 0s deletes at once
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_DELETED_RETENTION",
        value_name = "DURATION",
        default_value = "7days"
    )]
    pub deleted_retention: String,

    /// Age from which a workspace's data key is replaced at its next change, at
    /// least 1h; 0s: never
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_ROTATE_DATA_KEYS_AFTER",
        value_name = "DURATION",
        default_value = "365d"
    )]
    pub rotate_data_keys_after: String,

    /// Changes of a workspace after which its data key is replaced, at least
    /// 1,000; 0: never
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_ROTATE_DATA_KEYS_AFTER_CHANGES",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "0"
    )]
    pub rotate_data_keys_after_changes: String,

    /// Entries kept in the audit history of each workspace, at most 1000000;
    /// with 0, none is added
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_AUDIT_EVENTS",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "10000"
    )]
    pub max_audit_events: String,

    /// Streams of Redact opened per workspace and minute, on each replica, at
    /// least 1
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_REDACTIONS_PER_MINUTE",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "600"
    )]
    pub max_redactions_per_minute: String,

    /// Calls of PrepareTemplate per workspace and minute, on each replica, at
    /// least 1
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_PREPARATIONS_PER_MINUTE",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "30"
    )]
    pub max_preparations_per_minute: String,

    /// Calls of one caller per second, on each replica; those not made add up
    /// to those of 10 seconds. 0: no limit
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_CALLER_CALLS_PER_SECOND",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "0"
    )]
    pub max_caller_calls_per_second: String,

    /// Calls of one workspace per second, on each replica; those not made add up
    /// to those of 10 seconds. 0: no limit
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_WORKSPACE_CALLS_PER_SECOND",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "0"
    )]
    pub max_workspace_calls_per_second: String,

    /// Calls of one workspace that each replica works on at once, at least 1;
    /// a large call counts as up to 8, and further ones wait
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_WORKSPACE_CALLS_AT_ONCE",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "16"
    )]
    pub max_workspace_calls_at_once: String,
}
