//! The network of the stand-in: a bridge of its own, and a network namespace with an address for each pod. Nothing of
//! it reaches beyond this machine, and nothing is left when it is dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// A bridge, by which pods reach one another and the provider.
#[derive(Debug)]
pub struct Network {
    /// Begins the name of everything made here.
    prefix: String,
    subnet: [u8; 3],
    /// Takes everything away when this process is killed.
    watchdog: Child,
}

/// A pod's end of it.
#[derive(Debug, Clone)]
pub struct Link {
    pub namespace: String,
    pub address: Ipv4Addr,
    outer: String,
}

/// Removes what bears the prefix: processes, namespaces, interfaces.
const CLEAN: &str = r#"
for ns in $(ip netns list | awk '{print $1}' | grep "^$0"); do
  for pid in $(ip netns pids "$ns"); do kill -9 "$pid" 2>/dev/null; done
  ip netns delete "$ns"
done
ip link delete "$0" 2>/dev/null
exit 0
"#;

impl Network {
    /// # Errors
    /// When this process may not make one.
    pub fn new() -> anyhow::Result<Network> {
        let mut last = None;
        // Two tests at once must not choose the same addresses.
        for try_number in 0..20_u32 {
            let seed = std::process::id().wrapping_mul(2_654_435_761).wrapping_add(try_number * 40_503);
            let [a, b, c, _] = seed.to_be_bytes();
            let prefix = format!("tf{a:02x}{b:02x}{c:02x}");
            let subnet = [10, 64 + (a & 0x3f), b];
            match ip(&format!("link add {prefix} type bridge")) {
                Ok(()) => {
                    let watchdog = Command::new("sh")
                        .args(["-c", &format!("read _; {CLEAN}"), &prefix])
                        .stdin(Stdio::piped())
                        .stdout(Stdio::null())
                        .stderr(Stdio::null())
                        .spawn()
                        .context("cannot start sh")?;
                    let network = Network { prefix, subnet, watchdog };
                    let gateway = network.gateway();
                    ip(&format!("address add {gateway}/24 dev {}", network.prefix))?;
                    ip(&format!("link set {} up", network.prefix))?;
                    return Ok(network);
                }
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) => Err(error),
            None => bail!("no network was tried"),
        }
    }

    /// This machine's own address on the bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, 1)
    }

    /// A namespace for the pod of that number, from 1 on.
    ///
    /// # Errors
    /// When it cannot be made, or there are too many.
    pub fn join(&self, number: u32) -> anyhow::Result<Link> {
        let [a, b, c] = self.subnet;
        // Addresses are used again when the subnet is through: a pod of so long ago is gone.
        let last = u8::try_from(2 + (number - 1) % 250)?;
        let link = Link {
            namespace: format!("{}n{number}", self.prefix),
            address: Ipv4Addr::new(a, b, c, last),
            outer: format!("{}v{number}", self.prefix),
        };
        let Link { namespace, address, outer } = &link;
        let inner = format!("{}e{number}", self.prefix);
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("link add {outer} type veth peer name {inner} netns {namespace}"))?;
        ip(&format!("link set {outer} master {} up", self.prefix))?;
        ip(&format!("-n {namespace} address add {address}/24 dev {inner}"))?;
        ip(&format!("-n {namespace} link set {inner} up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        Ok(link)
    }
}

impl Link {
    /// Everything that still runs in it ends, and it goes.
    pub fn leave(&self) {
        // Either may be gone.
        let _ = Command::new("sh")
            .args([
                "-c",
                "for pid in $(ip netns pids \"$0\"); do kill -9 \"$pid\" 2>/dev/null; done",
                &self.namespace,
            ])
            .stderr(Stdio::null())
            .status();
        let _ = ip(&format!("netns delete {}", self.namespace));
        let _ = ip(&format!("link delete {}", self.outer));
    }

    /// Cuts or restores the link.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn connect(&self, connected: bool) -> anyhow::Result<()> {
        ip(&format!("link set {} {}", self.outer, if connected { "up" } else { "down" }))
    }

    /// Listens inside of the namespace, for this process.
    ///
    /// # Errors
    /// When the port is taken in there.
    pub fn listen(&self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.namespace))?;
        // A thread of its own enters, and ends there; the socket stays in the namespace it was made in.
        let bound = std::thread::spawn(move || -> anyhow::Result<TcpListener> {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind(address)?)
        });
        let Ok(listener) = bound.join() else { bail!("the thread that listens panicked") };
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The end of its input tells the watchdog to clean up.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("cannot run ip")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
