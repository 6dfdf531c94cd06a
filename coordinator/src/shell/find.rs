//! Which batches are stored, in the order in which screens show them, and how they are found: open ones first, each
//! group newest first, by state and by text of name or id. Some hundred bytes a batch, so all of them are here.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Bound;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{BatchFind, BatchState, BatchView, Refusal, RefusalCode};
use ternfleet_proto::{BatchId, Now, TenantId, TimeMs, codec};

use super::api::{refusal, stored_record, unreachable};
use super::pages::PAGE_BYTES_MAX;
use crate::core::{BatchRecord, Core, view_of};

/// Entries of a page.
const LIMIT_MAX: usize = 200;
/// Entries looked at for one page: the loop that answers also assigns work. A search goes on with the next page.
const LOOKED_AT_MAX: usize = 20_000;

/// When a batch was created, and which it is: a place in its group.
type Age = (TimeMs, BatchId);

/// Where a batch stands in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    group: Group,
    age: Age,
}

/// In the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Open,
    Ended,
}

#[derive(Debug)]
struct Known {
    state: BatchState,
    /// Name and id in lower case.
    text: String,
}

/// One tenant's batches.
#[derive(Debug, Default)]
struct Shelf {
    open: BTreeMap<Age, Known>,
    ended: BTreeMap<Age, Known>,
    counts: BTreeMap<BatchState, u64>,
}

/// Every stored batch.
#[derive(Debug, Default)]
pub(super) struct Stored {
    shelves: BTreeMap<TenantId, Shelf>,
    places: BTreeMap<BatchId, (TenantId, Group, TimeMs)>,
}

/// A page of batches, by their places.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) places: Vec<Place>,
    pub(super) next: Option<String>,
    pub(super) counts: BTreeMap<BatchState, u64>,
}

impl Group {
    fn of(state: BatchState) -> Group {
        if state.is_terminal() { Group::Ended } else { Group::Open }
    }
}

impl Shelf {
    fn group(&self, group: Group) -> &BTreeMap<Age, Known> {
        match group {
            Group::Open => &self.open,
            Group::Ended => &self.ended,
        }
    }

    fn group_mut(&mut self, group: Group) -> &mut BTreeMap<Age, Known> {
        match group {
            Group::Open => &mut self.open,
            Group::Ended => &mut self.ended,
        }
    }

    /// A group's batches from the newest on, or from the one behind `after`.
    fn down(&self, group: Group, after: Option<&Age>) -> impl Iterator<Item = (Group, &Age, &Known)> {
        let upto = after.map_or(Bound::Unbounded, Bound::Excluded);
        let batches = self.group(group).range::<Age, _>((Bound::Unbounded, upto));
        batches.rev().map(move |(age, known)| (group, age, known))
    }
}

impl Stored {
    /// False for what an older record says: a batch that has ended stays so, and its leader knows of the end before the
    /// bucket's values from before it have come back.
    pub(super) fn note(&mut self, record: &BatchRecord) -> bool {
        let ended = matches!(self.places.get(&record.id), Some((_, Group::Ended, _)));
        if ended && !record.state.is_terminal() {
            return false;
        }
        self.forget(&record.id);
        let (group, age) = (Group::of(record.state), (record.created_at, record.id.clone()));
        let text = format!("{}\n{}", record.name.as_deref().unwrap_or_default(), record.id).to_lowercase();
        let shelf = self.shelves.entry(record.tenant.clone()).or_default();
        *shelf.counts.entry(record.state).or_default() += 1;
        shelf.group_mut(group).insert(age, Known { state: record.state, text });
        self.places.insert(record.id.clone(), (record.tenant.clone(), group, record.created_at));
        true
    }

    pub(super) fn forget(&mut self, batch: &BatchId) {
        let Some((tenant, group, at)) = self.places.remove(batch) else { return };
        let Some(shelf) = self.shelves.get_mut(&tenant) else { return };
        let Some(known) = shelf.group_mut(group).remove(&(at, batch.clone())) else { return };
        if let Some(count) = shelf.counts.get_mut(&known.state) {
            *count -= 1;
        }
    }

    /// Whether the tenant has such a batch.
    pub(super) fn knows(&self, tenant: &TenantId, id: &BatchId) -> bool {
        self.places.get(id).is_some_and(|(owner, ..)| owner == tenant)
    }

    /// A tenant's batches behind `after`, newest first, whatever their state.
    pub(super) fn newest(&self, tenant: &TenantId, after: Option<&BatchId>, limit: usize) -> Vec<BatchId> {
        let Some(shelf) = self.shelves.get(tenant) else { return Vec::new() };
        let after = match after.map(|id| (id, self.places.get(id))) {
            None => None,
            Some((id, Some((owner, _, at)))) if owner == tenant => Some((*at, id.clone())),
            Some(_) => return Vec::new(),
        };
        let mut open = shelf.down(Group::Open, after.as_ref()).peekable();
        let mut ended = shelf.down(Group::Ended, after.as_ref()).peekable();
        let merged = iter::from_fn(|| match (open.peek(), ended.peek()) {
            (Some((_, a, _)), Some((_, b, _))) if a > b => open.next(),
            (Some(_), None) => open.next(),
            _ => ended.next(),
        });
        merged.take(limit).map(|(_, age, _)| age.1.clone()).collect()
    }

