//! How NATS is: connected or not, how fast it answers, how full its streams are. Asked periodically, by every
//! coordinator, leader or not.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Counter, Gauge, GaugeVec, Histogram};
use ternfleet_proto::bus::{Bus, BusError, StreamFacts};
use ternfleet_proto::table;
use tokio::time::Instant;

use super::{Maker, Metrics};

const EVERY: Duration = Duration::from_secs(2);
/// Questions in a row without an answer before it is said: a new leader is found within seconds.
const SILENT_AFTER: u32 = 8;
/// A round trip takes a fraction of a millisecond on one machine, tens of them between continents.
const SECONDS: [f64; 11] = [0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0];
/// Label and name of the streams whose filling matters; the work streams of all shards are one more.
const STREAMS: [(&str, &str); 4] = [
    ("results", table::RESULTS),
    ("checkpoints", table::CHECKPOINTS),
    ("events", table::EVENTS),
    ("dead", table::DEAD),
];
const WORK: &str = "work";

pub(super) struct NatsSeries {
    pub(super) connected: Gauge,
    round_trip: Histogram,
    failures: Counter,
    messages: GaugeVec,
    bytes: GaugeVec,
    bytes_max: GaugeVec,
}

impl NatsSeries {
    pub(super) fn new(maker: &Maker) -> Self {
        let streams: Vec<&str> = STREAMS.iter().map(|(label, _)| *label).chain([WORK]).collect();
        Self {
            connected: maker.gauge("nats_connected", "1 while the connection to NATS is up."),
            round_trip: maker.histogram(
                "nats_round_trip_seconds",
                "Time that JetStream takes to answer a probe request of the coordinator.",
                &SECONDS,
            ),
            failures: maker
                .counter("nats_questions_failed_total", "Probe requests that JetStream did not answer."),
            messages: maker.gauges(
                "nats_stream_messages",
                "Messages stored in a stream; the work streams are added up.",
                "stream",
                &streams,
            ),
            bytes: maker.gauges(
                "nats_stream_bytes",
                "Bytes stored in a stream; the work streams are added up.",
                "stream",
                &streams,
            ),
            bytes_max: maker.gauges(
                "nats_stream_bytes_max",
                "Maximum bytes of a stream; 0 if only the disk limits it.",
                "stream",
                &streams,
            ),
        }
    }

    fn show(&self, label: &str, facts: StreamFacts) {
        self.messages.with_label_values(&[label]).set(facts.messages as f64);
        self.bytes.with_label_values(&[label]).set(facts.bytes as f64);
        self.bytes_max.with_label_values(&[label]).set(facts.bytes_max.unwrap_or(0) as f64);
    }

    async fn ask(&self, bus: &dyn Bus, stream: &str) -> Result<StreamFacts, BusError> {
        let began = Instant::now();
        let answer = bus.stream_facts(stream).await;
        match &answer {
            Ok(_) => self.round_trip.observe(began.elapsed().as_secs_f64()),
            // Before the first leader nothing exists; beyond the last shard nothing ever does.
            Err(BusError::NotFound(_)) => {}
            Err(_) => self.failures.inc(),
        }
        answer
    }
}

/// Notices that JetStream is silent behind a server that is there, and that it is back.
#[derive(Debug, Default)]
struct Silence {
    failures: u32,
}

/// What is to be said, once each time.
#[derive(Debug, PartialEq, Eq)]
enum Noticed {
    Silent,
    Back,
}

impl Silence {
    fn heard(&mut self, answer: &Result<StreamFacts, BusError>, connected: bool) -> Option<Noticed> {
        match answer {
            Err(BusError::Unreachable(_) | BusError::Refused(_)) if connected => {
                self.failures += 1;
                (self.failures == SILENT_AFTER).then_some(Noticed::Silent)
            }
            // No connection: that is said elsewhere.
            Err(BusError::Unreachable(_)) => None,
            _ => (std::mem::take(&mut self.failures) >= SILENT_AFTER).then_some(Noticed::Back),
        }
    }
}

/// Asks for as long as the process lives.
pub(crate) async fn watch(bus: Arc<dyn Bus>, metrics: Arc<Metrics>) {
    let mut silence = Silence::default();
    let mut ticker = tokio::time::interval(EVERY);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        let series = &metrics.nats;
        for (label, stream) in STREAMS {
            let answer = series.ask(&*bus, stream).await;
            match silence.heard(&answer, bus.connected()) {
                Some(Noticed::Silent) => tracing::error!(
                    "NATS replies, but JetStream does not: read the log of nats-server. If its disk is or \
                     was full, free some space and restart it; nothing acknowledged is lost, and all \
                     processes continue by themselves"
                ),
                Some(Noticed::Back) => tracing::info!("JetStream replies again"),
                None => {}
            }
            if let Ok(facts) = answer {
                series.show(label, facts);
            }
        }
        let mut work = StreamFacts::default();
        for shard in 0..u16::MAX {
            let Ok(facts) = series.ask(&*bus, &table::work_stream(shard)).await else { break };
            work.messages += facts.messages;
            work.bytes += facts.bytes;
        }
        series.show(WORK, work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_jetstream_is_noticed_once_and_so_is_its_return() {
        let mut silence = Silence::default();
        let nothing = || Err(BusError::Unreachable("off".to_owned()));
        for _ in 0..100 {
            assert_eq!(silence.heard(&nothing(), false), None, "without a connection nothing is known");
        }
        let said: Vec<Option<Noticed>> = (0..20).map(|_| silence.heard(&nothing(), true)).collect();
        assert_eq!(said.iter().flatten().collect::<Vec<_>>(), [&Noticed::Silent]);
        assert_eq!(silence.heard(&Ok(StreamFacts::default()), true), Some(Noticed::Back));
        assert_eq!(silence.heard(&nothing(), true), None);
        assert_eq!(silence.heard(&Ok(StreamFacts::default()), true), None, "a moment is not worth a word");
    }
}
