//! Calls that are repeated while the server is away. All calls of these commands
//! may be: they store nothing, carry a request_id, or say what they replace.

use std::time::Duration;

use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use super::{CliError, printable};

/// How often one call is tried: with the waits below, for half a minute.
const TRIES: u32 = 12;

/// First and longest wait of our own; the server's RetryInfo may ask for more.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_ASKED: Duration = Duration::from_secs(30);

/// How often a call was tried.
#[derive(Default)]
pub(super) struct Patience(u32);

impl Patience {
    /// Waits until it makes sense to try again.
    ///
    /// # Errors
    /// The error itself, if it makes none, or none any more.
    pub(super) async fn wait(&mut self, status: Status) -> Result<(), Status> {
        self.0 = self.0.saturating_add(1);
        if self.0 >= TRIES || !passes(&status) {
            return Err(status);
        }
        let own = FIRST_WAIT.saturating_mul(1 << self.0.min(10)).min(LONGEST_WAIT);
        let details = status.get_error_details();
        let asked = details.retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        tokio::time::sleep(own.max(asked.min(LONGEST_ASKED))).await;
        Ok(())
    }
}

/// Makes a call until it is answered, or patience ends.
pub(super) async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut patience = Patience::default();
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => patience.wait(status).await?,
        }
    }
}

/// Whether an error is of the moment, and not of the call. One without a reason
/// is not of the service, but of the way to it.
pub(super) fn passes(status: &Status) -> bool {
    let code = status.code();
    if matches!(code, Code::Unavailable | Code::DeadlineExceeded) {
        return true;
    }
    let details = status.get_error_details();
    match details.error_info() {
        Some(_) => details.retry_info().is_some(),
        None => matches!(code, Code::Unknown | Code::Internal | Code::Cancelled),
    }
}

/// The service's own reason of an error.
pub(super) fn reason(status: &Status) -> Option<String> {
    status.get_error_details().error_info().map(|info| printable(&info.reason))
}

/// An error, for people.
pub(super) fn told(status: &Status) -> String {
    let reason = reason(status).unwrap_or_else(|| format!("{:?}", status.code()));
    format!("{reason}: {}", printable(status.message()))
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        match passes(&status) {
            true => CliError::Unavailable(told(&status)),
            false => CliError::Refused(told(&status)),
        }
    }
}
