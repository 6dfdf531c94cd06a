//! `/v1/files`: upload (streamed into the object store), list, get, content (with Range), delete.
//!
//! A file is an object of the tenant's bucket; its id is the object's name. What OpenAI wants to know besides the
//! content (file name, purpose, end) is in the key-value bucket `files`; see `crate::files`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use ternfleet_proto::bus::ObjectFacts;
use ternfleet_proto::message::{FileRef, TenantOpen};
use ternfleet_proto::table::{ApiVerb, KV_FILES, files_bucket};
use ternfleet_proto::{BusError, TenantId, TimeMs, openai};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::auth::Caller;
use super::bounds::{Ending, Form, StoredQuota, small_field};
use super::error::{ApiError, ApiResult};
use super::{Gateway, lists};
use crate::files::{self, FileRecord};

/// Bytes between the upload's socket and the object store: with this, memory stays small whatever the file's size.
const PIPE_BYTES: usize = 256 * 1024;

/// Files of one page of a list; OpenAI's limit.
const FILES_A_PAGE_MAX: usize = 10_000;
/// What the coordinator keeps beside a tenant's files: indexes of the lines of inputs.
const NOT_A_FILE: &str = "index-";

fn object(id: &str, record: &FileRecord) -> Value {
    json!({
        "id": id, "object": "file", "bytes": record.bytes, "created_at": record.created_at.0 / 1000,
        "expires_at": record.expires_at.map(|at| at.0 / 1000),
        "filename": record.filename, "purpose": record.purpose, "status": "processed", "status_details": null,
    })
}

/// Ids come from callers; only those that could name an object are looked up.
fn checked(id: &str) -> ApiResult<&str> {
    let fits = (1..=128).contains(&id.len())
        && !id.starts_with(NOT_A_FILE)
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if fits { Ok(id) } else { Err(ApiError::not_found("file", id)) }
}

/// `POST /v1/files`, multipart: `purpose` (only `batch` is served) and `file`.
pub(super) async fn upload(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    request: Request,
) -> ApiResult<Json<Value>> {
    let mut form = Form::of(request).await?;
    let mut taken = Taken::default();
    let fault = match take(&gateway, &tenant, &mut form, &mut taken).await {
        Err(fault) => Some(fault),
        Ok(()) if taken.purpose.as_deref() == Some("batch") => None,
        Ok(()) => {
            let message = "`purpose` must be \"batch\".";
            Some(ApiError::invalid(message).about("purpose"))
        }
    };
    let (id, bytes, filename) = match (fault, taken.file) {
        (None, Some(file)) => file,
        (fault, Some((id, ..))) => {
            // A refused form leaves nothing behind.
            gateway.bus().object_delete(&files_bucket(&tenant), &id).await.ok();
            return Err(fault.unwrap_or_else(|| ApiError::invalid("The form is invalid.")));
        }
        (fault, None) => {
            let empty = || ApiError::invalid("The form has no field `file`.").about("file");
            return Err(fault.unwrap_or_else(empty));
        }
    };
    let expires_after = std::mem::take(&mut taken.expires_after);
    let expires_after_s = match openai::expires_after(expires_after) {
        Ok(expires_after_s) => expires_after_s,
        Err(failure) => {
            gateway.bus().object_delete(&files_bucket(&tenant), &id).await.ok();
            return Err(failure.into());
        }
    };
    let record = FileRecord::new(filename, files::INPUT, bytes, gateway.clock().wall(), expires_after_s);
    files::keep(gateway.bus(), &tenant, &id, &record).await?;
    Ok(Json(object(&id, &record)))
}

/// What a form has brought so far.
#[derive(Default)]
struct Taken {
    purpose: Option<String>,
    /// Id, length in bytes and file name.
    file: Option<(String, u64, String)>,
    /// The fields of `expires_after`.
    expires_after: serde_json::Map<String, Value>,
}

