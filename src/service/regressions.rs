//! Tells that the store has gone back: see [`crate::store::witness`].

use super::{Caller, Secrets, audit::Action};
use crate::{
    domain::{CallerId, Deadline},
    metrics::StoreRegression,
    store::witness::Regression,
};

/// Audit lines written at once: a whole store that has gone back must neither
/// fill the queue of the audit stream nor wait until it is empty.
const STEP: usize = 100;

/// Log lines of one look; of the other workspaces the number is told, and the
/// audit stream has a line of each.
const LINES: usize = 20;

impl Secrets {
    /// Tells, in the log and the audit stream, of each workspace in which the
    /// store was seen to know less than before. Calls go on with what there is,
    /// but for those in destroyed workspaces.
    pub(super) async fn tell_regressions(&self) {
        let regressions = self.witness.take_regressions();
        if regressions.is_empty() {
            return;
        }
        let (id, deadline) = (CallerId::service(), Deadline::NONE);
        let service = Caller { id, actor: None, trace_id: None, deadline };
        let (mut events, mut more) = (Vec::new(), 0_usize);
        for (workspace, regression) in &regressions {
            self.matchers.forget(workspace);
            let outcome = how(regression).as_str();
            events.push(self.event(&service, workspace, Action::StoreRegressed, outcome));
            if events.len() > LINES {
                more += 1;
                continue;
            }
            match regression {
                Regression::Older { seen, found } => tracing::error!(
                    %workspace,
                    seen = seen.as_u64(),
                    found = found.map(|found| found.as_u64()),
                    "THE STORE HAS GONE BACK: its data are older than what was read or written \
                     before; revoked, replaced and deleted secrets may be back"
                ),
                Regression::Resurrected => tracing::error!(
                    %workspace,
                    "THE STORE HAS GONE BACK: what it has of a destroyed workspace is refused; \
                     destroy it again with `keys shred`"
                ),
            }
        }
        if more > 0 {
            tracing::error!(more, "THE STORE HAS GONE BACK in further workspaces");
        }
        for (step, events) in events.chunks(STEP).enumerate() {
            let told = step.saturating_mul(STEP);
            if self.audit.write(events.to_vec()).await.is_err() {
                // Told again, rather than not at all.
                self.witness.keep_untold(regressions.into_iter().skip(told).collect());
                return;
            }
            for (_, regression) in regressions.iter().skip(told).take(STEP) {
                self.metrics.store_regression(how(regression));
            }
        }
    }
}

fn how(regression: &Regression) -> StoreRegression {
    match regression {
        Regression::Older { .. } => StoreRegression::Older,
        Regression::Resurrected => StoreRegression::Resurrected,
    }
}
