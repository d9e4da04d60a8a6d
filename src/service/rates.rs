//! How often a workspace may be asked whether text holds its values.

use std::{num::NonZeroU32, sync::Arc};

use super::Error;
use crate::domain::{self, Clock, WorkspaceId};

/// Bounds calls of one kind per workspace and minute, on this replica. Unused
/// calls do not add up to more than one minute's.
pub(super) struct Rates(domain::Rates<WorkspaceId>);

impl Rates {
    /// So many calls per workspace and minute.
    pub(super) fn new(per_minute: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        Self(domain::Rates::per_minute(per_minute, clock))
    }

    /// Counts a call.
    ///
    /// # Errors
    /// [`Error::RateLimited`], with the time after which one is allowed.
    pub(super) fn count(&self, workspace: &WorkspaceId) -> Result<(), Error> {
        self.0.count(workspace).map_err(|wait| Error::RateLimited { wait })
    }

    /// Forgets workspaces that have all their calls left.
    pub(super) fn tidy(&self) {
        self.0.tidy();
    }
}
