//! NATS: does it answer, is it new enough, has it JetStream, are the streams as the table has them, when does it sync.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use ternfleet_cloud::time::from_rfc3339;
use ternfleet_proto::message::Durability;
use ternfleet_proto::nats::{ConnectOptions, NatsBus};
use ternfleet_proto::table::{self, SyncFacts};
use ternfleet_proto::{Bus, TimeMs};

use super::Finding;
use crate::client::connect_options;
use crate::connection::Connection;

const MONITOR_TIMEOUT: Duration = Duration::from_secs(3);
/// Deadlines and leases are compared across machines, so clocks should agree to about this.
const CLOCK_SKEW_MAX_MS: u64 = 2_000;
const NOT_REACHED: &str = "not checked: NATS does not reply";

/// Also answers with the connection, for what comes after.
pub(super) async fn look(
    connection: &Connection,
    monitoring: Option<&str>,
) -> (Vec<Finding>, Option<Arc<NatsBus>>) {
    let began = Instant::now();
    let bus = match reach(connection).await {
        Ok(bus) => Arc::new(bus),
        Err(reason) => {
            let fix = format!(
                "start a fleet with `ternfleet up`, start nats-server with -js, or pass the right address \
                 with --nats (now {})",
                connection.address().url()
            );
            let mut found = vec![Finding::fault("nats", format!("{reason:#}"), fix)];
            for check in ["streams", "clock", "durability"] {
                found.push(Finding::unknown(check, NOT_REACHED, "fix NATS first"));
            }
            return (found, None);
        }
    };
    let mut found = vec![version(&bus, began.elapsed()), payload(&bus), account(&bus).await];
    found.extend(streams(&bus).await);
    found.push(durability(monitoring).await);
    (found, Some(bus))
}

async fn reach(connection: &Connection) -> anyhow::Result<NatsBus> {
    let options: ConnectOptions = connect_options(connection);
    Ok(NatsBus::connect(&options).await?)
}

fn version(bus: &NatsBus, took: Duration) -> Finding {
    let facts = bus.server();
    let detail = format!("nats-server {} ({}) replied in {} ms", facts.version, facts.name, took.as_millis());
    let (major, minor) = table::OLDEST_SERVER;
    if table::server_is_new_enough(&facts.version) {
        Finding::ok("nats", detail)
    } else {
        Finding::fault(
            "nats",
            detail,
            format!(
                "older servers can lose acknowledged writes: install nats-server {major}.{minor} or \
                     newer"
            ),
        )
    }
}

fn payload(bus: &NatsBus) -> Finding {
    let bytes = bus.server().max_payload_bytes;
    let detail = format!("messages of up to {} KiB", bytes >> 10);
    if bytes < 1 << 20 {
        Finding::warning(
            "payload",
            detail,
            "set max_payload to 1MB or more in the configuration of \
                                             nats-server",
        )
    } else {
        Finding::ok("payload", detail)
    }
}

async fn account(bus: &NatsBus) -> Finding {
    match bus.account_facts().await {
        Ok(facts) => {
            let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
            let detail = format!("{} streams use {}", facts.streams, mib(facts.storage_bytes));
            match facts.storage_limit_bytes {
                Some(limit) if facts.storage_bytes > limit / 10 * 9 => Finding::warning(
                    "jetstream",
                    format!("{detail} of {}", mib(limit)),
                    "nearly full: raise the account's storage limit, or delete old files (DELETE \
                     /v1/files/<id>)",
                ),
                Some(limit) => Finding::ok("jetstream", format!("{detail} of {}", mib(limit))),
                None => Finding::ok("jetstream", format!("{detail}; limited only by the disk")),
            }
        }
        Err(reason) => Finding::unknown(
            "jetstream",
            reason.to_string(),
            "this user has no permission for the account's state ($JS.API.INFO); the coordinator's user has",
        ),
    }
}

