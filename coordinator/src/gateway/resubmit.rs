//! `POST /api/batches/{id}/resubmit`: the failed lines of an ended batch as a new batch, with its priority.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use ternfleet_proto::message::{BatchCreate, BatchOptions, BatchRef, BatchView};
use ternfleet_proto::openai::batch_object;
use ternfleet_proto::table::{ApiVerb, files_bucket};
use tokio::io::{AsyncReadExt, BufReader};

use super::Gateway;
use super::auth::Caller;
use super::batches::batch_id;
use super::bounds::Ending;
use super::error::{ApiError, ApiResult};
use crate::again;
use crate::files::{self, FileRecord};

/// Between the old input and the new one.
const PIPE_BYTES: usize = 256 << 10;

pub(super) async fn create(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    let which = BatchRef { tenant: tenant.clone(), id: batch_id(&id)? };
    let old: BatchView = gateway.ask(ApiVerb::BatchGet, &which).await?;
    let conflict = |message: String| ApiError::new(StatusCode::CONFLICT, "conflict", message);
    if !old.state.is_terminal() {
        return Err(conflict(format!("{id} has not ended: wait for its end, or cancel it first.")));
    }
    let bucket = files_bucket(&tenant);
    let unread = |error: std::io::Error| conflict(format!("The failed lines cannot be read: {error}"));
    let chosen = match &old.error_object {
        None => again::Chosen::default(),
        Some(object) => {
            let mut errors = BufReader::new(gateway.bus().object_get(&bucket, object, 0).await?);
            again::failed_lines(&mut errors, &[]).await.map_err(unread)?
        }
    };
    if chosen.lines.is_empty() {
        let why = match chosen.left_out {
            0 => "no line failed".to_owned(),
            left_out => format!("its {left_out} failed lines are invalid requests and would fail again"),
        };
        return Err(conflict(format!("No line of {id} can be submitted again: {why}.")));
    }
    let mut input = BufReader::new(gateway.bus().object_get(&bucket, &old.input_object, 0).await?);
    let (mut writer, reader) = tokio::io::duplex(PIPE_BYTES);
    // An input that breaks off in the middle leaves no file.
    let whole = Arc::new(AtomicBool::new(false));
    let reader = reader.chain(Ending(Arc::clone(&whole)));
    let copy = async {
        let copied = again::copy_lines(&mut input, &chosen.lines, &mut writer).await;
        whole.store(copied.is_ok(), Ordering::Release);
        drop(writer);
        copied
    };
    let file = gateway.random_id("file-");
    let (copied, stored) = tokio::join!(copy, gateway.bus().object_put(&bucket, &file, Box::pin(reader)));
    let bytes = match (copied, stored) {
        (Ok(()), stored) => stored?,
        // Nobody reads on where the new input could not be stored: that is the cause.
        (Err(error), Err(refused)) if error.kind() == ErrorKind::BrokenPipe => return Err(refused.into()),
        (Err(error), _) => return Err(unread(error)),
    };
    let name = again::name(&old);
    let filename = format!("{}.jsonl", name.as_deref().unwrap_or(&file));
    let record = FileRecord::new(filename, files::INPUT, bytes, gateway.clock().wall(), None);
    files::keep(gateway.bus(), &tenant, &file, &record).await?;
    let create = BatchCreate {
        tenant,
        idempotency_key: gateway.random_id("http-"),
        input_object: file,
        name,
        endpoint: old.endpoint,
        options: BatchOptions { priority: old.options.priority, ..BatchOptions::default() },
        metadata: again::metadata(&old),
        traceparent: None,
        work: None,
    };
    let view: BatchView = gateway.ask(ApiVerb::BatchCreate, &create).await?;
    let mut answer = batch_object(&view);
    answer["ternfleet"]["resubmitted"] = json!({ "lines": chosen.lines.len(), "left_out": chosen.left_out });
    Ok(Json(answer))
}
