//! Floor 5: what the process keeps others, and itself, from doing.

use std::io;

use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, setrlimit},
};

/// Whether memory is kept out of swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// No page of the process is ever written to swap.
    Locked,
    /// Pages may be. Why they are not locked.
    Unlocked(&'static str),
}

/// Keeps values and data keys out of core dumps, other processes of the same
/// user from reading this one's memory, other users from the files it makes, and
/// whatever it may come to run from gaining rights. Must come before anything
/// secret is read, and before threads start: the last holds for the calling thread
/// and those that it starts.
///
/// # Errors
/// The system refuses.
pub fn restrict() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}

/// Locks all memory of the process, now and later, where that is without limit.
///
/// All of it, not just pages with data keys: keys and values also pass through
/// buffers of the TLS, HTTP/2, JSON and cryptography libraries, wherever these
/// are. Never under a limit: an allocation beyond it would fail and end the
/// process. Pages are locked as they are touched, so that what is only reserved
/// takes no memory.
#[cfg(target_os = "linux")]
pub fn lock_memory() -> Memory {
    use rustix::{
        io::Errno,
        mm::{MlockAllFlags, mlockall},
        process::getrlimit,
    };

    const NO_RIGHT: &str = "RLIMIT_MEMLOCK is not unlimited and CAP_IPC_LOCK is not held";
    const REFUSED: &str = "the system refuses";

    let limit = getrlimit(Resource::Memlock);
    // Under a limit of zero only who holds the capability may lock, and only in
    // truth: within a user namespace it does not count.
    let capable_only = limit.maximum.is_some();
    let trial = Rlimit { current: capable_only.then_some(0), ..limit };
    if setrlimit(Resource::Memlock, trial).is_err() {
        return Memory::Unlocked(REFUSED);
    }
    let locked = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    // Who is not capable lives by the limit that made it possible.
    if (capable_only || locked.is_err()) && setrlimit(Resource::Memlock, limit).is_err() {
        return Memory::Unlocked(REFUSED);
    }
    match locked {
        Ok(()) => Memory::Locked,
        Err(Errno::PERM | Errno::NOMEM) => Memory::Unlocked(NO_RIGHT),
        Err(_) => Memory::Unlocked(REFUSED),
    }
}

/// Not on this system.
#[cfg(not(target_os = "linux"))]
pub fn lock_memory() -> Memory {
    Memory::Unlocked("it is not supported on this system")
}
