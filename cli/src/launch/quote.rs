//! What a launch will cost and do, before anything is ordered.

use std::path::{Path, PathBuf};

use anyhow::bail;

use ternfleet_coordinator::simulate::{Fleet as Market, PodSpec};
use ternfleet_proto::message::{Quote, QuoteAsk};
use ternfleet_proto::{TenantId, TimeMs, UsdMicro};

use crate::commands::quote::{count, market, page, read};
use crate::model_file::ModelFile;
use crate::span;

/// Lines whose prompts are counted.
const SAMPLE: usize = 1000;
/// What a model can hold that is not here to be looked at.
const CONTEXT_TOKENS: u32 = 2048;

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) prompts: &'a Path,
    pub(crate) model: &'a PathBuf,
    pub(crate) deadline: Option<TimeMs>,
    pub(crate) budget: Option<UsdMicro>,
    /// The head, in words, and what it costs an hour.
    pub(crate) head: (&'a str, UsdMicro),
    pub(crate) pods: &'a [PodSpec],
}

/// Quotes the batch on what could be rented; answers the quote and both for people.
pub(crate) async fn plan(asked: &Plan<'_>) -> anyhow::Result<(Quote, String)> {
    let sample = read(asked.prompts, SAMPLE).await?;
    let now = TimeMs::now();
    // Without the model's file, prompts are estimated from their bytes.
    let (work, context) = match ModelFile::open(Some(asked.model)) {
        Ok(model) => {
            let name = model.name()?;
            let other = |named: &&String| **named != name && !named.starts_with("blake3:");
            if let Some(named) = sample.models.keys().find(other) {
                let file = asked.prompts.display();
                bail!("{file} names the model {named:?}, but the pods would serve {name}");
            }
            let tokenizer = model.tokenizer()?;
            (sample.counted_by(|prompt| count(prompt, &tokenizer)), model.hyper.context as u32)
        }
        Err(_) => (sample.reckoned(), CONTEXT_TOKENS),
    };
    if work.sample.is_empty() {
        bail!("{} has no valid request: there is nothing to do", asked.prompts.display());
    }
    let question = QuoteAsk {
        tenant: TenantId::default_tenant(),
        work,
        deadline: asked.deadline,
        budget_usd_micro: asked.budget,
        classes: Vec::new(),
    };
    let offers = Market { pods: asked.pods.to_vec(), ..Market::default() };
    let quote = market::quote(&question, Some(&offers), &[], context, now)?;
    let mut text = page(&quote, &sample, now);
    let (head, price) = asked.head;
    text += "\nplan\n";
    text += &format!("head      {head}, {price} per hour\n");
    for pod in asked.pods {
        let price = UsdMicro::from_dollars(pod.price_usd_per_hour);
        text +=
            &format!("workers   up to {} × {}, {price} per hour each while rented\n", pod.count, pod.class);
    }
    text += &match asked.budget {
        Some(budget) => format!("limit     {budget}; the batch pauses when it is spent\n"),
        None => "limit     none: set one with --budget\n".to_owned(),
    };
    if let Some(deadline) = asked.deadline {
        text += &format!("deadline  in {}\n", span::short(deadline.since(now)));
    }
    Ok((quote, text))
}
