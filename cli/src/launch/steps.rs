//! The steps of a launch, in order. Each finds what an earlier life of the command has done, and does the rest.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, anyhow};

use ternfleet_proto::message::{
    BatchOptions, BatchRef, BatchState, BatchView, Refusal, RefusalCode, ScaleDials, ScaleView,
};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{BatchId, BusError, TimeMs};

use super::bill;
use super::head::{Head, Lost};
use super::state::{Folder, State};
use crate::client::{Fleet, Patience, Unanswered};
use crate::commands::submit::NewBatch;
use crate::progress::{Progress, state_name};
use crate::table::{Joined, Results};
use crate::{follow, local};

/// Of one launch: a head that is lost more often than this has another fault.
const HEADS_MAX: usize = 12;
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Between two looks at what the fleet may still spend.
const MONEY_EVERY: Duration = Duration::from_secs(1);

/// How a launch went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) batch: BatchView,
    pub(crate) state: State,
}

/// Every step that is left, up to the bill.
pub(crate) async fn run(folder: &Folder, state: State) -> anyhow::Result<Outcome> {
    let head = Head::of(&state, folder)?;
    let fetched = state.fetched.clone();
    let state = RefCell::new(state);
    let batch = match fetched {
        Some(batch) => *batch,
        None => work_with(&head, folder, &state).await?,
    };
    let mut state = state.into_inner();
    give_back(&head, folder, &mut state).await?;
    Ok(Outcome { batch, state })
}

/// Has the batch done by one head, or by those that follow it.
async fn work_with(head: &Head, folder: &Folder, state: &RefCell<State>) -> anyhow::Result<BatchView> {
    if head.is_own() {
        eprintln!("starting the head of {}", state.borrow().name);
    }
    let mut fault = None;
    for _ in 0..HEADS_MAX {
        let reached = head.ensure().await?;
        if reached.fresh {
            change(folder, state, |state| state.batch = None)?;
        }
        let worked = async {
            let fleet = Fleet::connect(&reached.connection).await?;
            work(&fleet, head.is_own(), folder, state).await
        };
        let lost = tokio::select! {
            batch = worked => match batch {
                Err(error) if head.is_own() && is_unanswered(&error) => error,
                decided => return decided,
            },
            lost = head.keep() => {
                let Lost = lost?;
                anyhow!("the head is lost or has a new address")
            }
        };
        eprintln!("{lost:#}; searching for it");
        fault = Some(lost);
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    Err(fault.unwrap_or_else(|| anyhow!("no head was started"))).context("the head was lost too often")
}

/// The head could not be asked, or it does not know the batch: one that was started again on an empty disk knows none.
fn is_unanswered(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<BusError>()
            || cause.is::<Unanswered>()
            || cause.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code == RefusalCode::NotFound)
    })
}

/// Has the batch done and its results here.
async fn work(
    fleet: &Fleet,
    is_own: bool,
    folder: &Folder,
    state: &RefCell<State>,
) -> anyhow::Result<BatchView> {
    let known = state.borrow().batch.clone();
    let known = match known {
        Some(id) => match fleet.batch(&id, Patience::Short).await {
            Ok(batch) => Some(batch),
            Err(error) if is_unanswered(&error) => None,
            Err(error) => return Err(error).with_context(|| format!("no status of {id}")),
        },
        None => None,
    };
    let batch = match known {
        Some(batch) => batch,
        None => create(fleet, folder, state).await?,
    };
    let mut progress = Progress::new();
    let ended = tokio::select! {
        ended = follow::to_the_end(fleet, &batch.id, &mut progress) => Ok(ended?),
        () = money_spent(fleet, &batch.id, folder, state), if is_own => Err(()),
    };
    let ended = match ended {
        Ok(ended) => ended,
        // Nobody will give this fleet more: what was answered is kept.
        Err(()) => {
            eprintln!("the budget is spent; writing the finished answers");
            fleet.cancel(&batch.id).await?;
            follow::to_the_end(fleet, &batch.id, &mut progress).await?
        }
    };
    progress.finish(&ended);
    if let Some(reason) = &ended.reason {
        eprintln!("{}: {reason}", state_name(ended.state));
    }
    let table = state.borrow().table.clone();
    let joined = match table {
        Some(table) => Some(Joined::of_batch(fleet, &ended, &table, Some(folder.path())).await?.into()),
        None => None,
    };
    let draft = folder.begin_out(&mut state.borrow_mut())?;
    let results = Results::over(draft, &state.borrow().out);
    let path = results.write(fleet, &ended, joined, Patience::Endless).await?;
    eprintln!("results: {}", path.display());
    change(folder, state, |state| state.fetched = Some(Box::new(ended.clone())))?;
    Ok(ended)
}

