//! A pod from its order to its end: what it costs, what runs in it, which of its ports are public.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use ternfleet_cloud::time::to_rfc3339;
use ternfleet_proto::TimeMs;
use tokio::net::{TcpListener, TcpStream};

use super::container::{Container, Image};
use super::network::Link;
use super::{Fault, LAST_WORD, Shared};

/// Between the end of a container and its next start.
const RESTART_AFTER: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A pod, also one that has ended.
#[derive(Debug)]
pub struct Pod {
    pub id: String,
    pub name: String,
    pub order: Value,
    pub price_usd_micro_per_hour: i64,
    pub created_at: TimeMs,
    pub started_at: Option<TimeMs>,
    pub ended_at: Option<TimeMs>,
    /// Stopped by an action: its container does not run.
    pub stopped: bool,
    /// Some list has held it.
    pub listed: bool,
    /// How often its container has started.
    pub starts: u32,
    /// Inner port, outer port.
    pub ports: Vec<(u16, u16)>,
    pub log: PathBuf,
    pub(super) number: u32,
    pub(super) fault: Option<Fault>,
    pub(super) container: Option<Child>,
    pub(super) link: Option<Link>,
}

impl Pod {
    /// What a pod's own key is: it may see and end this pod, and nothing else.
    pub fn key(&self) -> String {
        format!("rpa_pod_{}", self.id)
    }

    /// By the second, each begun second whole.
    pub fn billed_usd_micro(&self, now: TimeMs) -> i64 {
        let seconds = self.ended_at.unwrap_or(now).since(self.created_at).as_millis().div_ceil(1000);
        i64::try_from(i128::from(self.price_usd_micro_per_hour) * seconds as i128 / 3600).unwrap_or(i64::MAX)
    }

    pub(super) fn status(&self) -> &'static str {
        match (self.ended_at, self.stopped, self.started_at) {
            (Some(_), ..) => "TERMINATED",
            (None, true, _) => "EXITED",
            (None, false, None) => "PROVISIONING",
            (None, false, Some(_)) => "RUNNING",
        }
    }

    /// As the API shows it.
    pub(super) fn view(&self, shared: &Shared, data_center: &str) -> Value {
        let running = self.status() == "RUNNING";
        let ip = shared.network.gateway().to_string();
        let port = |(private, public): &(u16, u16)| json!({"private": private, "public": public, "type": "tcp", "ip": ip});
        let ports: Vec<Value> = self.ports.iter().map(port).collect();
        let cost = if running { self.price_usd_micro_per_hour as f64 / 1e6 } else { 0.0 };
        let mut view = json!({
            "id": self.id, "name": self.name, "status": self.status(), "image": self.order["image"],
            "actions": if self.stopped { json!(["start", "terminate"]) } else { json!(["stop", "restart", "terminate"]) },
            "args": self.order.get("args").cloned().unwrap_or_else(|| json!("")),
            "disk": self.order.get("disk").cloned().unwrap_or_else(|| json!(20)),
            "mounts": self.order.get("mounts").cloned().unwrap_or_else(|| json!({})),
            "ports": self.order.get("ports").cloned().unwrap_or_else(|| json!([])),
            "env": self.order.get("env").cloned().unwrap_or_else(|| json!({})),
            "registry": null, "cloud": self.order.get("cloud").cloned().unwrap_or_else(|| json!("SECURE")),
            "dataCenterId": data_center, "cudaVersion": null, "ssh": {"proxy": null, "direct": null},
            "template": null, "cost": cost, "locked": false, "globalNetworking": {"enabled": false},
            "runtime": if running { json!({"uptime": 1, "ports": ports}) } else { Value::Null },
            "createdAt": fine(self.created_at), "startedAt": self.started_at.map(fine),
        });
        for kind in ["cpu", "gpu"] {
            if let Some(size) = self.order.get(kind) {
                view[kind] = size.clone();
                view[kind]["memory"] = json!(32);
            }
        }
        view
    }
}

/// To the millisecond.
pub(super) fn fine(at: TimeMs) -> String {
    to_rfc3339(at.0).replace('Z', &format!(".{:03}Z", at.0 % 1000))
}

/// Gives a pod its address and ports, starts its container, and starts it again whenever it ends, until the pod does.
pub(super) async fn run(shared: Arc<Shared>, id: String) {
    if let Err(error) = bring_up(&shared, &id).await {
        shared.state().faults.push(format!("{id} was not brought up: {error:#}"));
        return;
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let ended = {
            let mut state = shared.state();
            let Some(pod) = state.pod_mut(&id) else { return };
            match &mut pod.container {
                Some(container) => matches!(container.try_wait(), Ok(Some(_))),
                None => pod.fault != Some(Fault::Mute) && !pod.stopped,
            }
        };
        if ended {
            tokio::time::sleep(RESTART_AFTER).await;
            if let Err(error) = start(&shared, &id) {
                shared.state().faults.push(format!("{id} was not started again: {error:#}"));
                return;
            }
        }
    }
}