async fn take(gateway: &Gateway, tenant: &TenantId, form: &mut Form, taken: &mut Taken) -> ApiResult<()> {
    let allowed = form.allowed();
    while let Some(field) = form.next().await? {
        match field.name().unwrap_or_default() {
            "purpose" => taken.purpose = Some(small_field("purpose", field).await?),
            "file" if taken.file.is_some() => {
                return Err(ApiError::invalid("The form has two fields `file`.").about("file"));
            }
            "file" => {
                let filename = field.file_name().unwrap_or("upload.jsonl").chars().take(255).collect();
                let (id, bytes) = store(gateway, tenant, field, &allowed).await?;
                taken.file = Some((id, bytes, filename));
            }
            "expires_after[anchor]" => {
                let anchor = small_field("expires_after", field).await?;
                taken.expires_after.insert("anchor".into(), anchor.into());
            }
            "expires_after[seconds]" => {
                let text = small_field("expires_after", field).await?;
                let seconds =
                    text.trim().parse::<u64>().map_or_else(|_| Value::from(text.as_str()), Value::from);
                taken.expires_after.insert("seconds".into(), seconds);
            }
            // Clients send options of other services here: an unknown one is named.
            other => {
                let shown: String = other.chars().take(64).collect();
                let message = format!("The form field {shown:?} is not supported.");
                return Err(ApiError::invalid(message).about(shown));
            }
        }
    }
    Ok(())
}

/// The lines of an inline batch as a file like any other. A repeated creation finds the file of the first.
pub(super) async fn store_inline(
    gateway: &Gateway,
    tenant: &TenantId,
    key: Option<&str>,
    lines: Vec<u8>,
) -> ApiResult<String> {
    gateway.ask::<_, ()>(ApiVerb::TenantOpen, &TenantOpen { tenant: tenant.clone() }).await?;
    let id = match key {
        // The same key with other lines is another file, and so the conflict that it should be.
        Some(key) => {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&(key.len() as u64).to_le_bytes()).update(key.as_bytes()).update(&lines);
            format!("file-{}", &hasher.finalize().to_hex()[..24])
        }
        None => gateway.random_id("file-"),
    };
    let known = files::find(gateway.bus(), tenant, &id).await?;
    if known.is_some_and(|record| !record.is_gone(gateway.clock().wall())) {
        return Ok(id);
    }
    let content = Box::pin(std::io::Cursor::new(lines));
    let bytes = gateway.bus().object_put(&files_bucket(tenant), &id, content).await?;
    let record = FileRecord::new(format!("{id}.jsonl"), files::INPUT, bytes, gateway.clock().wall(), None);
    files::keep(gateway.bus(), tenant, &id, &record).await?;
    Ok(id)
}

/// Streams one multipart field into a new object; answers its id and length. A broken upload leaves nothing behind.
async fn store(
    gateway: &Gateway,
    tenant: &TenantId,
    mut field: axum::extract::multipart::Field<'_>,
    allowed: &AtomicU64,
) -> ApiResult<(String, u64)> {
    gateway.ask::<_, ()>(ApiVerb::TenantOpen, &TenantOpen { tenant: tenant.clone() }).await?;
    let id = gateway.random_id("file-");
    let bucket = files_bucket(tenant);
    let (mut writer, reader) = tokio::io::duplex(PIPE_BYTES);
    // Whoever hangs up drops the writer too: that alone does not make a whole file.
    let whole = Arc::new(AtomicBool::new(false));
    let reader = reader.chain(Ending(Arc::clone(&whole)));
    let put = {
        let (bus, bucket, id) = (gateway.bus_handle(), bucket.clone(), id.clone());
        tokio::spawn(async move { bus.object_put(&bucket, &id, Box::pin(reader)).await })
    };
    let limit = gateway.limits().file_bytes_max;
    let (mut bytes, mut fault) = (0u64, None);
    let mut quota = StoredQuota::new(gateway, tenant);
    loop {
        match field.chunk().await {
            Ok(Some(chunk)) => {
                bytes += chunk.len() as u64;
                allowed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                if let Err(full) = quota.check(bytes).await {
                    fault = Some(full);
                    break;
                }
                if bytes > limit {
                    let message =
                        format!("The file is larger than {limit} bytes, the limit of this gateway.");
                    fault = Some(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", message));
                    break;
                }
                // The reader went away only when the store failed; its error is told below.
                if writer.write_all(&chunk).await.is_err() {
                    break;
                }
            }
            Ok(None) => {
                whole.store(true, Ordering::Release);
                break;
            }
            Err(e) => {
                fault = Some(ApiError::invalid(format!(
                    "The upload was interrupted after {bytes} bytes: \
                                                        {e}"
                )));
                break;
            }
        }
    }
    drop(writer);
    let stored =
        put.await.map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string()))?;
    match (fault, stored) {
        (None, Ok(length)) => Ok((id, length)),
        (fault, stored) => {
            gateway.bus().object_delete(&bucket, &id).await.ok();
            Err(fault.unwrap_or_else(|| {
                stored.err().map_or_else(|| ApiError::invalid("empty upload"), ApiError::from)
            }))
        }
    }
}