    /// A page of what is asked for.
    pub(super) fn find(&self, ask: &BatchFind) -> Result<Found, Refusal> {
        let after = ask.after.as_deref().map(place_of).transpose()?;
        let Some(shelf) = self.shelves.get(&ask.tenant) else { return Ok(Found::default()) };
        let mut found = Found { counts: shelf.counts.clone(), ..Found::default() };
        found.counts.retain(|_, count| *count > 0);
        let text = ask.text.as_deref().map(str::to_lowercase).filter(|text| !text.is_empty());
        let limit = (ask.limit as usize).clamp(1, LIMIT_MAX);
        let (group, age) = after.as_ref().map_or((Group::Open, None), |(group, age)| (*group, Some(age)));
        let open = (group == Group::Open).then(|| shelf.down(Group::Open, age));
        let ended = shelf.down(Group::Ended, age.filter(|_| group == Group::Ended));
        let rest = open.into_iter().flatten().chain(ended);
        let mut last: Option<(Group, &Age)> = None;
        for (looked_at, (group, age, known)) in rest.enumerate() {
            if found.places.len() == limit || looked_at == LOOKED_AT_MAX {
                found.next = last.map(cursor);
                break;
            }
            last = Some((group, age));
            let wanted = ask.states.is_empty() || ask.states.contains(&known.state);
            if wanted && text.as_ref().is_none_or(|text| known.text.contains(text)) {
                found.places.push(Place { group, age: age.clone() });
            }
        }
        Ok(found)
    }
}

/// A place that stays where it is, whatever becomes of the batch there.
fn cursor((group, (at, id)): (Group, &Age)) -> String {
    format!("{}.{}.{id}", u8::from(group == Group::Ended), at.0)
}

fn place_of(cursor: &str) -> Result<(Group, Age), Refusal> {
    let parsed = || {
        let (group, rest) = cursor.split_once('.')?;
        let (at, id) = rest.split_once('.')?;
        let group = match group {
            "0" => Group::Open,
            "1" => Group::Ended,
            _ => return None,
        };
        Some((group, (TimeMs(at.parse().ok()?), id.parse().ok()?)))
    };
    parsed().ok_or_else(|| refusal(RefusalCode::Invalid, "`after` is not the end of a page"))
}

impl Place {
    pub(super) fn id(&self) -> &BatchId {
        &self.age.1
    }

    /// What [`BatchFind::after`] has for the page that begins behind this place.
    pub(super) fn cursor(&self) -> String {
        cursor((self.group, &self.age))
    }
}

/// Batches that are in memory as they stand now; the others are to be read from their records.
pub(super) fn in_memory(now: Now, ids: Vec<BatchId>, core: &Core) -> Vec<(BatchId, Option<BatchView>)> {
    let view = |id: &BatchId| core.find(id).and_then(|slot| core.batch_view(now, slot));
    ids.into_iter().map(|id| (id.clone(), view(&id))).collect()
}

/// The views, as many as one reply can carry, and how many of `known` they cover.
pub(super) async fn views(
    bus: &Arc<dyn Bus>,
    known: Vec<(BatchId, Option<BatchView>)>,
) -> Result<(Vec<BatchView>, usize), Refusal> {
    let read = stream::iter(known).map(|(id, view)| async move {
        match view {
            Some(view) => Ok(Some(view)),
            None => Ok(stored_record(bus, &id).await?.map(|record| view_of(&record, record.totals))),
        }
    });
    let views: Result<Vec<Option<BatchView>>, _> = read.buffered(32).try_collect().await;
    let views = views.map_err(|error| unreachable(&error))?;
    let fit = fitting(&views);
    Ok((views.into_iter().take(fit).flatten().collect(), fit))
}

