//! Counting the tokens of prompts for a quote, with the tokenizer that will run them.

use std::sync::Arc;

use futures::StreamExt;
use ternfleet_proto::bus::{Bus, BusStream, Note};
use ternfleet_proto::codec;
use ternfleet_proto::message::CountAsk;

use crate::language::Language;

/// Answers until it is dropped. Tokenizing is work, so it leaves the network's threads alone; one question at a time
/// leaves the engine its cores.
pub(super) async fn serve(bus: Arc<dyn Bus>, mut questions: BusStream<Note>, language: Arc<Language>) {
    while let Some(note) = questions.next().await {
        let Some(reply) = note.reply else { continue };
        let language = Arc::clone(&language);
        let counted = ternfleet_proto::aside::run(move || {
            let ask: CountAsk = codec::decode(&note.payload).ok()?;
            let count = |prompt| language.encode(prompt).ok().map(|ids| ids.len() as u32);
            Some(ask.prompts.iter().map(count).collect::<Vec<Option<u32>>>())
        });
        match counted.await {
            Ok(Some(counts)) => {
                if let Err(fault) = bus.send(&reply, codec::encode(&counts)).await {
                    tracing::debug!(%fault, "a token count could not be sent");
                }
            }
            Ok(None) => tracing::warn!("a request for a token count could not be parsed"),
            Err(fault) => tracing::warn!(%fault, "prompt tokens could not be counted"),
        }
    }
}
