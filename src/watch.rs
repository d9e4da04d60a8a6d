//! Values made from files, and made anew when the files change: the policy,
//! the TLS configuration.

use std::{fmt::Display, fs, io, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// A value made from files.
///
/// Changes are found by reading the files time and again: that works on every
/// file system, and however a change is made, be it in place, by rename, or by
/// the symlinks of a Kubernetes volume. Files are best replaced by rename; one
/// read half-written is read again at the next look.
pub struct Watch<T, F> {
    what: &'static str,
    files: Vec<PathBuf>,
    load: F,
    current: Arc<ArcSwap<T>>,
    seen: Vec<Content>,
    failed: bool,
}

/// SHA-256 of a file, or why it cannot be read.
type Content = Result<Vec<u8>, io::ErrorKind>;

impl<T, F, E> Watch<T, F>
where
    T: Send + Sync + 'static,
    F: Fn() -> Result<Arc<T>, E> + Send + 'static,
    E: Display,
{
    /// Makes the first value. `load` must read all of `files`; `what` names the
    /// value in logs. Reads files, so it may block.
    ///
    /// # Errors
    /// That of `load`.
    pub fn start(what: &'static str, files: Vec<PathBuf>, load: F) -> Result<Self, E> {
        // Looked at before they are loaded: a change in between is seen later.
        let seen = look(&files);
        let current = Arc::new(ArcSwap::new(load()?));
        Ok(Self { what, files, load, current, seen, failed: false })
    }

    /// The current value, always the latest that could be made.
    pub fn current(&self) -> Arc<ArcSwap<T>> {
        Arc::clone(&self.current)
    }

    /// Looks at the files once per `interval`, until shutdown. If a change
    /// cannot be loaded, the value stays, an error is logged once, and loading
    /// is tried again at each look.
    pub async fn run(self, interval: Duration, shutdown: CancellationToken) {
        let mut watch = self;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let look = move || {
                watch.check();
                watch
            };
            watch = match tokio::task::spawn_blocking(look).await {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::error!(%error, "changed files are no longer loaded");
                    return;
                }
            };
        }
    }

    fn check(&mut self) {
        let what = self.what;
        let found = look(&self.files);
        let changed = found != self.seen;
        // After a failure what else matters may have changed, such as a mode.
        if !changed && !self.failed {
            return;
        }
        self.seen = found;
        match (self.load)() {
            Ok(value) => {
                self.current.store(value);
                self.failed = false;
                tracing::info!(what, "loaded the changed files");
            }
            Err(error) => {
                self.failed = true;
                if changed {
                    tracing::error!(what, %error, "changed files refused; the last good stay");
                }
            }
        }
    }
}

fn look(files: &[PathBuf]) -> Vec<Content> {
    let content = |file| {
        let bytes = Zeroizing::new(fs::read(file).map_err(|error| error.kind())?);
        Ok(digest(&SHA256, &bytes).as_ref().to_vec())
    };
    files.iter().map(content).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_failure_is_logged_once_per_change_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let broken = Arc::new(Mutex::new(false));
        let load = {
            let (file, broken) = (file.clone(), Arc::clone(&broken));
            move || match fs::read_to_string(&file) {
                Ok(text) if text != "bad" && !*broken.lock().unwrap() => Ok(Arc::new(text)),
                _ => Err("refused"),
            }
        };
        assert!(Watch::start("it", vec![file.clone()], load.clone()).is_err());
        fs::write(&file, "one").unwrap();
        let mut watch = Watch::start("it", vec![file.clone()], load).unwrap();
        let current = watch.current();

        let log = Log::default();
        let sink = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone()).finish();
        let mut check = |expected: &str, errors: usize, loads: usize| {
            log.0.lock().unwrap().clear();
            watch.check();
            assert_eq!(current.load().as_str(), expected);
            let told = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert_eq!(told.matches("ERROR").count(), errors, "{told}");
            assert_eq!(told.matches("INFO").count(), loads, "{told}");
        };
        tracing::subscriber::with_default(subscriber, || {
            check("one", 0, 0);
            fs::write(&file, "two").unwrap();
            check("two", 0, 1);
            check("two", 0, 0);
            fs::write(&file, "bad").unwrap();
            check("two", 1, 0);
            check("two", 0, 0);
            fs::remove_file(&file).unwrap();
            check("two", 1, 0);
            check("two", 0, 0);
            fs::write(&file, "two").unwrap();
            check("two", 0, 1);

            *broken.lock().unwrap() = true;
            fs::write(&file, "three").unwrap();
            check("two", 1, 0);
            *broken.lock().unwrap() = false;
            check("three", 0, 1);
        });
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