async fn bring_up(shared: &Arc<Shared>, id: &str) -> anyhow::Result<()> {
    let (number, order, fault) = {
        let state = shared.state();
        let pod = state.pods.iter().find(|pod| pod.id == id).context("it is gone")?;
        (pod.number, pod.order.clone(), pod.fault)
    };
    if let Some(Fault::Late(ms)) = fault {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let joining = Arc::clone(shared);
    let link = tokio::task::spawn_blocking(move || joining.network.join(number)).await??;
    // The provider's API as every pod has it: from inside it is under the same address as from outside.
    let inside = link.listen(([127, 0, 0, 1], shared.port).into())?;
    tokio::spawn(super::api::serve(Arc::clone(shared), TcpListener::from_std(inside)?));
    let mut ports = Vec::new();
    for port in order["ports"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let Some(inner) = port.strip_suffix("/tcp").and_then(|port| port.parse::<u32>().ok()) else {
            continue;
        };
        let listener = TcpListener::bind(shared.public_address(0)).await?;
        let outer = listener.local_addr()?.port();
        // A number above 70000 asks for a port that is the same inside and outside.
        let inner_port = u16::try_from(inner).unwrap_or(outer);
        tokio::spawn(forward(listener, (link.address, inner_port).into(), Arc::clone(shared), id.to_owned()));
        ports.push((inner_port, outer));
    }
    {
        let mut state = shared.state();
        let pod = state.pod_mut(id);
        let Some(pod) = pod else {
            drop(state);
            link.leave();
            return Ok(());
        };
        (pod.link, pod.ports) = (Some(link), ports);
    }
    start(shared, id)
}

/// Starts the container of a pod that still is one.
fn start(shared: &Shared, id: &str) -> anyhow::Result<()> {
    let mut state = shared.state();
    let (data_center, read_only) = (state.market.data_center.clone(), state.volumes_read_only);
    let Some(pod) = state.pod_mut(id).filter(|pod| !pod.stopped) else { return Ok(()) };
    pod.started_at.get_or_insert(TimeMs::now());
    let Some(link) = pod.link.clone().filter(|_| pod.fault != Some(Fault::Mute)) else { return Ok(()) };
    let image = pod.order["image"].as_str().unwrap_or_default();
    let image = shared.images.get(image).with_context(|| format!("there is no image {image:?}"))?;
    let words = |value: &Value| -> Option<Vec<String>> {
        let words = value.as_array()?.iter().filter_map(Value::as_str).map(str::to_owned);
        Some(words.collect::<Vec<_>>()).filter(|words| !words.is_empty())
    };
    // As a container engine has it: a new entry point drops the image's command.
    let entrypoint = words(&pod.order["entrypoint"]);
    let cmd = words(&pod.order["cmd"]).or_else(|| split(pod.order["args"].as_str().unwrap_or_default()));
    let fallback = if entrypoint.is_some() { Vec::new() } else { image.cmd.clone() };
    let mut command = entrypoint.unwrap_or_else(|| image.entrypoint.clone());
    command.extend(cmd.unwrap_or(fallback));
    if pod.fault == Some(Fault::Doomed) {
        let script = format!("echo '{LAST_WORD}' >&2; exit 1");
        command = vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
    }
    let set = |name: &str, value: String| (name.to_owned(), value);
    let mut env: Vec<(String, String)> = pod.order["env"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| set(name, value.as_str().unwrap_or_default().to_owned()))
        .collect();
    env.extend([
        set("RUNPOD_POD_ID", pod.id.clone()),
        set("RUNPOD_API_KEY", pod.key()),
        set("RUNPOD_DC_ID", data_center),
        set("RUNPOD_PUBLIC_IP", shared.network.gateway().to_string()),
    ]);
    env.extend(
        pod.ports.iter().map(|(inner, outer)| set(&format!("RUNPOD_TCP_PORT_{inner}"), outer.to_string())),
    );
    let mut mounts = Vec::new();
    for mount in pod.order["mounts"]["network"].as_array().into_iter().flatten() {
        let id = mount["volumeId"].as_str().unwrap_or_default();
        mounts.push((shared.volume(id)?, mount["path"].as_str().unwrap_or("/workspace").to_owned()));
    }
    let container =
        Container { image: Image::clone(image), hostname: pod.id.clone(), command, env, mounts, read_only };
    let root = shared.folder.path().join("roots").join(&pod.id);
    pod.container = Some(container.start(&link, &root, &pod.log)?);
    pod.starts += 1;
    Ok(())
}

/// `args` as a shell would split them, quotes and all; `None` when there are none.
fn split(args: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = args.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(letters.next()),
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    (!words.is_empty()).then_some(words)
}

/// Passes connections on until the pod has ended.
async fn forward(listener: TcpListener, to: std::net::SocketAddr, shared: Arc<Shared>, id: String) {
    let alive = || shared.state().pod(&id).is_some();
    while alive() {
        let Ok(Ok((mut outside, _))) =
            tokio::time::timeout(Duration::from_millis(500), listener.accept()).await
        else {
            continue;
        };
        tokio::spawn(async move {
            // Nobody listens there (yet): the caller sees that its connection is closed.
            if let Ok(mut inside) = TcpStream::connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_are_split_as_a_shell_splits_them() {
        let words = split(r#"-c 'set -e; echo "a  b"' x\ y "q\"r" ''"#).unwrap();
        assert_eq!(words, ["-c", "set -e; echo \"a  b\"", "x y", "q\"r", ""]);
        assert_eq!(split("  "), None);
    }

    #[test]
    fn a_begun_second_is_billed_whole() {
        let pod = Pod {
            id: "p".to_owned(),
            name: "a".to_owned(),
            order: Value::Null,
            price_usd_micro_per_hour: 3_600_000,
            created_at: TimeMs(10_000),
            started_at: None,
            ended_at: Some(TimeMs(12_001)),
            stopped: false,
            starts: 0,
            listed: false,
            ports: Vec::new(),
            log: PathBuf::new(),
            number: 1,
            fault: None,
            container: None,
            link: None,
        };
        assert_eq!(pod.billed_usd_micro(TimeMs(99_000)), 3_000);
        assert_eq!(fine(TimeMs(1_780_315_200_042)), "2026-06-01T12:00:00.042Z");
    }
}
