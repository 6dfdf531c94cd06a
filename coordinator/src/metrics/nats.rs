//! How NATS is: connected or not, how fast it answers, how full its streams are. Asked now and then, by every
//! coordinator, leader or not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::{Counter, Gauge, GaugeVec, Histogram};
use ternfleet_proto::bus::{Bus, BusError, StreamFacts};
use ternfleet_proto::table;

use super::{Maker, Metrics};

const EVERY: Duration = Duration::from_secs(2);
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
}

impl NatsSeries {
    pub(super) fn new(maker: &Maker) -> Self {
        let streams: Vec<&str> = STREAMS.iter().map(|(label, _)| *label).chain([WORK]).collect();
        Self {
            connected: maker.gauge("nats_connected", "1 while the connection to NATS is up."),
            round_trip: maker.histogram(
                "nats_round_trip_seconds",
                "Time that JetStream takes to answer a small question of the coordinator.",
                &SECONDS,
            ),
            failures: maker
                .counter("nats_questions_failed_total", "Small questions that JetStream did not answer."),
            messages: maker.gauges(
                "nats_stream_messages",
                "Messages stored in a stream; those of the work streams added up.",
                "stream",
                &streams,
            ),
            bytes: maker.gauges(
                "nats_stream_bytes",
                "Bytes stored in a stream; those of the work streams added up.",
                "stream",
                &streams,
            ),
        }
    }

    fn show(&self, label: &str, facts: StreamFacts) {
        self.messages.with_label_values(&[label]).set(facts.messages as f64);
        self.bytes.with_label_values(&[label]).set(facts.bytes as f64);
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

/// Asks for as long as the process lives.
pub(crate) async fn watch(bus: Arc<dyn Bus>, metrics: Arc<Metrics>) {
    let mut ticker = tokio::time::interval(EVERY);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        let series = &metrics.nats;
        for (label, stream) in STREAMS {
            if let Ok(facts) = series.ask(&*bus, stream).await {
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
