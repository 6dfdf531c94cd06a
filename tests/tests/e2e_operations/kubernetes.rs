//! `deploy/kubernetes/base/ternfleet.yaml`, run as it stands, addresses and the model apart: each container's arguments,
//! environment and mounts, under its security context (no root, no capability, a read-only root file system).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ternfleet_tests::cluster::Cluster;
use ternfleet_tests::program::{self, STORYTELLER, Service, wait_for};
use ternfleet_tests::server::free_port;

use crate::fleet::wait_for_pods;

const USER: u32 = 10_001;

/// A root file system for one container: the image's program, this machine's libraries, the manifest's mounts, and
/// nothing else that could be written.
const CONTAINER: &str = r#"
set -e
root=$1; program=$2; shift 2
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
for place in usr lib lib64 bin etc dev proc; do
  [ -e "/$place" ] || continue
  mkdir -p "$root/$place"; mount --rbind "/$place" "$root/$place"
done
mkdir -p "$root/app"; touch "$root/app/ternfleet"; mount --bind "$program" "$root/app/ternfleet"
while [ "$1" != -- ]; do
  inside=${1%%=*}; outside=${1#*=}; mkdir -p "$root$inside"
  if [ -n "$outside" ]; then mount --bind "$outside" "$root$inside"
  else mount -t tmpfs -o mode=1777 tmpfs "$root$inside"; fi
  shift
done
shift
mount -o remount,ro "$root"
exec chroot "$root" /usr/bin/setpriv --reuid=10001 --regid=10001 --clear-groups --bounding-set=-all --no-new-privs "$@"
"#;

/// What the manifest says of the container of this name.
struct Container {
    text: String,
}

impl Container {
    fn read(name: &str) -> Container {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/base/ternfleet.yaml");
        let all = std::fs::read_to_string(path).unwrap();
        let document = all.split("\n---\n").find(|part| part.contains(&format!("- name: {name}\n")));
        let text = document.unwrap().to_owned();
        for rule in ["runAsNonRoot: true, runAsUser: 10001", "readOnlyRootFilesystem: true", "drop: [ALL]"] {
            assert!(text.contains(rule), "{name}: {rule}");
        }
        Container { text }
    }

    fn arguments(&self) -> Vec<String> {
        let line = self.text.lines().find_map(|line| line.trim().strip_prefix("args: [")?.strip_suffix(']'));
        line.unwrap_or("pod").split(", ").map(|word| word.trim_matches('"').to_owned()).collect()
    }

    /// Variables with a value of their own, some of them replaced.
    fn environment(&self, replaced: &[(&str, String)]) -> Vec<String> {
        let mut all: Vec<(String, String)> = Vec::new();
        for line in self.text.lines() {
            let entry =
                line.trim().strip_prefix("- { name: TERNFLEET_").and_then(|rest| rest.strip_suffix(" }"));
            let Some((name, value)) = entry.and_then(|entry| entry.split_once(", value: ")) else { continue };
            all.push((format!("TERNFLEET_{name}"), value.trim_matches('"').to_owned()));
        }
        for (name, value) in replaced {
            match all.iter_mut().find(|(known, _)| known == name) {
                Some(entry) => entry.1.clone_from(value),
                None => all.push(((*name).to_owned(), value.clone())),
            }
        }
        all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Starts it; `mounts` names a folder for each that is not scratch.
    fn start(
        &self,
        cluster: &Cluster,
        name: &str,
        replaced: &[(&str, String)],
        mounts: &[(&str, &Path)],
    ) -> Service {
        let root = cluster.scratch(&format!("{name}-root"));
        std::fs::create_dir(&root).unwrap();
        let mut words: Vec<String> = ["-m", "sh", "-c", CONTAINER, "container"].map(str::to_owned).into();
        words.extend([root.display().to_string(), program::binary().unwrap().display().to_string()]);
        for line in self.text.lines() {
            let Some(at) = line.split("mountPath: ").nth(1) else { continue };
            let inside = at.split([',', ' ', '}']).next().unwrap();
            let outside = mounts.iter().find(|(place, _)| *place == inside).map(|(_, folder)| folder);
            words.push(format!(
                "{inside}={}",
                outside.map_or(String::new(), |folder| folder.display().to_string())
            ));
        }
        words.extend(["--", "/usr/bin/env", "-i"].map(str::to_owned));
        words.extend(self.environment(replaced));
        words.push("/app/ternfleet".to_owned());
        words.extend(self.arguments());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let log = cluster.scratch(&format!("{name}.log"));
        Service::start_program(Path::new("unshare"), &words, &log).unwrap()
    }
}

/// A secret as the kubelet mounts it: group-readable for the container's group.
fn secret(cluster: &Cluster, name: &str, files: &[(&str, PathBuf)]) -> PathBuf {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let folder = cluster.scratch(name);
    std::fs::create_dir(&folder).unwrap();
    for (file, from) in files {
        let to = folder.join(file);
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o440)).unwrap();
        chown(&to, Some(0), Some(USER)).unwrap();
    }
    folder
}

