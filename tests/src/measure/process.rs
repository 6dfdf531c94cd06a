//! What a process has used, as Linux tells it.

/// Time on processors since it began, in seconds.
pub(super) fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold spaces; user and system time are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |place: usize| fields.get(place).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// Time that all processors of the machine have worked since it began, in seconds.
pub(super) fn machine_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // User, nice, system, idle, waiting for disks, interrupts of both sorts, and time that went to other machines.
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.filter_map(|text| text.parse().ok()).collect();
    let working = ticks.iter().enumerate().take(8).filter(|(place, _)| !matches!(place, 3 | 4));
    working.map(|(_, ticks)| ticks).sum::<f64>() / 100.0
}

/// Memory that it holds now, in MiB.
pub(super) fn resident_mib(pid: u32) -> u64 {
    status_mib(pid, "VmRSS:")
}

/// Most memory that it has held, in MiB; the part that is given back is not seen.
pub(super) fn peak_mib(pid: u32) -> u64 {
    status_mib(pid, "VmHWM:")
}

fn status_mib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    kib / 1024
}
