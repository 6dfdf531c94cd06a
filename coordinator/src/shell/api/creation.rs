//! Creating a batch: what it stands on is found out by a task, then it is admitted, quoted and stored, then told.

use std::collections::BTreeSet;
use std::sync::Arc;

use ternfleet_cloud::webhook::Webhook;
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{BatchCreate, Refusal, RefusalCode};
use ternfleet_proto::{Now, codec, table};

use super::{Api, refusal, stored_record, unreachable};
use crate::core::{BatchFacts, BatchRecord, Core, Event, batch_id, creation_digest};
use crate::shell::deletion::Reserved;
use crate::shell::quotes::{Footing, Question, asked, quoted};
use crate::shell::reply::ReplyTo;
use crate::shell::{Input, bounds, setup, spans};

impl Api {
    /// First half of a creation: find out what it stands on.
    pub(super) fn create(&mut self, create: BatchCreate, reply: ReplyTo) -> Vec<Event> {
        let reserved = self.reserves.reserve(&create.tenant, &create.input_object);
        let (bus, inbox, bus_facts) = (Arc::clone(&self.bus), self.inbox.clone(), self.bus_facts.clone());
        let (allow, lines_max) = (Arc::clone(&self.webhooks_allow), self.lines_max);
        tokio::spawn(async move {
            let found = match bounds::creation(&create).and_then(|()| check_webhook(&create, &allow)) {
                Ok(()) => survey(&bus, &create, &bus_facts, lines_max).await,
                Err(refused) => Err(refused),
            };
            let _ = inbox.send(Input::Surveyed { create: Box::new(create), found, reply, reserved }).await;
        });
        Vec::new()
    }

    /// Second half: admit, store, then tell.
    pub(in super::super) fn surveyed(
        &mut self,
        now: Now,
        create: BatchCreate,
        found: Result<Surveyed, Refusal>,
        reply: ReplyTo,
        reserved: Reserved,
        core: &Core,
        footing: &Footing,
    ) {
        let id = batch_id(&create.tenant, &create.idempotency_key);
        if let Some(slot) = core.find(&id)
            && let Some(batch) = core.batch(slot)
        {
            match batch.record.creation_digest == creation_digest(&create) {
                true => self.answer(reply, Ok(core.view_of(now, slot, batch))),
                false => self.answer::<()>(reply, Err(other_content(&create))),
            }
            return;
        }
        let admitted = found.and_then(|Surveyed { facts, models }| {
            self.has_room()?;
            if !create.options.wait_for_model {
                footing.check(now, core, models.iter().map(String::as_str))?;
            }
            core.admit(&create, &facts)?;
            Ok(facts)
        });
        let facts = match admitted {
            Ok(facts) => facts,
            Err(refused) => return self.answer::<()>(reply, Err(refused)),
        };
        let mut record = BatchRecord::new(now.wall, &create, facts);
        spans::accepted(&record.id, &mut record.traceparent);
        let (bus, inbox) = (Arc::clone(&self.bus), self.inbox.clone());
        let question = asked(&create).map(|ask| Question::new(now, core, footing, ask));
        tokio::spawn(async move {
            match quoted(question, &create).await {
                Ok(promise) => record.quote = promise,
                Err(refused) => {
                    reply.send::<()>(&*bus, &Err(refused)).await;
                    return;
                }
            }
            let answer =
                match bus.kv_create(table::KV_BATCHES, id.as_str(), codec::encode(&record), None).await {
                    Ok(_) => Ok(record),
                    Err(BusError::Exists(_)) => match stored_record(&bus, &id).await {
                        Ok(Some(before)) if before.creation_digest == record.creation_digest => Ok(before),
                        Ok(_) => Err(other_content(&create)),
                        Err(error) => Err(unreachable(&error)),
                    },
                    Err(error) => Err(unreachable(&error)),
                };
            let input = match answer {
                Ok(record) => Input::Created { record: Box::new(record), reply, reserved },
                Err(refused) => {
                    reply.send::<()>(&*bus, &Err(refused)).await;
                    return;
                }
            };
            let _ = inbox.send(input).await;
        });
    }
}

fn other_content(create: &BatchCreate) -> Refusal {
    let message = format!("the idempotency key {:?} was used for another batch", create.idempotency_key);
    refusal(RefusalCode::Conflict, message)
}

fn check_webhook(create: &BatchCreate, allow: &[String]) -> Result<(), Refusal> {
    let options = &create.options;
    let refused = match &options.webhook_url {
        Some(url) => Webhook::new(url, options.webhook_secret.as_deref(), allow).err(),
        None => None,
    };
    refused.map_or(Ok(()), |error| Err(refusal(RefusalCode::Invalid, error.to_string())))
}

/// What a creation stands on.
#[derive(Debug)]
pub(crate) struct Surveyed {
    facts: BatchFacts,
    /// Models that its lines name.
    models: BTreeSet<String>,
}

async fn survey(
    bus: &Arc<dyn Bus>,
    create: &BatchCreate,
    bus_facts: &setup::BusFacts,
    lines_max: u32,
) -> Result<Surveyed, Refusal> {
    let bucket = table::files_bucket(&create.tenant);
    let length = match bus.object_length(&bucket, &create.input_object).await {
        Ok(length) => length,
        Err(BusError::NotFound(_)) => None,
        Err(error) => return Err(unreachable(&error)),
    };
    let Some(input_bytes) = length else {
        let message = format!("there is no file {:?}: upload it first", create.input_object);
        return Err(refusal(RefusalCode::NotFound, message));
    };
    let object = &create.input_object;
    let mut models =
        bounds::content(bus, &bucket, object, input_bytes, lines_max, create.work.is_none()).await?;
    models.extend(create.work.iter().flat_map(|work| work.models.keys().cloned()));
    models.extend(create.options.model.clone());
    let results = bus.stream_facts(table::RESULTS).await.map_err(|error| unreachable(&error))?;
    let files =
        bus.stream_facts(&table::object_stream(&bucket)).await.map_err(|error| unreachable(&error))?;
    let facts = BatchFacts {
        input_bytes,
        stored_bytes: files.bytes,
        results_after: results.last_sequence,
        durability: bus_facts.durability,
        replicas: bus_facts.replicas,
    };
    Ok(Surveyed { facts, models })
}
