//! The memory that this process has now, as the kernel counts it.

/// From `/proc/self/status`; zeros where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MemoryUse {
    pub(super) resident_bytes: u64,
    pub(super) anonymous_bytes: u64,
    pub(super) file_bytes: u64,
}

impl MemoryUse {
    pub(super) fn read() -> MemoryUse {
        MemoryUse::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> MemoryUse {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
        };
        MemoryUse {
            resident_bytes: field("VmRSS:"),
            anonymous_bytes: field("RssAnon:"),
            file_bytes: field("RssFile:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_in_kibibytes() {
        let read = MemoryUse::parse("Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t 1024 kB\nRssFile:\t 512 kB\n");
        assert_eq!((read.resident_bytes, read.anonymous_bytes, read.file_bytes), (2 << 20, 1 << 20, 1 << 19));
        assert_eq!(MemoryUse::parse(""), MemoryUse::default());
        assert!(MemoryUse::read().resident_bytes > 0);
    }
}
