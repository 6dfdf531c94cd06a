//! A caller of the coordinator, as the CLI is one.

#![allow(clippy::unwrap_used, missing_docs)] // A helper of tests: it may panic as they may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Serialize, de::DeserializeOwned};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{
    BatchCreate, BatchOptions, BatchRef, BatchView, Generation, JobCreate, JobResult, Line, Prompt, Reply,
    ResultsPage, ResultsRequest,
};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{BatchId, TenantId, TimeMs, codec};
use tokio::io::AsyncReadExt;

pub const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Clone)]
pub struct Client {
    pub bus: Arc<dyn Bus>,
    pub tenant: TenantId,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus, tenant: TenantId::default_tenant() }
    }

    /// Asks until somebody answers: a coordinator may be starting.
    pub async fn ask<A: DeserializeOwned>(&self, verb: ApiVerb, question: &impl Serialize) -> Reply<A> {
        let began = Instant::now();
        loop {
            let asked =
                self.bus.request(&table::api(verb), codec::encode(question), Duration::from_secs(5)).await;
            match asked {
                Ok(payload) => return codec::decode::<Reply<A>>(&payload).unwrap(),
                Err(error) => assert!(began.elapsed() < PATIENCE, "{verb:?}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn upload(&self, name: &str, content: Vec<u8>) {
        self.bus.ensure_objects(&table::files_spec(&self.tenant, 1)).await.unwrap();
        let bucket = table::files_bucket(&self.tenant);
        self.bus.object_put(&bucket, name, Box::pin(std::io::Cursor::new(content))).await.unwrap();
    }

    pub fn creation(&self, name: &str, options: BatchOptions) -> BatchCreate {
        BatchCreate {
            tenant: self.tenant.clone(),
            idempotency_key: name.to_owned(),
            input_object: name.to_owned(),
            name: Some(name.to_owned()),
            endpoint: None,
            options,
            metadata: Default::default(),
            traceparent: None,
            work: None,
        }
    }

    /// A completion outside of any file, as the gateway asks for it.
    pub fn completion(&self, number: u64) -> JobCreate {
        JobCreate {
            tenant: self.tenant.clone(),
            batch: format!("cmpl-{number}").parse().unwrap(),
            line: Line::new(None, Endpoint::Completions, None),
            generation: Generation {
                prompt: Prompt::Text("a".to_owned()),
                max_tokens: Some(4),
                seed: number,
                ..Generation::default()
            },
            deadline: TimeMs::now().plus(Duration::from_secs(60)),
            traceparent: None,
            again: false,
            wait_for_model: false,
        }
    }

    pub async fn submit(&self, name: &str, content: Vec<u8>) -> BatchView {
        self.upload(name, content).await;
        self.ask(ApiVerb::BatchCreate, &self.creation(name, BatchOptions::default())).await.unwrap()
    }

    pub async fn get(&self, id: &BatchId) -> BatchView {
        self.ask(ApiVerb::BatchGet, &BatchRef { tenant: self.tenant.clone(), id: id.clone() }).await.unwrap()
    }

    pub async fn wait(&self, id: &BatchId, what: &str, is_so: impl Fn(&BatchView) -> bool) -> BatchView {
        let began = Instant::now();
        loop {
            let view = self.get(id).await;
            if is_so(&view) {
                return view;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}: {view:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn wait_end(&self, id: &BatchId) -> BatchView {
        self.wait(id, "the end", |view| view.state.is_terminal()).await
    }

    /// Follows the results to their end.
    pub async fn follow(&self, id: &BatchId) -> Vec<JobResult> {
        let mut lines = Vec::new();
        let mut after = 0;
        loop {
            let request = ResultsRequest {
                tenant: self.tenant.clone(),
                id: id.clone(),
                after,
                limit: 1000,
                wait_ms: 2000,
            };
            let page: ResultsPage = self.ask(ApiVerb::Results, &request).await.unwrap();
            after = page.next;
            lines.extend(page.lines);
            if page.end {
                return lines;
            }
        }
    }

    pub async fn object_lines(&self, name: &str) -> Vec<serde_json::Value> {
        let bucket = table::files_bucket(&self.tenant);
        let mut text = String::new();
        self.bus.object_get(&bucket, name, 0).await.unwrap().read_to_string(&mut text).await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// `count` good lines.
pub fn prompts(count: usize) -> Vec<u8> {
    let mut text = String::new();
    for n in 0..count {
        text.push_str(&format!(
            "{{\"custom_id\": \"c{n}\", \"prompt\": \"prompt {n}\", \"max_tokens\": 16}}\n"
        ));
    }
    text.into_bytes()
}
