//! Listening: what comes on core subjects becomes an input of the main loop, and what cannot be read is counted or left.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ternfleet_proto::bus::Bus;
use ternfleet_proto::codec;
use ternfleet_proto::message::Heartbeat;
use ternfleet_proto::table::{self, ApiVerb};
use tokio::sync::mpsc;

use super::Input;
use super::api::Call;
use super::micro::Micro;
use super::reply::ReplyTo;
use crate::core::Event;

pub(super) async fn workers(bus: Arc<dyn Bus>, inbox: mpsc::Sender<Input>) {
    listen(&bus, table::heartbeats(), &inbox, |note| match codec::decode::<Heartbeat>(&note.payload) {
        Ok(beat) if table::parse_heartbeat_subject(&note.subject).as_ref() == Some(&beat.worker) => {
            Some(Input::Event(Event::Heartbeat(Box::new(beat))))
        }
        Ok(_) | Err(_) => Some(Input::Undecodable),
    })
    .await;
}

pub(super) async fn callers(bus: Arc<dyn Bus>, micro: Arc<Micro>, inbox: mpsc::Sender<Input>) {
    listen(&bus, table::api_all(), &inbox, |note| {
        let (verb, tenant) = ApiVerb::parse(&note.subject)?;
        // Whoever asks chooses where the answer goes: only ever to an inbox, or the coordinator would publish for them.
        let reply = note.reply.filter(|reply| table::is_inbox(reply))?;
        let reply = ReplyTo::new(reply, verb, Arc::clone(&micro));
        Some(Input::Call(Call { verb, tenant, payload: note.payload, reply }))
    })
    .await;
}

/// Workers who ask whether anybody is there.
pub(super) async fn pings(bus: Arc<dyn Bus>, inbox: mpsc::Sender<Input>) {
    listen(&bus, table::pings(), &inbox, |note| {
        note.reply.filter(|reply| table::is_inbox(reply)).map(|reply| Input::Ping { reply })
    })
    .await;
}

/// Pods and workers who ask for credentials.
pub(super) async fn joiners(bus: Arc<dyn Bus>, inbox: mpsc::Sender<Input>) {
    listen(&bus, table::joins(), &inbox, |note| {
        let asker = table::parse_join_subject(&note.subject)?.to_owned();
        let reply = note.reply.filter(|reply| table::is_inbox(reply))?;
        let request = codec::decode(&note.payload).ok()?;
        Some(Input::Join { asker, request, reply })
    })
    .await;
}

/// Pods whose worker cannot run.
pub(super) async fn failed_starts(bus: Arc<dyn Bus>, inbox: mpsc::Sender<Input>) {
    listen(&bus, table::starts_failed(), &inbox, |note| {
        let name = table::parse_start_failed_subject(&note.subject)?.to_owned();
        Some(Input::StartFailed(name, codec::decode(&note.payload).ok()?))
    })
    .await;
}

async fn listen(
    bus: &Arc<dyn Bus>,
    filter: &str,
    inbox: &mpsc::Sender<Input>,
    understand: impl Fn(ternfleet_proto::bus::Note) -> Option<Input>,
) {
    while !inbox.is_closed() {
        match bus.subscribe(filter).await {
            Ok(mut notes) => {
                while let Some(note) = notes.next().await {
                    if let Some(input) = understand(note)
                        && inbox.send(input).await.is_err()
                    {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(filter, %error, "cannot listen"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
