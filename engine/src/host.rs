//! What this process may use of the machine: CPUs by affinity, cgroup quota and physical cores, caches, memory.
//!
//! Plain data, read from `/proc` and `/sys`; it decides the number of threads and pins none (`pool` does).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The most threads that one engine takes by itself.
pub const MAX_DEFAULT_THREADS: usize = 16;

/// One logical CPU that this process may run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    pub id: usize,
    pub socket: usize,
    /// Unique within the socket.
    pub core: usize,
    /// The logical CPUs that share its last-level cache, by the lowest of them.
    pub l3_group: usize,
}

/// What was found; `ternfleet topology` prints it.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    pub cpu_model: String,
    /// Logical CPUs in this process's affinity mask.
    pub cpus: Vec<Cpu>,
    /// Logical CPUs that the machine shows.
    pub online_cpus: usize,
    pub sockets: usize,
    pub l3_groups: usize,
    pub l3_bytes: u64,
    /// Distinct cores in the affinity mask.
    pub physical_cores: usize,
    /// CPUs' worth of time that the cgroup allows; `None` without a limit.
    pub quota_cpus: Option<f64>,
    pub isas: Vec<crate::Isa>,
    /// `always`, `madvise` or `never`, as the kernel says; empty if unknown.
    pub transparent_huge_pages: String,
    pub memory_bytes: u64,
    /// Memory limit of the cgroup, if it is lower.
    pub memory_limit_bytes: Option<u64>,
    /// Threads that an engine takes here, before the bound of 16.
    pub usable_threads: usize,
}

/// Times that the cgroup held this process back, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_us: u64,
}

impl Topology {
    /// Reads this machine.
    pub fn read() -> Topology {
        Topology::read_under(Path::new("/"))
    }

    /// Reads a machine whose `/proc` and `/sys` are in a folder; instruction sets are always this one's.
    fn read_under(root: &Path) -> Topology {
        let cpus = allowed_cpus(root);
        let mut cores: Vec<(usize, usize)> = cpus.iter().map(|cpu| (cpu.socket, cpu.core)).collect();
        cores.sort_unstable();
        cores.dedup();
        let quota_cpus = quota_cpus(root);
        let distinct = |key: fn(&Cpu) -> usize| {
            let mut keys: Vec<usize> = cpus.iter().map(key).collect();
            keys.sort_unstable();
            keys.dedup();
            keys.len()
        };
        Topology {
            cpu_model: cpu_model(root),
            online_cpus: std::thread::available_parallelism().map_or(cpus.len(), |n| n.get()).max(cpus.len()),
            sockets: distinct(|cpu| cpu.socket),
            l3_groups: distinct(|cpu| cpu.l3_group),
            l3_bytes: cpus.first().map_or(0, |cpu| l3_bytes(root, cpu.id)),
            physical_cores: cores.len(),
            quota_cpus,
            isas: crate::Isa::available(),
            transparent_huge_pages: transparent_huge_pages(root),
            memory_bytes: memory_bytes(root),
            memory_limit_bytes: memory_limit_bytes(root),
            usable_threads: usable(cpus.len(), cores.len(), quota_cpus),
            cpus,
        }
    }

    /// The threads that one engine takes by itself.
    pub fn default_threads(&self) -> usize {
        self.usable_threads.min(MAX_DEFAULT_THREADS)
    }

    /// The memory that this process may use.
    pub fn usable_memory_bytes(&self) -> u64 {
        self.memory_limit_bytes.unwrap_or(u64::MAX).min(self.memory_bytes)
    }

    /// The CPUs to pin threads to, in order: one logical CPU of each core first, filling one cache group after the
    /// other, then the SMT siblings.
    pub fn pin_order(&self) -> Vec<usize> {
        self.pins().into_iter().map(|(cpu, _)| cpu).collect()
    }

    /// [`Topology::pin_order`] with the cache group of each CPU.
    pub(crate) fn pins(&self) -> Vec<(usize, usize)> {
        let mut order: Vec<&Cpu> = self.cpus.iter().collect();
        order.sort_by_key(|cpu| (cpu.socket, cpu.l3_group, cpu.core, cpu.id));
        let mut seen: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut ranked: Vec<(usize, usize, usize)> = order
            .iter()
            .map(|cpu| {
                let sibling = seen.entry((cpu.socket, cpu.core)).or_insert(0);
                *sibling += 1;
                (*sibling, cpu.id, cpu.l3_group)
            })
            .collect();
        ranked.sort_by_key(|&(sibling, ..)| sibling);
        ranked.into_iter().map(|(_, id, l3_group)| (id, l3_group)).collect()
    }
}

