//! What the screen of `top` shows, and what keys do to it. Nothing is drawn here.

use std::collections::{BTreeMap, VecDeque};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use ternfleet_proto::message::{BatchView, LostPod, PodView};

use super::Snapshot;

/// One column a second; wider terminals than this exist, but nobody reads that far.
const HISTORY_MAX: usize = 300;

/// The keys and what they do, as the screen of `?` shows them.
pub(super) const KEYS: [(&str, &str); 8] = [
    ("q, Ctrl-C", "quit"),
    ("↑ ↓, k j", "select a row"),
    ("PgUp PgDn", "move by ten rows"),
    ("Home End", "first and last row"),
    ("Tab", "next list: batches, pods, lost pods"),
    ("Enter", "show details of the selected row"),
    ("a", "show or hide ended batches"),
    ("?", "these keys; Esc closes"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    Batches,
    Pods,
    /// Only there while a pod is lost.
    Lost,
}

/// What covers the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cover {
    Nothing,
    Keys,
    Details,
}

/// All that the screen shows.
#[derive(Debug)]
pub(super) struct View {
    pub(super) address: String,
    pub(super) tenant: String,
    pub(super) snapshot: Option<Snapshot>,
    /// Why the last look failed.
    pub(super) fault: Option<String>,
    /// Tokens a second at each look, oldest first.
    pub(super) rates: VecDeque<f64>,
    /// The list that keys move in.
    pub(super) list: List,
    /// By identity, so that a selection stays with its row when others come and go.
    selected: BTreeMap<List, String>,
    pub(super) cover: Cover,
    pub(super) shows_ended: bool,
    pub(super) colours: bool,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Quit,
    Close,
    Move(isize),
    ChangeList,
    Details,
    Keys,
    ToggleEnded,
}

pub(super) fn order(key: KeyEvent) -> Option<Order> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Order::Quit),
        KeyCode::Char('q') => Some(Order::Quit),
        KeyCode::Esc => Some(Order::Close),
        KeyCode::Up | KeyCode::Char('k') => Some(Order::Move(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Order::Move(1)),
        KeyCode::PageUp => Some(Order::Move(-10)),
        KeyCode::PageDown => Some(Order::Move(10)),
        KeyCode::Home => Some(Order::Move(isize::MIN)),
        KeyCode::End => Some(Order::Move(isize::MAX)),
        KeyCode::Tab | KeyCode::BackTab => Some(Order::ChangeList),
        KeyCode::Enter => Some(Order::Details),
        KeyCode::Char('?') => Some(Order::Keys),
        KeyCode::Char('a') => Some(Order::ToggleEnded),
        _ => None,
    }
}

impl View {
    pub(super) fn new(address: String, tenant: String, colours: bool) -> View {
        View {
            address,
            tenant,
            snapshot: None,
            fault: None,
            rates: VecDeque::new(),
            list: List::Batches,
            selected: BTreeMap::new(),
            cover: Cover::Nothing,
            shows_ended: true,
            colours,
        }
    }

    pub(super) fn hear(&mut self, outcome: anyhow::Result<Snapshot>) {
        match outcome {
            Ok(snapshot) => {
                if self.rates.len() == HISTORY_MAX {
                    self.rates.pop_front();
                }
                self.rates.push_back(snapshot.totals().rate_tok_s);
                self.snapshot = Some(snapshot);
                self.fault = None;
                if self.lost().is_empty() && self.list == List::Lost {
                    self.list = List::Pods;
                }
            }
            Err(reason) => self.fault = Some(format!("{reason:#}")),
        }
    }

    /// True when the view should end.
    pub(super) fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Quit => return true,
            Order::Close if self.cover == Cover::Nothing => return true,
            Order::Close => self.cover = Cover::Nothing,
            Order::Keys => self.cover = if self.cover == Cover::Keys { Cover::Nothing } else { Cover::Keys },
            Order::Details => {
                if self.cover == Cover::Details {
                    self.cover = Cover::Nothing;
                } else {
                    self.select_from(0);
                    self.cover = Cover::Details;
                }
            }
            Order::Move(by) => self.select_from(by),
            Order::ChangeList => {
                self.list = match self.list {
                    List::Batches => List::Pods,
                    List::Pods if !self.lost().is_empty() => List::Lost,
                    List::Pods | List::Lost => List::Batches,
                };
            }
            Order::ToggleEnded => self.shows_ended = !self.shows_ended,
        }
        false
    }

    /// Moves the selection so many rows; the first move selects the first row.
    fn select_from(&mut self, by: isize) {
        let rows = self.names(self.list);
        let Some(last) = rows.len().checked_sub(1) else { return };
        let row = match self.selected_row(self.list) {
            Some(row) => row.saturating_add_signed(by).min(last),
            None if by == isize::MAX => last,
            None => 0,
        };
        let name = rows[row].to_owned();
        self.selected.insert(self.list, name);
    }

    /// What tells the rows of a list apart, in the order in which they are shown.
    fn names(&self, list: List) -> Vec<&str> {
        match list {
            List::Batches => self.batches().into_iter().map(|batch| batch.id.as_str()).collect(),
            List::Pods => self.pods().iter().map(|pod| pod.heartbeat.worker.as_str()).collect(),
            List::Lost => self.lost().into_iter().map(|pod| pod.pod.as_str()).collect(),
        }
    }

    /// Its place in the list, if the list has one and it is still there.
    pub(super) fn selected_row(&self, list: List) -> Option<usize> {
        let selected = self.selected.get(&list)?;
        self.names(list).iter().position(|name| name == selected)
    }

    pub(super) fn pods(&self) -> &[PodView] {
        self.snapshot.as_ref().map_or(&[], |snapshot| &snapshot.pods)
    }

    /// The latest first.
    pub(super) fn lost(&self) -> Vec<&LostPod> {
        self.snapshot.iter().flat_map(|snapshot| snapshot.lost.iter().rev()).collect()
    }

    /// Open ones first, each part newest first.
    pub(super) fn batches(&self) -> Vec<&BatchView> {
        let all = || self.snapshot.iter().flat_map(|snapshot| &snapshot.batches);
        let open = all().filter(|batch| !batch.state.is_terminal());
        let ended = all().filter(|batch| self.shows_ended && batch.state.is_terminal());
        open.chain(ended).collect()
    }

    /// The batch whose waiting the foot of the screen explains: the selected one, or the first that waits.
    pub(super) fn waiting(&self) -> Option<&BatchView> {
        let batches = self.batches();
        let selected = self.selected_row(List::Batches).and_then(|row| batches.get(row).copied());
        match selected {
            Some(batch) => batch.stall.is_some().then_some(batch),
            None => batches.into_iter().find(|batch| batch.stall.is_some()),
        }
    }
}