/// A file's record: the stored one, or for an object that came without (from `ternfleet submit`) its plain facts.
async fn record(gateway: &Gateway, tenant: &TenantId, id: &str) -> ApiResult<FileRecord> {
    if let Some(record) = files::find(gateway.bus(), tenant, checked(id)?).await? {
        let gone = record.is_gone(gateway.clock().wall());
        return if gone { Err(ApiError::not_found("file", id)) } else { Ok(record) };
    }
    let facts = objects(gateway, tenant).await?.into_iter().find(|facts| facts.name == id);
    let facts = facts.ok_or_else(|| ApiError::not_found("file", id))?;
    Ok(FileRecord::plain(id, facts.bytes, facts.modified))
}

/// Refuses a file that is not there, or not any more.
pub(super) async fn known(gateway: &Gateway, tenant: &TenantId, id: &str) -> ApiResult<u64> {
    let record = files::find(gateway.bus(), tenant, checked(id)?).await?;
    if record.is_some_and(|record| record.is_gone(gateway.clock().wall())) {
        return Err(ApiError::not_found("file", id));
    }
    match gateway.bus().object_length(&files_bucket(tenant), id).await {
        Ok(Some(length)) => Ok(length),
        Ok(None) | Err(BusError::NotFound(_)) => Err(ApiError::not_found("file", id)),
        Err(error) => Err(error.into()),
    }
}

