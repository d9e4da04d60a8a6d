//! What a process uses, as the kernel tells it.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::site::REPLICAS;

/// After which a process counts as warm.
const WARM_UP: Duration = Duration::from_secs(20);

/// Memory in KiB, and open files.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) rss: u64,
    pub(crate) fds: u64,
}

impl Usage {
    /// `None` once the process has ended.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let rss = rss.trim().strip_suffix(" kB")?.parse().ok()?;
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Self { rss, fds })
    }
}

/// One process of the service, from its start to its end.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) replica: usize,
    pub(crate) pid: u32,
    began: Instant,
    pub(crate) lasted: Duration,
    /// Once it was warm. `None`: it never was.
    pub(crate) warm: Option<Usage>,
    pub(crate) most: Usage,
    pub(crate) last: Usage,
    /// It is still there.
    pub(crate) lives: bool,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Lives(Mutex<Vec<Life>>);

impl Lives {
    pub(crate) fn begins(&self, replica: usize, pid: u32) {
        let (warm, most, last) = (None, Usage::default(), Usage::default());
        let (began, lasted) = (Instant::now(), Duration::ZERO);
        let life = Life { replica, pid, began, lasted, warm, most, last, lives: true };
        self.0.lock().unwrap().push(life);
    }

    pub(crate) fn ends(&self, pid: u32) {
        for life in self.0.lock().unwrap().iter_mut().filter(|life| life.pid == pid) {
            life.lives = false;
        }
    }

    pub(crate) fn all(&self) -> Vec<Life> {
        self.0.lock().unwrap().clone()
    }

    /// The one now of each replica.
    pub(crate) fn living(&self) -> Vec<Life> {
        let all = self.all();
        let of = |replica| all.iter().rev().find(|life| life.replica == replica && life.lives);
        (0..REPLICAS).filter_map(of).cloned().collect()
    }

    pub(crate) fn look(&self) {
        for life in self.0.lock().unwrap().iter_mut().filter(|life| life.lives) {
            let Some(usage) = Usage::of(life.pid) else { continue };
            life.lasted = life.began.elapsed();
            if life.warm.is_none() && life.lasted > WARM_UP {
                life.warm = Some(usage);
            }
            life.most.rss = life.most.rss.max(usage.rss);
            life.most.fds = life.most.fds.max(usage.fds);
            life.last = usage;
        }
    }

    /// Looks once a second.
    pub(crate) fn watch(self: &Arc<Self>) -> JoinSet<()> {
        let (lives, mut watching) = (Arc::clone(self), JoinSet::new());
        watching.spawn(async move {
            loop {
                lives.look();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        watching
    }
}
