//! Dividing this machine's cores among the workers, so that no two of them pin threads to one core while others idle.

use ternfleet_engine::host::Topology;

/// What one worker gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) threads: usize,
    /// Logical CPUs that it may run on.
    pub(crate) cpus: Vec<usize>,
}

/// Equal shares of the usable cores, one core at least; more workers than cores take turns.
pub(crate) fn shares(workers: usize, topology: &Topology) -> Vec<Share> {
    divide(workers, topology.usable_threads, &topology.pin_order())
}

fn divide(workers: usize, usable_threads: usize, cpus_in_order: &[usize]) -> Vec<Share> {
    let usable = usable_threads.clamp(1, cpus_in_order.len().max(1));
    let threads = (usable / workers.max(1)).max(1);
    (0..workers)
        .map(|worker| {
            let cpus = (0..threads)
                .filter_map(|thread| cpus_in_order.get((worker * threads + thread) % usable).copied())
                .collect();
            Share { threads, cpus }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_get_equal_and_separate_shares() {
        let shares = divide(2, 4, &[0, 2, 4, 6, 1, 3, 5, 7]);
        assert_eq!(shares[0], Share { threads: 2, cpus: vec![0, 2] });
        assert_eq!(shares[1], Share { threads: 2, cpus: vec![4, 6] });
    }

    #[test]
    fn more_workers_than_cores_take_turns() {
        let shares = divide(3, 2, &[0, 1]);
        let cpus: Vec<_> = shares.iter().map(|share| share.cpus.clone()).collect();
        assert_eq!(cpus, [vec![0], vec![1], vec![0]]);
        assert!(shares.iter().all(|share| share.threads == 1));
    }

    #[test]
    fn a_quota_below_the_cores_bounds_the_threads() {
        let shares = divide(1, 3, &[0, 1, 2, 3]);
        assert_eq!(shares, [Share { threads: 3, cpus: vec![0, 1, 2] }]);
    }
}