/// Returns when the batch waits for money that nobody will give: its own budget is spent, or what the fleet's pods may
/// cost. Says meanwhile why nothing is rented, when nothing is, and writes down which pods are: a head that is lost takes
/// its books along.
async fn money_spent(fleet: &Fleet, id: &BatchId, folder: &Folder, state: &RefCell<State>) {
    let question = BatchRef { tenant: fleet.tenant.clone(), id: id.clone() };
    let (mut said, mut noted) = (BTreeSet::new(), BTreeSet::new());
    loop {
        tokio::time::sleep(MONEY_EVERY).await;
        let batch = fleet.ask_once::<_, BatchView>(ApiVerb::BatchGet, &question).await;
        let view = fleet.ask_once::<_, ScaleView>(ApiVerb::ScaleShow, &ScaleDials::default()).await;
        let (Ok(batch), Ok(view)) = (batch, view) else { continue };
        let pods: BTreeSet<_> = view.pods.iter().filter_map(|pod| pod.provider_id.clone()).collect();
        if !pods.is_subset(&noted) {
            let mut bill = state.borrow().bill.clone();
            let read = bill::read_meter(&*fleet.bus, &mut bill).await;
            if read.and_then(|()| change(folder, state, |state| state.bill = bill)).is_ok() {
                noted.extend(pods);
            }
        }
        let waits = match batch.state {
            BatchState::PausedBudget => true,
            BatchState::InProgress => view.limit_reached && view.pods.is_empty(),
            _ => false,
        };
        if waits {
            return;
        }
        for why in troubles(&view) {
            if said.insert(why.clone()) {
                eprintln!("{why}");
            }
        }
    }
}

/// Why work may stand still.
fn troubles(view: &ScaleView) -> Vec<String> {
    let halted = view.halted.iter().map(|why| format!("nothing is rented for now: {why}"));
    let failed = view.classes.iter().filter_map(|class| class.failed.as_ref());
    let failed = failed.map(|failed| {
        let last = failed.log.last().map(|line| format!(" ({line})")).unwrap_or_default();
        format!("{}: {}{last}", failed.pod, failed.why)
    });
    halted.chain(failed).collect()
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
        let mut metadata = state.metadata.clone();
        metadata.insert("launched_as".to_owned(), state.name.clone());
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
    let mut returned = false;
    if head.is_own() {
        eprintln!("returning all pods");
        if let Some(connection) = head.find().await {
            match Fleet::connect(&connection).await {
                Ok(fleet) => returned = by_the_coordinator(&fleet, folder, state).await,
                Err(error) => eprintln!("the head does not reply ({error:#}); terminating it"),
            }
        }
    }
    head.end(returned).await.context("pods may still be rented: repeat `ternfleet down`")?;
    head.complete(&mut state.bill)?;
    if let Some(provider) = head.provider()?
        && let Err(error) =
            bill::read_provider(&*provider, state.began_at, TimeMs::now(), &mut state.bill).await
    {
        eprintln!("{error:#}");
    }
    state.ended_at = Some(TimeMs::now());
    folder.write(state)
}

/// Workers hand back their jobs, and each pod's meter is read to its end; true when all pods were returned. What fails
/// here is done without the coordinator.
async fn by_the_coordinator(fleet: &Fleet, folder: &Folder, state: &mut State) -> bool {
    let returned = local::return_all(fleet).await;
    if let Err(error) = &returned {
        eprintln!("{error:#}; terminating the rest without the coordinator");
    }
    let read = bill::read_meter(&*fleet.bus, &mut state.bill).await;
    if let Err(error) = read.and_then(|()| folder.write(state)) {
        eprintln!("{error:#}");
    }
    returned.is_ok()
}
