//! Dead jobs for callers: read out of the stream DEAD, page by page.

use std::sync::Arc;

use futures::StreamExt;
use ternfleet_proto::bus::{Bus, Replayed};
use ternfleet_proto::message::{DeadJob, DeadList, DeadPage, Refusal, RefusalCode, Reply};
use ternfleet_proto::{codec, table};

use super::reply::ReplyTo;

const PAGE_JOBS_MAX: u32 = 500;
/// Replies stay well under the server's largest message.
const PAGE_BYTES_MAX: usize = 700 << 10;

pub(crate) async fn answer(bus: Arc<dyn Bus>, list: DeadList, reply: ReplyTo) {
    let answer: Reply<DeadPage> = page(&bus, &list).await.map_err(|error| Refusal {
        code: RefusalCode::Unavailable,
        message: error.to_string(),
        retry_after_ms: Some(1000),
    });
    reply.send(&*bus, &answer).await;
}

async fn page(bus: &Arc<dyn Bus>, list: &DeadList) -> ternfleet_proto::bus::Result<DeadPage> {
    let filter = table::dead_of(&list.tenant, list.batch.as_ref());
    let mut replay = bus.replay(table::DEAD, &filter, list.after + 1).await?;
    let mut page = DeadPage { jobs: Vec::new(), next: list.after, end: false };
    let mut bytes = 0;
    while page.jobs.len() < list.limit.clamp(1, PAGE_JOBS_MAX) as usize && bytes < PAGE_BYTES_MAX {
        match replay.next().await {
            Some(Ok(Replayed::Message(message))) => {
                page.next = message.sequence;
                match codec::decode::<DeadJob>(&message.payload) {
                    Ok(dead) => {
                        bytes += message.payload.len();
                        page.jobs.push(dead);
                    }
                    Err(error) => tracing::warn!(subject = message.subject, %error, "dropped"),
                }
            }
            Some(Ok(Replayed::CaughtUp)) | None => {
                page.end = true;
                break;
            }
            Some(Err(error)) => return Err(error),
        }
    }
    Ok(page)
}
