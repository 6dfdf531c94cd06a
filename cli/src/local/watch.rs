//! Knowing when a fleet has been forgotten: nobody is connected to ask anything, and every batch has ended.

use std::time::{Duration, Instant};

use serde::Deserialize;
use ternfleet_cloud::http::Server;
use ternfleet_proto::message::{BatchList, BatchView};
use ternfleet_proto::table::ApiVerb;

use super::rented::return_all;
use crate::client::{CLIENT_NAME, Fleet, Patience};
use crate::connection::Connection;

const LOOK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The newest batches are looked at; one that still runs is among them.
const BATCHES: u32 = 50;

/// What nats-server's monitoring says of its connections, as far as it is used.
#[derive(Deserialize)]
struct Connections {
    connections: Vec<NatsClient>,
}

#[derive(Deserialize)]
struct NatsClient {
    #[serde(default)]
    name: String,
}

/// Resolves when no command has been connected and no batch has been under way for `limit`, and what was rented has
/// been given back.
pub(crate) async fn unheard(monitor_port: u16, to: Connection, limit: Duration) {
    let mut heard_at = Instant::now();
    let mut fleet = None;
    while heard_at.elapsed() < limit {
        tokio::time::sleep(LOOK_EVERY.min(limit)).await;
        // What cannot be asked counts as heard: a fleet whose server restarts has not been forgotten.
        if commands_connected(monitor_port).await != Some(0) || works(&mut fleet, &to).await != Some(false) {
            heard_at = Instant::now();
        }
    }
    if let Some(fleet) = &fleet
        && let Err(error) = return_all(fleet).await
    {
        // Pods whose coordinator is gone end themselves.
        eprintln!("{error:#}");
    }
}

async fn commands_connected(monitor_port: u16) -> Option<usize> {
    let server = Server::new(&format!("http://127.0.0.1:{monitor_port}"), None, ANSWER_TIMEOUT).ok()?;
    let answer = server.get("/connz?limit=10000").await.ok().filter(|answer| answer.status == 200)?;
    let known: Connections = serde_json::from_slice(&answer.body).ok()?;
    Some(known.connections.iter().filter(|client| client.name == CLIENT_NAME).count())
}

async fn works(fleet: &mut Option<Fleet>, to: &Connection) -> Option<bool> {
    if fleet.is_none() {
        *fleet = Fleet::connect_as_part(to).await.ok();
    }
    let fleet = fleet.as_ref()?;
    let question = BatchList { tenant: fleet.tenant.clone(), after: None, limit: BATCHES };
    let batches: Vec<BatchView> = fleet.ask(ApiVerb::BatchList, &question, Patience::Short).await.ok()?;
    Some(batches.iter().any(|batch| !batch.state.is_terminal()))
}
