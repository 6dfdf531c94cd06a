//! What the page shows of many: batches by state and text (`/api/batches`), and the answered lines of one
//! (`/api/batches/{id}/lines`), each with its input beside it.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use ternfleet_proto::message::{
    BatchFind, BatchPage, BatchState, BatchView, ChatMessage, JobResult, Outcome, Prompt, ResultsPage,
    ResultsRequest,
};
use ternfleet_proto::openai::{ModelDefaults, batch_object, parse_line};
use ternfleet_proto::table::{ApiVerb, files_bucket};
use ternfleet_proto::{BatchId, JobKey, TenantId};
use tokio::io::{AsyncReadExt, BufReader};

use super::auth::Caller;
use super::batches::batch_id;
use super::error::{ApiError, ApiResult};
use super::{Gateway, lists, live};
use crate::shell::lines::next_line;

const BATCHES_A_PAGE_MAX: usize = 100;
const LINES_A_PAGE_MAX: usize = 100;
/// Answers asked for at once.
const ANSWERS_A_QUESTION: u32 = 200;
/// Answers looked at for one page; a search goes on with the next page.
const LOOKED_AT_MAX: u64 = 2_000;
/// Bytes of an input that are read to show lines beside their answers; lines further on are shown without.
const INPUT_BYTES_MAX: u64 = 8 << 20;
/// Characters of a text in a list; the whole is in the files.
const TEXT_CHARS_MAX: usize = 4_000;

#[derive(Debug, Deserialize)]
pub(super) struct BatchQuery {
    /// `open`, `ended`, or one state.
    state: Option<String>,
    q: Option<String>,
    after: Option<String>,
    limit: Option<String>,
}

/// `GET /api/batches`: open ones first, each group newest first, with how many there are of each state.
pub(super) async fn batches(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Query(query): Query<BatchQuery>,
) -> ApiResult<Json<Value>> {
    let limit = lists::limit(query.limit.as_deref(), live::BATCHES_SHOWN as usize, BATCHES_A_PAGE_MAX)?;
    let states = query.state.as_deref().map(states).transpose()?.unwrap_or_default();
    let ask = BatchFind { tenant, states, text: query.q, after: query.after, limit: limit as u32 };
    let page: BatchPage = gateway.ask(ApiVerb::BatchFind, &ask).await?;
    Ok(Json(json!({
        "batches": page.batches.iter().map(batch_object).collect::<Vec<_>>(),
        "next": page.next, "counts": page.counts,
    })))
}

