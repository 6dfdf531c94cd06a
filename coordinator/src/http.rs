//! HTTP of the coordinator itself: is it alive, is it ready, what does it count. The gateway adds its routes here.

mod connections;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
pub(crate) use connections::serve;
use ternfleet_proto::bus::Bus;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

#[derive(Clone)]
struct Shared {
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
}

/// What is served of the process itself.
pub(crate) fn routes(bus: Arc<dyn Bus>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
        .with_state(Shared { bus, metrics })
}

pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: choose another http address"))?;
    tracing::info!(address = %listener.local_addr()?, "serving HTTP");
    Ok(listener)
}

/// Ready: connected, and leading or warm enough to take over.
async fn ready(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if !shared.bus.connected() {
        (StatusCode::SERVICE_UNAVAILABLE, "NATS does not reply\n")
    } else if !shared.metrics.is_warm() {
        (StatusCode::SERVICE_UNAVAILABLE, "loading stored batches\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn numbers(State(shared): State<Shared>) -> impl IntoResponse {
    shared.metrics.set_connected(shared.bus.connected());
    let metrics = Arc::clone(&shared.metrics);
    let text = ternfleet_proto::aside::run(move || metrics.render()).await.unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