async fn objects(gateway: &Gateway, tenant: &TenantId) -> ApiResult<Vec<ObjectFacts>> {
    match gateway.bus().object_list(&files_bucket(tenant)).await {
        Ok(objects) => Ok(objects),
        Err(BusError::NotFound(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    limit: Option<String>,
    after: Option<String>,
    purpose: Option<String>,
    order: Option<String>,
}

/// A place in a list: files are told apart by their names where they are of one time.
type Place = (TimeMs, String);

/// `GET /v1/files`, newest first.
pub(super) async fn list(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Value>> {
    let limit = lists::limit(query.limit.as_deref(), FILES_A_PAGE_MAX, FILES_A_PAGE_MAX)?;
    let ascending = lists::is_ascending(query.order.as_deref())?;
    let prefix = format!("{tenant}.");
    let mut records = BTreeMap::new();
    for entry in gateway.bus().kv_entries(KV_FILES).await? {
        if let (Some(id), Some(record)) = (entry.key.strip_prefix(&prefix), FileRecord::parse(&entry.value)) {
            records.insert(id.to_owned(), record);
        }
    }
    let now = gateway.clock().wall();
    let mut files: BTreeMap<Place, FileRecord> = BTreeMap::new();
    let mut cursor: Option<Place> = None;
    for facts in objects(&gateway, &tenant).await? {
        let record = records.remove(&facts.name);
        let record = record.unwrap_or_else(|| FileRecord::plain(&facts.name, facts.bytes, facts.modified));
        if checked(&facts.name).is_ok() {
            files.insert((record.created_at, facts.name), record);
        }
    }
    // What is left has no object any more; its place is known all the same.
    files.extend(records.into_iter().map(|(id, mut record)| {
        record.deleted_at.get_or_insert(now);
        ((record.created_at, id), record)
    }));
    if let Some(after) = &query.after {
        let place = files.keys().find(|(_, id)| id == after).cloned();
        cursor = Some(place.ok_or_else(|| ApiError::not_found("file", after).about("after"))?);
    }
    let shown = |record: &FileRecord| {
        !record.is_gone(now) && query.purpose.as_ref().is_none_or(|purpose| *purpose == record.purpose)
    };
    let follows = |place: &Place| match &cursor {
        None => true,
        Some(cursor) if ascending => place > cursor,
        Some(cursor) => place < cursor,
    };
    let in_order: Box<dyn Iterator<Item = (&Place, &FileRecord)> + Send> =
        if ascending { Box::new(files.iter()) } else { Box::new(files.iter().rev()) };
    let mut page: Vec<Value> = in_order
        .filter(|(place, record)| follows(place) && shown(record))
        .take(limit + 1)
        .map(|((_, id), record)| object(id, record))
        .collect();
    let has_more = page.len() > limit;
    page.truncate(limit);
    let (first, last) = (page.first().map(|f| f["id"].clone()), page.last().map(|f| f["id"].clone()));
    Ok(Json(
        json!({"object": "list", "data": page, "has_more": has_more, "first_id": first, "last_id": last}),
    ))
}

/// `GET /v1/files/{id}`.
pub(super) async fn get(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    Ok(Json(object(&id, &record(&gateway, &tenant, &id).await?)))
}

/// `DELETE /v1/files/{id}`. The leader does it: it knows which batches read the file.
pub(super) async fn delete(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    let file = FileRef { tenant, object: checked(&id)?.to_owned() };
    gateway.ask::<_, ()>(ApiVerb::FileDelete, &file).await?;
    Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
}

/// `GET /v1/files/{id}/content`: the bytes; honours one `Range: bytes=a-b`.
pub(super) async fn content(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let bucket = files_bucket(&tenant);
    let length = known(&gateway, &tenant, &id).await?;
    let range = match headers.get(header::RANGE).and_then(|value| value.to_str().ok()) {
        Some(text) => Some(parse_range(text, length).ok_or_else(|| {
            let message = format!("The range {text:?} is outside the file's {length} bytes.");
            ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "bad_range", message)
        })?),
        None => None,
    };
    let (from, to) = range.unwrap_or((0, length));
    let reader = gateway.bus().object_get(&bucket, &id, from).await?.take(to - from);
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "application/jsonl")
        .header(header::CONTENT_LENGTH, to - from)
        .header(header::ACCEPT_RANGES, "bytes")
        .header("x-content-type-options", "nosniff");
    if range.is_some() {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{length}", to - 1));
    }
    Ok(response
        .body(Body::from_stream(ReaderStream::new(reader)))
        .expect("because every header is valid ASCII"))
}

/// One range of RFC 9110 as a half-open interval inside `length`; `None` when it cannot be met.
fn parse_range(text: &str, length: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (first.trim(), last.trim()) {
        ("", suffix) => (length.saturating_sub(suffix.parse().ok()?), length),
        (first, "") => (first.parse().ok()?, length),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.saturating_add(1).min(length)),
    };
    (from < to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        for (text, want) in [
            ("bytes=0-9", Some((0, 10))),
            ("bytes=90-", Some((90, 100))),
            ("bytes=-10", Some((90, 100))),
            ("bytes=95-400", Some((95, 100))),
            ("bytes=100-", None),
            ("bytes=9-3", None),
            ("items=0-9", None),
            ("bytes=a-b", None),
        ] {
            assert_eq!(parse_range(text, 100), want, "{text}");
        }
    }

    #[test]
    fn an_id_that_cannot_name_an_object_is_not_found() {
        for id in ["", "../x", "a b", "a*", "a>"] {
            assert!(checked(id).is_err(), "{id}");
        }
        assert!(checked("file-abc.jsonl").is_ok());
    }
}
