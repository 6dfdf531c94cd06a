//! Who this worker is: an id that no other process has, the host it shares, the pod it belongs to.

use ternfleet_proto::{TimeMs, WorkerId};

use crate::options::Options;

/// Names of one worker process.
#[derive(Debug, Clone)]
pub struct Identity {
    pub worker: WorkerId,
    pub host: String,
    pub pod: String,
    pub started_at: TimeMs,
}

impl Identity {
    /// A new identity; two calls never give the same worker id.
    pub fn new(options: &Options) -> Identity {
        let read = |path| std::fs::read_to_string(path).ok().map(|text: String| text.trim().to_owned());
        let some = |text: &String| !text.is_empty();
        let hostname = read("/proc/sys/kernel/hostname").filter(some).unwrap_or_else(|| "host".to_owned());
        // Containers of one image share a machine id; the hostname tells them apart.
        let machine = read("/etc/machine-id").filter(some).unwrap_or_default();
        let host = short_hash(&[machine.as_bytes(), hostname.as_bytes()]);
        let pod = if options.pod.is_empty() { subject_token(&hostname, 40) } else { options.pod.clone() };
        let started_at = TimeMs::now();
        // The kernel's random numbers tell apart what pod, process id and time cannot: containers cloned from one
        // state, and two workers of one process.
        let random = read("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let unique = short_hash(&[
            host.as_bytes(),
            &std::process::id().to_le_bytes(),
            &started_at.0.to_le_bytes(),
            random.as_bytes(),
        ]);
        let worker = options.worker.clone().unwrap_or_else(|| {
            let made_up = format!("{}-{unique}", subject_token(&pod, 40));
            made_up.parse().expect("because it is made of subject characters and under 64 bytes")
        });
        Identity { worker, host: format!("{}-{host}", subject_token(&hostname, 40)), pod, started_at }
    }
}

/// Twelve hexadecimal digits.
fn short_hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().to_hex().chars().take(12).collect()
}

/// `text` with everything that a subject's token may not hold replaced, and cut.
fn subject_token(text: &str, most: usize) -> String {
    let token: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '-' })
        .take(most)
        .collect();
    if token.is_empty() { "worker".to_owned() } else { token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_of_one_host_differ_in_id_and_share_the_host() {
        let options = Options { pod: "pod a/b.c".to_owned(), ..Options::default() };
        let (one, two) = (Identity::new(&options), Identity::new(&options));
        assert_ne!(one.worker, two.worker);
        assert_eq!((one.host, one.pod), (two.host, two.pod));
        assert!(one.worker.as_str().starts_with("pod-a-b-c-"), "{}", one.worker);
    }
}
