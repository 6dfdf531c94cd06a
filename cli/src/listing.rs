//! The tenant's batches in the order in which every list shows them: open ones first, each group newest first.

use ternfleet_proto::message::{BatchFind, BatchPage, BatchView};
use ternfleet_proto::table::ApiVerb;

use crate::client::{Fleet, Patience};

/// Batches of one request. A reply has fewer where they would not fit into one message.
const PAGE_BATCHES: u32 = 100;

/// Reads one page after the other until `enough` holds of what was read. `next` of the answer is none if that is all.
pub(crate) async fn read(
    fleet: &Fleet,
    text: Option<&str>,
    ask: impl AsyncFn(BatchFind) -> anyhow::Result<BatchPage>,
    enough: impl Fn(&[BatchView]) -> bool,
) -> anyhow::Result<BatchPage> {
    let mut question = BatchFind {
        tenant: fleet.tenant.clone(),
        states: Vec::new(),
        text: text.map(str::to_owned),
        after: None,
        limit: PAGE_BATCHES,
    };
    let mut read = Vec::new();
    loop {
        let mut page = ask(question.clone()).await?;
        read.append(&mut page.batches);
        if page.next.is_none() || enough(&read) {
            return Ok(BatchPage { batches: read, ..page });
        }
        question.after = page.next;
    }
}

/// As [`read`], for a person who waits for one answer.
pub(crate) async fn read_once(
    fleet: &Fleet,
    text: Option<&str>,
    enough: impl Fn(&[BatchView]) -> bool,
) -> anyhow::Result<BatchPage> {
    let ask = async |question: BatchFind| fleet.ask(ApiVerb::BatchFind, &question, Patience::Short).await;
    read(fleet, text, ask, enough).await
}