fn states(name: &str) -> ApiResult<Vec<BatchState>> {
    use BatchState::{Cancelled, Cancelling, Completed, Expired, Failed, Finalizing, InProgress};
    use BatchState::{PausedBudget, Validating};
    match name {
        "" | "all" => Ok(Vec::new()),
        "open" => Ok(vec![Validating, InProgress, PausedBudget, Finalizing, Cancelling]),
        "ended" => Ok(vec![Completed, Failed, Expired, Cancelled]),
        one => match serde_json::from_value(Value::from(one)) {
            Ok(state) => Ok(vec![state]),
            Err(_) => Err(ApiError::invalid(format!(
                "`state` must be open, ended or the name of a state, \
                                                     not {one:?}."
            ))
            .about("state")),
        },
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct LineQuery {
    /// `ok` or `failed`.
    status: Option<String>,
    q: Option<String>,
    /// `next` of the page before.
    after: Option<u64>,
    limit: Option<String>,
}

/// `GET /api/batches/{id}/lines`: answered lines in the order of their answers, and those that run now.
pub(super) async fn lines(
    State(gateway): State<Gateway>,
    Caller(tenant): Caller,
    Path(id): Path<String>,
    Query(query): Query<LineQuery>,
) -> ApiResult<Json<Value>> {
    let (id, limit) = (batch_id(&id)?, lists::limit(query.limit.as_deref(), 25, LINES_A_PAGE_MAX)?);
    let failed = match query.status.as_deref() {
        None | Some("" | "all") => None,
        Some("ok") => Some(false),
        Some("failed") => Some(true),
        Some(other) => {
            let message = format!("`status` must be ok or failed, not {other:?}.");
            return Err(ApiError::invalid(message).about("status"));
        }
    };
    let text = query.q.map(|text| text.to_lowercase()).filter(|text| !text.is_empty());
    let begin = query.after.unwrap_or(0);
    let (mut after, mut found, mut end) = (begin, Vec::new(), false);
    let mut batch: Option<BatchView> = None;
    while found.len() < limit && !end && after - begin < LOOKED_AT_MAX {
        let request = ResultsRequest {
            tenant: tenant.clone(),
            id: id.clone(),
            after,
            limit: ANSWERS_A_QUESTION,
            wait_ms: 0,
        };
        let page: ResultsPage = gateway.ask(ApiVerb::Results, &request).await?;
        end = page.lines.is_empty();
        batch = Some(page.batch);
        let (mut answers, read_to) = (page.lines.into_iter(), page.next);
        while found.len() < limit
            && let Some(result) = answers.next()
        {
            after += 1;
            if is_wanted(&result, failed, text.as_deref()) {
                found.push(result);
            }
        }
        // Answers that cannot be read any more are counted and left out.
        if answers.len() == 0 {
            after = after.max(read_to);
        }
    }
    let batch = batch.ok_or_else(|| ApiError::not_found("batch", id.as_str()))?;
    let inputs = inputs(&gateway, &tenant, &batch, &found).await;
    let answered = u64::from(batch.completed + batch.failed);
    Ok(Json(json!({
        "lines": found.iter().map(|result| line(result, inputs.get(&result.job.index))).collect::<Vec<_>>(),
        "running": running(&gateway, &id).await?,
        "next": (after < answered).then_some(after),
        "answered": answered,
    })))
}

fn is_wanted(result: &JobResult, failed: Option<bool>, text: Option<&str>) -> bool {
    let (is_failed, said) = match &result.outcome {
        Outcome::Text(generated) => (false, generated.text.as_str()),
        Outcome::Failed(failure) => (true, failure.message.as_str()),
    };
    let name = result.line.custom_id.as_deref().unwrap_or_default();
    failed.is_none_or(|wanted| wanted == is_failed)
        && text.is_none_or(|text| said.to_lowercase().contains(text) || name.to_lowercase().contains(text))
}

fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let mut head: String = chars.by_ref().take(TEXT_CHARS_MAX).collect();
    if chars.next().is_some() {
        head.push('…');
    }
    head
}

fn line(result: &JobResult, input: Option<&String>) -> Value {
    let (text, finish, error) = match &result.outcome {
        Outcome::Text(generated) => (Some(shown(&generated.text)), Some(generated.finish), None),
        Outcome::Failed(failure) => {
            (None, None, Some(json!({ "code": failure.code, "message": failure.message })))
        }
    };
    json!({
        "line": u64::from(result.job.index) + 1, "custom_id": result.line.custom_id,
        "status": if error.is_none() { "ok" } else { "failed" },
        "input": input, "text": text, "finish": finish, "error": error,
        "prompt_tokens": result.usage.prompt_tokens, "completion_tokens": result.usage.completion_tokens,
        "worker": result.worker, "attempt": result.attempt, "total_ms": result.timing.total_ms,
        "finished_at_ms": result.finished_at,
    })
}

/// Lines that workers have in their slots now, as they last said.
async fn running(gateway: &Gateway, id: &BatchId) -> ApiResult<Vec<Value>> {
    let fleet = live::fleet(gateway).await?;
    let jobs = fleet.pods.iter().flat_map(|pod| pod.heartbeat.running.iter().map(move |job| (pod, job)));
    let of_batch = jobs.filter(|(_, running)| running.job.batch == *id);
    let mut found: Vec<Value> = of_batch
        .map(|(pod, running)| {
            let line = u64::from(running.job.index) + 1;
            json!({ "line": line, "pod": pod.heartbeat.pod, "generated": running.generated })
        })
        .collect();
    found.sort_by_key(|running| running["line"].as_u64());
    found.truncate(LINES_A_PAGE_MAX);
    Ok(found)
}

/// The prompts of these lines, as far as the input is still there and they are not too far on.
async fn inputs(
    gateway: &Gateway,
    tenant: &TenantId,
    batch: &BatchView,
    results: &[JobResult],
) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    let wanted: Vec<u32> = results.iter().map(|result| result.job.index).collect();
    let Some(last) = wanted.iter().copied().max() else { return found };
    let content = gateway.bus().object_get(&files_bucket(tenant), &batch.input_object, 0).await;
    let Ok(content) = content else { return found };
    let mut content = BufReader::with_capacity(256 << 10, content.take(INPUT_BYTES_MAX));
    let mut text = Vec::new();
    for index in 0..=last {
        let is_wanted = wanted.contains(&index);
        match next_line(&mut content, &mut text, is_wanted).await {
            Ok(Some(_)) if is_wanted => {
                let job = JobKey { batch: batch.id.clone(), index };
                let parsed = parse_line(&text, u64::from(index) + 1, &job, &ModelDefaults::default());
                let input = match parsed {
                    Ok((_, generation)) => prompt(&generation.prompt),
                    Err(_) => String::from_utf8_lossy(&text).into_owned(),
                };
                found.insert(index, shown(&input));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    found
}

fn chat(messages: &[ChatMessage]) -> String {
    match messages {
        [ChatMessage { content, .. }] => content.clone(),
        several => {
            let said = several.iter().map(|said| format!("{}: {}", said.role, said.content));
            said.collect::<Vec<_>>().join("\n")
        }
    }
}

fn prompt(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => format!("{} tokens", tokens.len()),
        Prompt::Chat(messages) => chat(messages),
        Prompt::Conversation(conversation) => chat(&conversation.messages),
        Prompt::Several(several) => several.prompts.iter().map(self::prompt).collect::<Vec<_>>().join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_named_one_by_one_or_as_a_group() {
        assert!(states("all").unwrap().is_empty());
        assert_eq!(states("paused_budget").unwrap(), [BatchState::PausedBudget]);
        let (open, ended) = (states("open").unwrap(), states("ended").unwrap());
        assert!(
            open.iter().all(|state| !state.is_terminal()) && ended.iter().all(|state| state.is_terminal())
        );
        assert_eq!(open.len() + ended.len(), 9, "every state is in one of the groups");
        assert!(states("running").is_err());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shown("Märchen"), "Märchen");
        assert_eq!(shown(&"ä".repeat(5_000)).chars().count(), TEXT_CHARS_MAX + 1);
    }
}
