//! A lock file: held by one process, and free again when that process ends, however it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Whoever looks at a lock has a part in it for a moment.
const LOOK_LASTS: Duration = Duration::from_millis(250);
const POLL: Duration = Duration::from_millis(5);

/// A held lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: Flock<File>,
}

/// What came of asking for a lock.
#[derive(Debug)]
pub(crate) enum Claim {
    Held(Lock),
    /// Another process has it; its id, as far as it can be read.
    Taken(String),
}

impl Claim {
    /// Takes the lock at `path` if it is free. The file names its holder.
    pub(crate) fn ask(path: &Path) -> anyhow::Result<Claim> {
        let fault = || format!("cannot write {}", path.display());
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .with_context(fault)?;
        let began = Instant::now();
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    lock.set_len(0)
                        .and_then(|()| writeln!(lock, "{}", std::process::id()))
                        .with_context(fault)?;
                    return Ok(Claim::Held(Lock { _held: lock }));
                }
                Err((file, Errno::EWOULDBLOCK)) if began.elapsed() >= LOOK_LASTS => {
                    return Ok(Claim::Taken(named_in(file)));
                }
                Err((file, Errno::EWOULDBLOCK)) => file,
                Err((_, error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            };
            std::thread::sleep(POLL);
        }
    }

    /// The process that holds the lock at `path`; `None` when it is free. Changes nothing: those who look do not see
    /// one another.
    pub(crate) fn holder(path: &Path) -> Option<i32> {
        match Flock::lock(File::open(path).ok()?, FlockArg::LockSharedNonblock) {
            Err((file, Errno::EWOULDBLOCK)) => named_in(file).parse().ok(),
            _ => None,
        }
    }
}

fn named_in(mut file: File) -> String {
    let mut owner = String::new();
    // A file that cannot be read names nobody, and is held all the same.
    let _ = file.read_to_string(&mut owner);
    owner.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_takes_a_lock_is_not_refused_because_somebody_looks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::fs::write(&path, "").unwrap();
        // A look that lasts longer than any does.
        let look = Flock::lock(File::open(&path).unwrap(), FlockArg::LockSharedNonblock);
        let Ok(look) = look else { panic!("the lock is free") };
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(look);
        });
        let Claim::Held(held) = Claim::ask(&path).unwrap() else { panic!("the lock is free") };
        ends.join().unwrap();
        assert_eq!(Claim::holder(&path), i32::try_from(std::process::id()).ok());
        let began = Instant::now();
        assert!(matches!(Claim::ask(&path).unwrap(), Claim::Taken(_)));
        assert!(began.elapsed() < Duration::from_secs(5));
        drop(held);
        assert_eq!(Claim::holder(&path), None);
    }
}