fn usable(affinity: usize, cores: usize, quota_cpus: Option<f64>) -> usize {
    let quota = quota_cpus.map_or(usize::MAX, |cpus| cpus.floor() as usize);
    affinity.min(cores).min(quota).max(1)
}

/// The cgroup's throttling counters, if it has any.
pub fn throttling() -> Option<Throttling> {
    let text = cgroup_files(Path::new("/"), "cpu", "cpu.stat")
        .into_iter()
        .find_map(|path| fs::read_to_string(path).ok())?;
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    Some(Throttling {
        periods: field("nr_throttled "),
        throttled_us: field("throttled_usec ").max(field("throttled_time ") / 1000),
    })
}

fn allowed_cpus(root: &Path) -> Vec<Cpu> {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0");
    let mut ids = parse_cpu_list(list);
    if ids.is_empty() {
        ids.push(0);
    }
    ids.into_iter().map(|id| read_cpu(root, id)).collect()
}

fn read_cpu(root: &Path, id: usize) -> Cpu {
    let base = root.join(format!("sys/devices/system/cpu/cpu{id}"));
    let number = |file: &str| read_trimmed(&base.join(file)).and_then(|text| text.parse::<usize>().ok());
    Cpu {
        id,
        socket: number("topology/physical_package_id").unwrap_or(0),
        core: number("topology/core_id").unwrap_or(id),
        l3_group: read_trimmed(&base.join("cache/index3/shared_cpu_list"))
            .and_then(|list| parse_cpu_list(&list).first().copied())
            .unwrap_or(0),
    }
}

fn l3_bytes(root: &Path, cpu: usize) -> u64 {
    let path = root.join(format!("sys/devices/system/cpu/cpu{cpu}/cache/index3/size"));
    read_trimmed(&path).map_or(0, |text| parse_size(&text))
}

fn parse_size(text: &str) -> u64 {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "K" | "kB" => 1 << 10,
        "M" => 1 << 20,
        _ => 1,
    };
    digits.parse::<u64>().unwrap_or(0) * unit
}

/// Reads lists such as `0-3,8,10-11`; what is malformed is left out.
fn parse_cpu_list(text: &str) -> Vec<usize> {
    let mut ids = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>())
            && last < 1 << 16
        {
            ids.extend(first..=last);
        }
    }
    ids
}

fn cpu_model(root: &Path) -> String {
    let text = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn transparent_huge_pages(root: &Path) -> String {
    let text = read_trimmed(&root.join("sys/kernel/mm/transparent_hugepage/enabled")).unwrap_or_default();
    text.split(['[', ']']).nth(1).unwrap_or_default().to_owned()
}

fn memory_bytes(root: &Path) -> u64 {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("MemTotal:")).map_or(0, |size| parse_size(size.trim()))
}

fn memory_limit_bytes(root: &Path) -> Option<u64> {
    let read = |name| cgroup_files(root, "memory", name).into_iter().filter_map(|path| read_trimmed(&path));
    let limits = read("memory.max").chain(read("memory.limit_in_bytes"));
    // Version 1 writes a huge number where it means that there is no limit.
    limits.filter_map(|text| text.parse::<u64>().ok()).filter(|limit| *limit < memory_bytes(root)).min()
}

/// CPUs' worth of time of the tightest limit on the way up the cgroup tree, of version 2 or 1.
fn quota_cpus(root: &Path) -> Option<f64> {
    let v2 = cgroup_files(root, "cpu", "cpu.max").into_iter().filter_map(|path| {
        let text = read_trimmed(&path)?;
        let (quota, period) = text.split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    });
    let v1 = cgroup_files(root, "cpu", "cpu.cfs_quota_us").into_iter().filter_map(|path| {
        let quota = read_trimmed(&path)?.parse::<f64>().ok()?;
        let period = read_trimmed(&path.with_file_name("cpu.cfs_period_us"))?.parse::<f64>().ok()?;
        (quota > 0.0).then_some(quota / period)
    });
    v2.chain(v1).filter(|cpus| cpus.is_finite() && *cpus > 0.0).min_by(f64::total_cmp)
}

/// Where `file` of a controller may stand, from this process's own group up to the root.
fn cgroup_files(root: &Path, controller: &str, file: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let all = root.join("sys/fs/cgroup");
    let mut paths = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let tree = if controllers.is_empty() {
            all.clone()
        } else if controllers.split(',').any(|name| name == controller) {
            all.join(controllers)
        } else {
            continue;
        };
        // Inside a container the path may be that of the host, which is not mounted: the root is tried as well.
        let mut folder = Some(Path::new(group.trim_start_matches('/')));
        while let Some(relative) = folder {
            paths.push(tree.join(relative).join(file));
            folder = relative.parent();
        }
        paths.push(all.join(controller).join(file));
    }
    paths.retain(|path| path.exists());
    paths
}

