//! The coordinator as one of NATS's services, so that `nats micro ls`, `info` and `stats` show it: each process answers for
//! itself, and the leader counts its answers, by what it was asked.
//!
//! The protocol is NATS's ADR-32: JSON on `$SRV.<PING|INFO|STATS>`, by name and by instance as well.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use ternfleet_proto::TimeMs;
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::Refusal;
use ternfleet_proto::table::{self, ApiVerb, is_inbox};

const NAME: &str = "ternfleet";
const DESCRIPTION: &str = "Batch text generation on a fleet of rented pods";
const AGAIN: Duration = Duration::from_millis(200);

/// This process, as the protocol shows it.
#[derive(Debug)]
pub(super) struct Micro {
    id: String,
    started: TimeMs,
    /// By verb, as [`ApiVerb::ALL`] orders them.
    answered: Mutex<[Answered; ApiVerb::ALL.len()]>,
}

/// What was answered of one verb.
#[derive(Debug, Clone, Default)]
struct Answered {
    requests: u64,
    errors: u64,
    last_error: String,
    /// From the request to its answer. Requests that wait for results take as long as they wait.
    time: Duration,
}

impl Micro {
    /// `process` is the name of this one among the coordinators.
    pub(super) fn new(process: &str, started: TimeMs) -> Micro {
        let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let process: String = process.chars().map(word).collect();
        Micro { id: format!("{process}-{}", started.0), started, answered: Mutex::default() }
    }

    /// A request for `verb` was answered after `time`, with an error if there is one.
    pub(super) fn answered(&self, verb: ApiVerb, time: Duration, error: Option<&Refusal>) {
        let Some(place) = ApiVerb::ALL.iter().position(|one| *one == verb) else { return };
        let answered = &mut self.answered.lock().unwrap_or_else(PoisonError::into_inner)[place];
        answered.requests += 1;
        answered.time += time;
        if let Some(Refusal { code, message, .. }) = error {
            answered.errors += 1;
            answered.last_error = format!("{code:?}:{message}");
        }
    }

    /// Answers everybody who asks, forever.
    pub(super) async fn serve(self: Arc<Micro>, bus: Arc<dyn Bus>) {
        loop {
            match bus.subscribe(table::services_all()).await {
                Ok(mut notes) => {
                    while let Some(note) = notes.next().await {
                        let Some(answer) = self.answer(&note.subject) else { continue };
                        let Some(reply) = note.reply.filter(|reply| is_inbox(reply)) else { continue };
                        if let Err(error) = bus.send(&reply, answer.to_string().into_bytes().into()).await {
                            tracing::debug!(%error, "a reply was not sent");
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot listen to NATS's service protocol"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn answer(&self, subject: &str) -> Option<Value> {
        let verb = table::parse_service(subject, NAME, &self.id)?;
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{}_response", verb.to_ascii_lowercase()),
            "name": NAME,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {},
        });
        match verb {
            "PING" => {}
            "INFO" => {
                answer["description"] = json!(DESCRIPTION);
                answer["endpoints"] = ApiVerb::ALL.into_iter().map(endpoint).collect();
            }
            "STATS" => {
                answer["started"] = json!(date(self.started));
                let stats = |(verb, answered): (ApiVerb, Answered)| {
                    let mut stats = endpoint(verb);
                    let nanoseconds = answered.time.as_nanos() as u64;
                    stats["num_requests"] = json!(answered.requests);
                    stats["num_errors"] = json!(answered.errors);
                    stats["last_error"] = json!(answered.last_error);
                    stats["processing_time"] = json!(nanoseconds);
                    stats["average_processing_time"] = json!(nanoseconds / answered.requests.max(1));
                    stats
                };
                let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone();
                answer["endpoints"] = ApiVerb::ALL.into_iter().zip(answered).map(stats).collect();
            }
            _ => return None,
        }
        Some(answer)
    }
}

fn endpoint(verb: ApiVerb) -> Value {
    json!({ "name": verb.as_str(), "subject": table::api(verb), "queue_group": "", "metadata": {} })
}

/// RFC 3339, in UTC. Days are turned into a date by Hinnant's algorithm
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn date(at: TimeMs) -> String {
    let (days, seconds) = (at.0 / 86_400_000 + 719_468, at.0 / 1000 % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on, so that a leap day is a year's last.
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::message::RefusalCode;

    use super::*;

    #[test]
    fn a_process_answers_for_itself_by_every_name() {
        let micro = Micro::new("head one", TimeMs(1_709_210_096_000));
        let refused = Refusal { code: RefusalCode::Busy, message: "later".to_owned(), retry_after_ms: None };
        micro.answered(ApiVerb::Pods, Duration::from_nanos(7), None);
        micro.answered(ApiVerb::Pods, Duration::from_nanos(2), Some(&refused));
        for subject in ["$SRV.STATS", "$SRV.STATS.ternfleet", "$SRV.STATS.ternfleet.head-one-1709210096000"] {
            let stats = micro.answer(subject).unwrap();
            assert_eq!(stats["started"], "2024-02-29T12:34:56Z");
            let endpoints = stats["endpoints"].as_array().unwrap();
            let pods = endpoints.iter().find(|one| one["name"] == "pods").unwrap();
            let expected = json!({
                "name": "pods", "subject": "tf.api.pods", "queue_group": "", "metadata": {}, "num_requests": 2,
                "num_errors": 1, "last_error": "Busy:later", "processing_time": 9, "average_processing_time": 4,
            });
            assert_eq!(*pods, expected);
        }
        assert_eq!(micro.answer("$SRV.PING").unwrap()["type"], "io.nats.micro.v1.ping_response");
        assert_eq!(micro.answer("$SRV.INFO.ternfleet").unwrap()["endpoints"].as_array().unwrap().len(), 19);
        for foreign in
            ["$SRV.PING.other", "$SRV.PING.ternfleet.other", "$SRV.SCHEMA", "$SRV.PING.ternfleet.a.b"]
        {
            assert_eq!(micro.answer(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(TimeMs(0)), "1970-01-01T00:00:00Z");
        assert_eq!(date(TimeMs(4_102_444_799_000)), "2099-12-31T23:59:59Z");
    }
}