/// How many entries from the first on stay under the limit of a reply: metadata alone may take 36 KiB of a view. One
/// always does.
fn fitting(views: &[Option<BatchView>]) -> usize {
    let mut bytes = 0;
    let fits = views.iter().take_while(|view| {
        bytes += view.as_ref().map_or(0, |view| codec::encode(view).len());
        bytes <= PAGE_BYTES_MAX
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::openai::Endpoint;

    use super::*;

    fn record(n: u64, tenant: &str, state: BatchState) -> BatchRecord {
        let (id, tenant) = (format!("batch_{n}").parse().unwrap(), tenant.parse().unwrap());
        let mut record = BatchRecord::single(TimeMs(n / 4), id, tenant, Endpoint::Completions, TimeMs(9));
        (record.state, record.name) = (state, Some(format!("Tale {n}")));
        record
    }

    fn ids(found: &[BatchId]) -> Vec<String> {
        found.iter().map(ToString::to_string).collect()
    }

    fn found(page: Found) -> Vec<String> {
        page.places.iter().map(|place| place.id().to_string()).collect()
    }

    #[test]
    fn a_page_of_large_batches_stays_under_the_limit_of_a_message() {
        let view = |metadata_bytes: usize| {
            let mut record = record(1, "acme", BatchState::Completed);
            record.metadata.insert("k".to_owned(), "v".repeat(metadata_bytes));
            Some(view_of(&record, record.totals))
        };
        let large = vec![view(36 << 10); 200];
        let fit = fitting(&large);
        let bytes = |n: usize| codec::encode(&&large[..n]).len();
        assert!(bytes(fit) < PAGE_BYTES_MAX + 1024 && bytes(fit + 1) > PAGE_BYTES_MAX, "{fit} entries");
        assert_eq!(fitting(&vec![view(0); 200]), 200);
        assert_eq!(fitting(&[view(PAGE_BYTES_MAX), view(0)]), 1, "one always fits");
    }

    #[test]
    fn a_batch_that_has_ended_is_not_open_again_by_an_older_record() {
        let mut stored = Stored::default();
        assert!(stored.note(&record(0, "acme", BatchState::InProgress)));
        assert!(stored.note(&record(0, "acme", BatchState::Completed)));
        assert!(!stored.note(&record(0, "acme", BatchState::Validating)));
        assert!(stored.note(&record(0, "acme", BatchState::Completed)), "its tombstone is news");
        let acme: TenantId = "acme".parse().unwrap();
        assert_eq!(stored.shelves[&acme].counts[&BatchState::Completed], 1);
    }

    #[test]
    fn a_list_is_paged_by_age_and_keeps_to_its_tenant() {
        let mut stored = Stored::default();
        for n in 0..10u64 {
            let state = if n % 4 == 0 { BatchState::Completed } else { BatchState::InProgress };
            stored.note(&record(n, ["acme", "rival"][(n % 2) as usize], state));
        }
        let acme: TenantId = "acme".parse().unwrap();
        let names = |after: Option<&str>, limit| {
            let after: Option<BatchId> = after.map(|id| id.parse().unwrap());
            ids(&stored.newest(&acme, after.as_ref(), limit))
        };
        assert_eq!(names(None, 2), ["batch_8", "batch_6"]);
        assert_eq!(names(Some("batch_6"), 9), ["batch_4", "batch_2", "batch_0"]);
        assert!(names(Some("batch_1"), 9).is_empty(), "another's batch is no place to go on from");
        stored.forget(&"batch_4".parse().unwrap());
        assert_eq!(stored.newest(&acme, None, 9).len(), 4);
    }

    #[test]
    fn open_batches_come_before_ended_ones_and_no_page_repeats_or_leaves_out_any() {
        let mut stored = Stored::default();
        for n in 0..50 {
            let state = if n % 5 == 0 { BatchState::InProgress } else { BatchState::Completed };
            stored.note(&record(n, "acme", state));
        }
        let mut ask = BatchFind {
            tenant: "acme".parse().unwrap(),
            states: Vec::new(),
            text: None,
            after: None,
            limit: 7,
        };
        let mut all = Vec::new();
        loop {
            let page = stored.find(&ask).unwrap();
            assert_eq!(page.counts.values().sum::<u64>(), 50, "the totals are true");
            let last = page.places.last().map(Place::cursor);
            assert!(
                page.next.is_none() || page.next == last,
                "a page that is cut short continues as any other"
            );
            all.extend(page.places.iter().map(|place| place.id().to_string()));
            // One that ends while somebody pages moves to the ended ones.
            if all.len() == 21 {
                stored.note(&record(45, "acme", BatchState::Completed));
            }
            let Some(next) = page.next else { break };
            ask.after = Some(next);
        }
        assert_eq!(all.len(), 50, "the one that ended was read as an open one, and is not read again");
        assert!(all[..10].iter().all(|id| id[6..].parse::<u64>().unwrap() % 5 == 0), "{all:?}");
        assert_eq!(all[10], "batch_49");
    }

    #[test]
    fn batches_are_found_by_state_and_by_text_of_name_or_id() {
        let mut stored = Stored::default();
        stored.note(&record(1, "acme", BatchState::Failed));
        stored.note(&record(12, "acme", BatchState::Completed));
        let find = |states: &[BatchState], text: &str, after: Option<&str>| {
            let (tenant, states) = ("acme".parse().unwrap(), states.to_vec());
            let (text, after) = (Some(text.to_owned()), after.map(str::to_owned));
            stored.find(&BatchFind { tenant, states, text, after, limit: 10 })
        };
        assert_eq!(found(find(&[], "TALE 1", None).unwrap()), ["batch_12", "batch_1"]);
        assert_eq!(found(find(&[BatchState::Failed], "", None).unwrap()), ["batch_1"]);
        assert_eq!(found(find(&[], "batch_12", None).unwrap()), ["batch_12"]);
        for bad in ["", "x", "2.1.batch_1", "0.1", "0.x.batch_1"] {
            assert!(find(&[], "", Some(bad)).is_err(), "{bad}");
        }
    }
}