fn read_trimmed(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_and_rubbish_is_left_out() {
        assert_eq!(parse_cpu_list("0-2,5, 7-8\n"), [0, 1, 2, 5, 7, 8]);
        assert_eq!(parse_cpu_list("x,3-,4-99999999999"), Vec::<usize>::new());
    }

    #[test]
    fn the_tightest_of_affinity_cores_and_quota_counts() {
        assert_eq!(usable(96, 48, Some(7.65)), 7);
        assert_eq!(usable(4, 2, None), 2);
        assert_eq!(usable(4, 4, Some(0.5)), 1);
    }

    #[test]
    fn smt_siblings_are_pinned_last() {
        let cpu = |id, core, l3_group| Cpu { id, socket: 0, core, l3_group };
        let mut topology = Topology::read();
        topology.cpus =
            vec![cpu(0, 0, 0), cpu(1, 1, 0), cpu(2, 2, 2), cpu(3, 0, 0), cpu(4, 1, 0), cpu(5, 2, 2)];
        assert_eq!(topology.pin_order(), [0, 1, 2, 3, 4, 5]);
    }

    /// A machine made of files: per socket so many cache groups, each of so many cores with two threads. Siblings are numbered
    /// as Linux does: first one thread of every core, then the others.
    fn machine(
        sockets: usize,
        groups: usize,
        cores: usize,
        allowed: &str,
        cpu_max: &str,
    ) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: String, text: String| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let n = sockets * groups * cores;
        for id in 0..2 * n {
            let (core, base) = (id % n, format!("sys/devices/system/cpu/cpu{id}"));
            let first = core / cores * cores;
            write(format!("{base}/topology/physical_package_id"), format!("{}\n", core / (groups * cores)));
            write(format!("{base}/topology/core_id"), format!("{}\n", core % (groups * cores)));
            let shared = format!("{first}-{},{}-{}\n", first + cores - 1, n + first, n + first + cores - 1);
            write(format!("{base}/cache/index3/shared_cpu_list"), shared);
            write(format!("{base}/cache/index3/size"), "16384K\n".to_owned());
        }
        write("proc/self/status".to_owned(), format!("Name:\tt\nCpus_allowed_list:\t{allowed}\n"));
        write("proc/self/cgroup".to_owned(), "0::/pods/a\n".to_owned());
        write("proc/meminfo".to_owned(), "MemTotal:       64000000 kB\n".to_owned());
        write("proc/cpuinfo".to_owned(), "model name\t: A CPU\n".to_owned());
        write("sys/fs/cgroup/pods/a/cpu.max".to_owned(), format!("{cpu_max}\n"));
        root
    }

    #[test]
    fn a_machine_with_two_sockets_and_eight_caches_is_read_from_its_files() {
        let root = machine(2, 4, 4, "0-63", "max 100000");
        let found = Topology::read_under(root.path());
        assert_eq!(
            (found.sockets, found.l3_groups, found.physical_cores, found.usable_threads),
            (2, 8, 32, 32)
        );
        assert_eq!((found.l3_bytes, found.quota_cpus, found.default_threads()), (16 << 20, None, 16));
        assert_eq!((found.cpu_model.as_str(), found.usable_memory_bytes()), ("A CPU", 64_000_000 << 10));
        // Threads fill one cache after the other, one to a core, and siblings come last.
        assert_eq!(found.pin_order()[..33], (0..33).collect::<Vec<_>>());
        let groups: Vec<usize> = found.pins().iter().take(10).map(|&(_, group)| group).collect();
        assert_eq!(groups, [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]);
    }

    #[test]
    fn affinity_and_quota_bound_what_is_used_of_a_large_machine() {
        let root = machine(1, 2, 8, "6-9,22-25", "350000 100000");
        let found = Topology::read_under(root.path());
        assert_eq!((found.l3_groups, found.physical_cores, found.usable_threads), (2, 4, 3));
        assert_eq!(found.pin_order(), [6, 7, 8, 9, 22, 23, 24, 25]);
        let root = machine(1, 1, 2, "0-3", "50000 100000");
        assert_eq!(Topology::read_under(root.path()).usable_threads, 1);
    }

    #[test]
    fn this_machine_has_at_least_one_usable_thread() {
        let topology = Topology::read();
        assert!(topology.usable_threads >= 1 && topology.usable_threads <= topology.cpus.len());
        assert!(topology.usable_memory_bytes() > 0);
    }
}