#[test]
fn the_kubernetes_manifest_runs_under_its_own_security_context() {
    use std::os::unix::fs::MetadataExt as _;
    let allowed =
        || Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 || !allowed() {
        eprintln!("skipped: only root can mount, and be somebody else");
        return;
    }
    let cluster = Cluster::start(3).unwrap();
    let site = cluster.site().join("coordinator");
    let keys = cluster.scratch("keys.toml");
    std::fs::write(&keys, program::run(&["key", "new"]).unwrap().stdout).unwrap();
    let files = ["coordinator.creds", "issuer.json", "ca.crt"].map(|file| (file, site.join(file)));
    let all: Vec<_> = files.into_iter().chain([("keys.toml", keys)]).collect();
    let mounted = secret(&cluster, "coordinator-secret", &all);
    let port = free_port().unwrap();
    let replaced = [
        ("TERNFLEET_NATS", cluster.url()),
        ("TERNFLEET_NATS_MONITORING_URL", cluster.monitor_url(0)),
        ("TERNFLEET_HTTP", format!("0.0.0.0:{port}")),
    ];
    let mut coordinator =
        Container::read("coordinator").start(&cluster, "coordinator", &replaced, &[("/keys", &mounted)]);
    let said =
        |name: &str| std::fs::read_to_string(cluster.scratch(&format!("{name}.log"))).unwrap_or_default();
    wait_for(Duration::from_secs(60), || {
        assert!(coordinator.is_alive(), "{}", said("coordinator"));
        Ok(crate::fleet::is_ready(port).then_some(()))
    })
    .unwrap();

    // The model that ships stands in for one that would be fetched; the volume holds it and belongs to root.
    let models = cluster.scratch("models");
    std::fs::create_dir(&models).unwrap();
    for file in ["storyteller.gguf", "manifest.toml"] {
        std::fs::copy(Path::new(STORYTELLER).with_file_name(file), models.join(file)).unwrap();
    }
    let join = secret(&cluster, "join-secret", &[("ca.crt", site.join("ca.crt"))]);
    let token = cluster.nats(&["token", "--life", "90d"]).unwrap();
    let replaced = [
        ("TERNFLEET_NATS", cluster.url()),
        ("TERNFLEET_NATS_JOIN_TOKEN", token.trim().to_owned()),
        ("TERNFLEET_MODEL", "storyteller".to_owned()),
        ("TERNFLEET_POD", "pod-1".to_owned()),
        ("TERNFLEET_HTTP", format!("0.0.0.0:{}", free_port().unwrap())),
    ];
    let mut worker = Container::read("worker").start(
        &cluster,
        "worker",
        &replaced,
        &[("/models", &models), ("/join", &join)],
    );
    wait_for(Duration::from_secs(60), || {
        assert!(worker.is_alive(), "{}", said("worker"));
        Ok(said("worker").contains("the worker is ready").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", said("worker")));
    let pods = wait_for_pods(&cluster, "acme", 1);
    assert!(pods[0].to_string().contains("\"pod-1\""), "{pods:?}");
}
