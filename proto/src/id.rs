//! Newtypes for everything that could be swapped by mistake: ids, counters that fence, times.
//!
//! Ids become tokens of NATS subjects, so they are parsed once, at the edge: `[A-Za-z0-9_-]`, 1 to 64 bytes. Their text is
//! shared: cloning one allocates nothing.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest id in bytes; subjects stay short and object names stay printable.
pub const ID_BYTES_MAX: usize = 64;

/// An id that cannot be a token of a subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is invalid: use 1 to {ID_BYTES_MAX} of the characters A-Z a-z 0-9 _ -")]
pub struct IdError {
    kind: &'static str,
    value: String,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let fits = (1..=ID_BYTES_MAX).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                if fits { Ok(Self(text.into())) } else { Err(IdError { kind: $kind, value: text.chars().take(80).collect() }) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// Who pays: quotas, fairness and permissions are per tenant.
    TenantId,
    "tenant"
);
text_id!(
    /// One submitted file of jobs; written `batch_…` as OpenAI's API does.
    BatchId,
    "batch id"
);
text_id!(
    /// One engine process. Unique for the life of the process: a restarted worker has a new id.
    WorkerId,
    "worker id"
);

impl TenantId {
    /// The tenant of a fleet without keys.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }
}

/// One job: the batch and the zero-based number of its line (blank lines are counted, not run).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobKey {
    pub batch: BatchId,
    pub index: u32,
}

impl JobKey {
    /// The seed of a request that brought none: the first eight bytes of BLAKE3 over the identity.
    pub fn seed(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.batch.as_str().as_bytes()).update(&self.index.to_le_bytes());
        let mut first = [0u8; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        // 53 bits survive every JSON reader on the way.
        u64::from_le_bytes(first) & ((1 << 53) - 1)
    }
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.batch, self.index)
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// How often a job was handed to a worker. A new one for each assignment; it fences the old owner.
    Epoch(u32)
);
counter!(
    /// How often a job was started. Counts towards poison; hand-backs without a fault do not raise it.
    Attempt(u32)
);
counter!(
    /// Revision of the leader's lease; workers refuse messages of a lower one than they have seen.
    LeaderRevision(u64)
);

/// Milliseconds since 1970-01-01 UTC, or virtual milliseconds in a simulation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimeMs(pub u64);

impl TimeMs {
    /// Time from `earlier` to `self`, zero when the clock went back.
    pub fn since(self, earlier: TimeMs) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    #[must_use]
    pub fn plus(self, span: std::time::Duration) -> TimeMs {
        TimeMs(self.0.saturating_add(span.as_millis() as u64))
    }

    /// The wall clock of this machine, for tools and tests. Shells read their [`crate::Clock`].
    pub fn now() -> TimeMs {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        TimeMs(since_epoch.map_or(0, |d| d.as_millis() as u64))
    }
}

/// Which of a worker's two queues a job waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    Interactive,
    Batch,
}

impl Lane {
    pub const ALL: [Lane; 2] = [Lane::Interactive, Lane::Batch];

    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Interactive => "interactive",
            Lane::Batch => "batch",
        }
    }
}
