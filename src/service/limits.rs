//! What one caller or workspace may have.

use std::{num::NonZeroU32, time::Duration};

use super::Rotation;

/// Limits that an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Secrets per workspace, user- and system-managed together.
    pub max_secrets_per_workspace: u64,
    /// Earlier values kept of each user-managed secret.
    pub max_versions: usize,
    /// How long a deleted user-managed secret may come back.
    pub deleted_retention: Duration,
    /// When data keys are rotated by themselves.
    pub rotation: Rotation,
    /// Entries kept in the trail of each workspace.
    pub max_audit_events: u64,
    /// Streams of Redact opened per workspace and minute.
    pub redactions_per_minute: NonZeroU32,
    /// Calls of PrepareTemplate per workspace and minute.
    pub preparations_per_minute: NonZeroU32,
    /// Calls of one caller per second; `None`: as many as there are.
    pub caller_calls_per_second: Option<NonZeroU32>,
    /// Authorized calls of one workspace per second; `None`: as many as there
    /// are.
    pub workspace_calls_per_second: Option<NonZeroU32>,
    /// Light calls of one workspace that are worked on at once; one with many
    /// names, a template or a page counts as up to 8. Further calls wait.
    pub workspace_calls_at_once: NonZeroU32,
    /// Calls of one workspace that are worked on or wait.
    pub workspace_calls: usize,
    /// Of these, calls with a template.
    pub workspace_documents: usize,
    /// Streams of Redact of one workspace.
    pub workspace_redactions: usize,
}

impl Default for Limits {
    /// The defaults of the flags, and no rotation.
    fn default() -> Self {
        Self {
            max_secrets_per_workspace: 10_000,
            max_versions: 10,
            deleted_retention: Duration::from_secs(7 * 24 * 60 * 60),
            rotation: Rotation::default(),
            max_audit_events: 10_000,
            redactions_per_minute: const { NonZeroU32::new(600).unwrap() },
            preparations_per_minute: const { NonZeroU32::new(30).unwrap() },
            caller_calls_per_second: None,
            workspace_calls_per_second: None,
            workspace_calls_at_once: const { NonZeroU32::new(16).unwrap() },
            // A quarter of what the server takes of each.
            workspace_calls: 1_000,
            workspace_documents: 32,
            workspace_redactions: 128,
        }
    }
}