async fn streams(bus: &NatsBus) -> Vec<Finding> {
    let mut specs = table::streams(1);
    specs.push(table::work_stream_spec(0, 1));
    let (mut names, mut found, mut server_time) = (Vec::new(), Vec::new(), None);
    for spec in &specs {
        match bus.inspect_stream(spec).await {
            Ok(Some(stream)) => {
                server_time = server_time.or(stream.server_time.map(|at| (at, TimeMs::now())));
                for (name, value, wanted) in &stream.differences {
                    found.push(Finding::fault(
                        "streams",
                        format!("{}: {name} is {value} and should be {wanted}", spec.name),
                        "restart the coordinator, which updates the settings; find out who changed them",
                    ));
                }
                names.push(format!("{} ({})", spec.name, stream.messages));
            }
            Ok(None) => found.push(Finding::fault(
                "streams",
                format!("{} does not exist", spec.name),
                "start a coordinator with this NATS server; it creates the streams",
            )),
            Err(reason) => found.push(Finding::unknown(
                "streams",
                format!("{}: {reason}", spec.name),
                "this user has no permission to read streams; the coordinator's user has",
            )),
        }
    }
    if found.is_empty() {
        found.push(Finding::ok("streams", format!("correct settings: {}", names.join(", "))));
    }
    if let Some((told, at)) = server_time.and_then(|(text, at)| Some((from_rfc3339(&text)?, at))) {
        found.push(clock("clock", "NATS", told, at));
    }
    found
}

/// Compares a time that was told just now with this machine's.
pub(super) fn clock(check: &'static str, who: &str, told_ms: u64, now: TimeMs) -> Finding {
    let apart = told_ms.abs_diff(now.0);
    if apart > CLOCK_SKEW_MAX_MS {
        Finding::warning(
            check,
            format!("the clocks of {who} and of this machine differ by {:.1} s", apart as f64 / 1000.0),
            "deadlines need equal clocks: run chrony or systemd-timesyncd on all machines",
        )
    } else {
        Finding::ok(check, format!("{who} and this machine differ by {apart} ms"))
    }
}

async fn durability(monitoring: Option<&str>) -> Finding {
    let Some(url) = monitoring else {
        return Finding::unknown(
            "durability",
            "only the monitoring port of NATS shows how often it syncs to disk",
            "pass --nats-monitoring-url http://HOST:8222",
        );
    };
    let sync = match varz(url).await {
        Ok(body) => SyncFacts::from_varz(&body),
        Err(reason) => {
            return Finding::fault(
                "durability",
                format!("{url}: {reason:#}"),
                "pass the monitoring address of NATS (http: 8222 in its configuration)",
            );
        }
    };
    let Some(facts) = sync else {
        return Finding::fault(
            "durability",
            format!("{url}/varz contains nothing about JetStream"),
            "enable JetStream (nats-server -js)",
        );
    };
    match table::durability(facts.cluster_size, Some(facts)) {
        Durability::Fsynced => Finding::ok("durability", "NATS syncs to disk before it acknowledges"),
        Durability::Replicated => Finding::ok(
            "durability",
            format!(
                "replicated on {} servers, each syncs to disk every {} s",
                facts.cluster_size,
                facts.interval_ns / 1_000_000_000
            ),
        ),
        _ => Finding::warning(
            "durability",
            format!(
                "one server, syncs to disk every {} s: a power failure loses the messages since the last \
                 sync",
                facts.interval_ns / 1_000_000_000
            ),
            "in production, set sync_interval: always in its jetstream block, or run three servers",
        ),
    }
}

/// Monitoring ports speak plain HTTP on a private address.
async fn varz(url: &str) -> anyhow::Result<Vec<u8>> {
    let host =
        url.strip_prefix("http://").context("the address must begin with http://")?.trim_end_matches('/');
    let question = format!("GET /varz HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = timeout(MONITOR_TIMEOUT, async {
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(question.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(1 << 20).read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    });
    let mut answer = answer.await.context("no reply in time")??;
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("the reply is not HTTP")?;
    Ok(answer.split_off(head + 4))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn clocks_may_differ_by_a_journey_but_not_by_minutes() {
        assert_eq!(clock("clock", "NATS", 1_000_000, TimeMs(1_000_300)).state, State::Ok);
        let far = clock("clock", "NATS", 1_000_000, TimeMs(1_090_000));
        assert_eq!(far.state, State::Warning);
        assert!(far.detail.contains("90.0 s"), "{}", far.detail);
    }
}
