//! Threads that serve calls, each with a runtime of its own.
//!
//! A connection, its calls and their answers stay on one thread, so that nothing of
//! a Resolve but its audit line wakes another one. On a runtime of several threads
//! the same takes half as much time again (see the figures in the README).

use std::{io, sync::mpsc, thread, time::Duration};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// How long work that is stuck may hold up the end of a thread.
const END: Duration = Duration::from_millis(50);

/// The threads. They end when this is dropped.
pub struct Workers {
    runtimes: Vec<Handle>,
    stop: CancellationToken,
}

impl Workers {
    /// One for each CPU that this process may use.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn start() -> io::Result<Self> {
        Self::of(thread::available_parallelism().map_or(1, Into::into))
    }

    /// So many.
    ///
    /// # Errors
    /// The operating system gives no thread or no event queue.
    pub fn of(number: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut workers = Self { runtimes: Vec::new(), stop: stop.clone() };
        for number in 0..number {
            let (started, runtime) = mpsc::channel();
            let stop = stop.clone();
            let work = move || match Builder::new_current_thread().enable_all().build() {
                Err(error) => drop(started.send(Err(error))),
                Ok(runtime) => {
                    let _ = started.send(Ok(runtime.handle().clone()));
                    runtime.block_on(stop.cancelled());
                    runtime.shutdown_timeout(END);
                }
            };
            thread::Builder::new().name(format!("calls-{number}")).spawn(work)?;
            let gone = |_| io::Error::other("a thread ended at its start");
            workers.runtimes.push(runtime.recv().map_err(gone)??);
        }
        Ok(workers)
    }

    /// Their runtimes.
    pub fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
