//! The steps of a launch, in order. Each finds what an earlier life of the command has done, and does the rest.

use std::cell::RefCell;

use anyhow::Context;

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{BatchOptions, BatchView};

use super::bill;
use super::head::Head;
use super::state::{Folder, State};
use crate::client::{Fleet, Patience};
use crate::commands::submit::NewBatch;
use crate::output::{Existing, WholeFile};
use crate::progress::{Progress, state_name};
use crate::{follow, local};

/// How a launch went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) batch: BatchView,
    pub(crate) state: State,
}

/// Every step that is left, up to the bill.
pub(crate) async fn run(folder: &Folder, state: State) -> anyhow::Result<Outcome> {
    let head = Head::of(&state, folder)?;
    let state = RefCell::new(state);
    if head.is_own() {
        eprintln!("starting the head of {}", state.borrow().name);
    }
    let fleet = Fleet::connect(&head.ensure().await?).await?;
    let batch = tokio::select! {
        batch = work(&fleet, folder, &state) => batch?,
        failed = head.keep() => match failed? {},
    };
    let mut state = state.into_inner();
    give_back(&head, folder, &mut state).await?;
    Ok(Outcome { batch, state })
}

/// Has the batch done and its results here.
async fn work(fleet: &Fleet, folder: &Folder, state: &RefCell<State>) -> anyhow::Result<BatchView> {
    let known = state.borrow().batch.clone();
    let batch = match known {
        Some(id) => fleet.batch(&id, Patience::Short).await.with_context(|| format!("no status of {id}"))?,
        None => create(fleet, folder, state).await?,
    };
    let mut progress = Progress::new();
    let ended = follow::to_the_end(fleet, &batch.id, &mut progress).await?;
    progress.finish(&ended);
    if let Some(reason) = &ended.reason {
        eprintln!("{}: {reason}", state_name(ended.state));
    }
    if state.borrow().fetched_at.is_none() {
        let draft = WholeFile::create(&state.borrow().out, Existing::Replaced)?;
        let path = follow::into_file(fleet, &ended, draft, Patience::Endless).await?;
        eprintln!("results: {}", path.display());
        change(folder, state, |state| state.fetched_at = Some(TimeMs::now()))?;
    }
    Ok(ended)
}

async fn create(fleet: &Fleet, folder: &Folder, state: &RefCell<State>) -> anyhow::Result<BatchView> {
    let (new, prompts) = {
        let state = state.borrow();
        let options = BatchOptions {
            budget_usd_micro: state.budget_usd_micro,
            deadline: state.deadline,
            // The quote was shown and accepted before anything was ordered.
            accept_at_risk: true,
            ..BatchOptions::default()
        };
        let metadata = [("launched_as".to_owned(), state.name.clone())].into();
        let new = NewBatch { key: state.key.clone(), name: Some(state.name.clone()), options, metadata };
        (new, state.prompts.clone())
    };
    let batch = new.create(fleet, &prompts).await?;
    change(folder, state, |state| state.batch = Some(batch.id.clone()))?;
    eprintln!("{} accepted, {}", batch.id, crate::commands::status::durability(&batch));
    Ok(batch)
}

fn change(folder: &Folder, state: &RefCell<State>, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
    let mut state = state.borrow_mut();
    change(&mut state);
    folder.write(&state)
}

/// Gives back every pod, reads the bill, ends the head, and looks until nothing of the fleet's name is left. May be
/// asked for at any time, and again.
pub(crate) async fn give_back(head: &Head, folder: &Folder, state: &mut State) -> anyhow::Result<()> {
    if head.is_own() {
        eprintln!("giving everything back");
        if let Some(connection) = head.find().await {
            match Fleet::connect(&connection).await {
                Ok(fleet) => by_the_coordinator(&fleet, folder, state).await,
                Err(error) => eprintln!("the head does not answer ({error:#}); it is ended as it is"),
            }
        }
    }
    head.end().await.context("something may still be rented: repeat `ternfleet down`")?;
    if let Some(provider) = head.provider()?
        && let Err(error) =
            bill::read_provider(&*provider, state.began_at, TimeMs::now(), &mut state.bill).await
    {
        eprintln!("{error:#}");
    }
    state.ended_at = Some(TimeMs::now());
    folder.write(state)
}

/// Workers hand back their jobs, and each pod's meter is read to its end. What fails here is done without the
/// coordinator.
async fn by_the_coordinator(fleet: &Fleet, folder: &Folder, state: &mut State) {
    if let Err(error) = local::return_all(fleet).await {
        eprintln!("{error:#}; the rest is ended without the coordinator");
    }
    let read = bill::read_meter(&*fleet.bus, &mut state.bill).await;
    if let Err(error) = read.and_then(|()| folder.write(state)) {
        eprintln!("{error:#}");
    }
}
