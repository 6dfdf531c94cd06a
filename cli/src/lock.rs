//! A lock file: held by one process, and free again when that process ends, however it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

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
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .with_context(fault)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)
                    .and_then(|()| writeln!(lock, "{}", std::process::id()))
                    .with_context(fault)?;
                Ok(Claim::Held(Lock { _held: lock }))
            }
            Err((file, Errno::EWOULDBLOCK)) => Ok(Claim::Taken(named_in(file))),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
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
