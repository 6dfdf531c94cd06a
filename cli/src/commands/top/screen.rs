//! The picture that `top` draws: a pure function of the view, for any size of terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Margin, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Sparkline, Wrap};

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{BatchState, BatchView, LostPod, PodView, WorkerState};

use super::columns::{Column, Kind, lines, shortened, width_of};
use super::view::{Cover, KEYS, List, View};
use super::{Snapshot, figures};
use crate::commands::status;
use crate::progress::state_or_stall;
use crate::report::{self, printable};
use crate::{date, span};

const BAR_CELLS: usize = 10;
/// Lines of the explanation why a batch waits.
const NOTICE_LINES: u16 = 3;
/// Lines of the list of lost pods, with its title and head.
const LOST_LINES: u16 = 5;

/// Colours, or none of them.
#[derive(Clone, Copy)]
struct Palette {
    colours: bool,
}

impl Palette {
    fn of(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn soft(self) -> Style {
        if self.colours { Style::new().fg(Color::DarkGray) } else { Style::new() }
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let palette = Palette { colours: view.colours };
    let area = frame.area();
    let pods = view.pods().len();
    let totals = view.snapshot.as_ref().map(|snapshot| flowed(snapshot, area.width, palette));
    let notice = notice(view);
    let notice_lines = notice.as_ref().map_or(0, |text| {
        u16::try_from(wrapped_lines(text, area.width.saturating_sub(2))).unwrap_or(NOTICE_LINES)
    });
    // Pods get what they need, at most 40 % of the height when there are many.
    let pod_rows =
        u16::try_from(pods).unwrap_or(u16::MAX).saturating_add(2).min((area.height * 2 / 5).max(3)).max(3);
    let lost_rows = match view.lost().len() {
        0 => 0,
        lost => u16::try_from(lost + 2).unwrap_or(LOST_LINES).min(LOST_LINES).min(area.height / 5),
    };
    let [head, figures, chart, upper, middle, lower, note, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(totals.as_ref().map_or(1, |lines| lines.len() as u16)),
        Constraint::Length(if area.height >= 24 { 4 } else { 0 }),
        Constraint::Length(pod_rows),
        Constraint::Length(lost_rows),
        Constraint::Min(3),
        Constraint::Length(notice_lines.min(NOTICE_LINES)),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(header(view, head.width, palette), head);
    match (&view.snapshot, totals) {
        (Some(snapshot), Some(totals)) => {
            frame.render_widget(Paragraph::new(totals), figures);
            if chart.height > 0 {
                frame.render_widget(speed(view, chart.width, palette), chart);
            }
            draw_pods(frame, view, snapshot, upper, palette);
            if middle.height > 0 {
                draw_lost(frame, view, snapshot.at, middle, palette);
            }
            draw_batches(frame, view, snapshot, lower, palette);
        }
        _ => frame.render_widget(Paragraph::new(" waiting for the coordinator …"), figures),
    }
    if let Some(text) = notice {
        let text = Paragraph::new(text).wrap(Wrap { trim: false }).style(palette.of(Color::Yellow));
        frame.render_widget(text, note.inner(Margin { horizontal: 1, vertical: 0 }));
    }
    let keys = " q quits  ↑↓ selects  Tab next list  Enter details  a ended batches  ? keys";
    frame.render_widget(Paragraph::new(keys).style(palette.soft()), foot);
    draw_cover(frame, view, palette);
}

fn header(view: &View, width: u16, palette: Palette) -> Line<'static> {
    let name = " ternfleet ";
    let strong = palette.of(Color::Cyan).add_modifier(Modifier::BOLD | Modifier::REVERSED);
    let (text, style) = match &view.fault {
        Some(fault) => {
            (format!("  ! {}", printable(fault)), palette.of(Color::Red).add_modifier(Modifier::BOLD))
        }
        None => (format!("  {}  tenant {}", printable(&view.address), view.tenant), Style::new()),
    };
    let room = usize::from(width).saturating_sub(name.len());
    Line::from(vec![Span::styled(name, strong), Span::styled(shortened(&text, room), style)])
}

/// The sums, as many to a line as fit whole.
fn flowed(snapshot: &Snapshot, width: u16, palette: Palette) -> Vec<Line<'static>> {
    let strong = palette.of(Color::Cyan).add_modifier(Modifier::BOLD);
    let mut flowed: Vec<Line<'static>> = vec![Line::default()];
    for (number, unit) in figures(&snapshot.totals()) {
        let part = [
            Span::raw(" "),
            Span::styled(number, strong),
            Span::styled(format!(" {unit}  "), palette.soft()),
        ];
        let wide = part.iter().map(Span::width).sum::<usize>();
        let full =
            flowed.last().is_some_and(|line| line.width() > 0 && line.width() + wide > usize::from(width));
        if full {
            flowed.push(Line::default());
        }
        if let Some(line) = flowed.last_mut() {
            line.spans.extend(part);
        }
    }
    flowed
}

fn speed(view: &View, width: u16, palette: Palette) -> Sparkline<'static> {
    let seen = usize::from(width.saturating_sub(2));
    let from = view.rates.len().saturating_sub(seen);
    // A sparkline has whole numbers; a tenth of a token is fine enough.
    let bars: Vec<u64> = view.rates.iter().skip(from).map(|rate| (rate * 10.0).round() as u64).collect();
    Sparkline::default()
        .block(frame_of(" tokens per second ", false, palette))
        .data(bars)
        .style(palette.of(Color::Cyan))
}

fn frame_of(title: &str, has_keys: bool, palette: Palette) -> Block<'static> {
    let border = if has_keys { palette.of(Color::Cyan) } else { palette.soft() };
    Block::new()
        .borders(Borders::TOP)
        .border_style(border)
        .title(Span::styled(title.to_owned(), Style::new().add_modifier(Modifier::BOLD)))
}

/// A list with its head line, at the page that has the selected row.
fn draw_list(
    frame: &mut Frame<'_>,
    area: Rect,
    title: impl Fn(std::ops::Range<usize>) -> String,
    columns: &[Column],
    selected: Option<usize>,
    has_keys: bool,
    palette: Palette,
) {
    let (head, mut rows) = lines(columns, usize::from(area.width.saturating_sub(2)), palette.soft());
    let seen = usize::from(area.height.saturating_sub(2)).max(1);
    if let Some(row) = selected.and_then(|selected| rows.get_mut(selected)) {
        *row = std::mem::take(row).style(Style::new().add_modifier(Modifier::REVERSED));
    }
    let from = selected.map_or(0, |selected| selected / seen * seen);
    let to = (from + seen).min(rows.len());
    let shown: Vec<Line<'static>> = std::iter::once(head).chain(rows.drain(from..to)).collect();
    frame.render_widget(frame_of(&title(from..to), has_keys, palette), area);
    let inner = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    frame.render_widget(Paragraph::new(shown), inner.inner(Margin { horizontal: 1, vertical: 0 }));
}

/// `, 11 to 20 of 34` where not all are shown.
fn part(shown: std::ops::Range<usize>, of: usize) -> String {
    if shown.len() == of { String::new() } else { format!(", {} to {} of {of}", shown.start + 1, shown.end) }
}

fn column<T>(
    head: &'static str,
    kind: Kind,
    rank: u8,
    rows: &[T],
    cell: impl Fn(&T) -> (String, Style),
) -> Column {
    Column { head, kind, rank, cells: rows.iter().map(cell).collect() }
}

fn plain(text: impl ToString) -> (String, Style) {
    (text.to_string(), Style::new())
}

fn draw_pods(frame: &mut Frame<'_>, view: &View, snapshot: &Snapshot, area: Rect, palette: Palette) {
    let pods = &snapshot.pods;
    let has_keys = view.list == List::Pods;
    if pods.is_empty() {
        let block = frame_of(" pods ", has_keys, palette);
        let text = format!(" {}", report::no_pods(snapshot.scale.as_ref()));
        frame.render_widget(Paragraph::new(text).block(block), area);
        return;
    }
    let columns = [
        column("pod", Kind::Text { min: 8 }, 0, pods, |pod| plain(printable(&pod.heartbeat.pod))),
        column("class", Kind::Text { min: 5 }, 6, pods, |pod| plain(printable(&pod.heartbeat.pod_class))),
        column("state", Kind::Text { min: 5 }, 1, pods, |pod| pod_state(pod, palette)),
        column("tok/s", Kind::Figure, 0, pods, |pod| plain(format!("{:.1}", pod.rate_tok_s))),
        column("price/h", Kind::Figure, 3, pods, |pod| plain(pod.heartbeat.price_usd_micro_per_hour)),
        column("$ per 1M", Kind::Figure, 2, pods, |pod| {
            plain(pod.usd_micro_per_million_tokens.map_or("-".to_owned(), |price| price.to_string()))
        }),
        column("slots", Kind::Figure, 4, pods, |pod| {
            plain(format!("{}/{}", pod.heartbeat.slots_in_use, pod.heartbeat.slots))
        }),
        column("queue", Kind::Figure, 5, pods, |pod| plain(pod.queued_jobs)),
        column("busy", Kind::Figure, 3, pods, |pod| plain(format!("{:.0}%", pod.busy_ratio * 100.0))),
        column("tokens", Kind::Figure, 7, pods, |pod| plain(pod.tokens)),
    ];
    let title = |shown| format!(" pods{} ", part(shown, snapshot.workers()));
    draw_list(frame, area, title, &columns, view.selected_row(List::Pods), has_keys, palette);
}

fn pod_state(pod: &PodView, palette: Palette) -> (String, Style) {
    let colour = match pod.heartbeat.state {
        _ if !pod.live => Color::Red,
        WorkerState::Ready => Color::Green,
        WorkerState::Calibrating | WorkerState::Draining => Color::Yellow,
        WorkerState::Gone => Color::Red,
    };
    (report::pod_state(pod), palette.of(colour))
}

fn draw_lost(frame: &mut Frame<'_>, view: &View, now: TimeMs, area: Rect, palette: Palette) {
    let lost = view.lost();
    let columns = [
        column("lost pod", Kind::Text { min: 8 }, 0, &lost, |pod| plain(printable(&pod.pod))),
        column("class", Kind::Text { min: 5 }, 3, &lost, |pod| plain(printable(&pod.class))),
        column("lost", Kind::Figure, 0, &lost, |pod| (ago(pod, now), palette.of(Color::Red))),
        column("why", Kind::Text { min: 12 }, 0, &lost, |pod| plain(printable(&pod.why))),
        column("tokens", Kind::Figure, 2, &lost, |pod| plain(pod.tokens)),
        column("cost", Kind::Figure, 1, &lost, |pod| plain(pod.cost_usd_micro)),
    ];
    let title = |shown| format!(" lost pods{} ", part(shown, lost.len()));
    draw_list(frame, area, title, &columns, view.selected_row(List::Lost), view.list == List::Lost, palette);
}

fn ago(pod: &LostPod, now: TimeMs) -> String {
    format!("{} ago", span::short(now.since(pod.at)))
}

fn draw_batches(frame: &mut Frame<'_>, view: &View, snapshot: &Snapshot, area: Rect, palette: Palette) {
    let (batches, now) = (view.batches(), snapshot.at);
    let has_keys = view.list == List::Batches;
    if batches.is_empty() {
        let block = frame_of(" batches ", has_keys, palette);
        let text = " none yet: submit one with `ternfleet submit FILE.jsonl`";
        frame.render_widget(Paragraph::new(text).block(block), area);
        return;
    }
    let share = |batch: &BatchView| f64::from(batch.completed + batch.failed) / f64::from(batch.total.max(1));
    let deadline = |batch: &BatchView| batch.options.deadline.unwrap_or(batch.expires_at);
    let open =
        |batch: &BatchView, text: String| if batch.state.is_terminal() { "-".to_owned() } else { text };
    let columns = [
        column("batch", Kind::Text { min: 10 }, 0, &batches, |batch| plain(name_of(batch))),
        column("state", Kind::Text { min: 11 }, 0, &batches, |batch| {
            (state_or_stall(batch), palette.of(batch_colour(batch)))
        }),
        column("progress", Kind::Text { min: BAR_CELLS }, 8, &batches, |batch| {
            (bar(share(batch)), palette.of(batch_colour(batch)))
        }),
        column("done", Kind::Figure, 4, &batches, |batch| {
            plain(format!("{:.0}%", (share(batch) * 100.0).floor()))
        }),
        column("jobs", Kind::Figure, 0, &batches, |batch| {
            let more = if batch.total_is_final { "" } else { "+" };
            plain(format!("{}/{}{more}", batch.completed + batch.failed, batch.total))
        }),
        column("failed", Kind::Figure, 3, &batches, |batch| {
            let colour = if batch.failed > 0 { palette.of(Color::Red) } else { Style::new() };
            (batch.failed.to_string(), colour)
        }),
        column("tok/s", Kind::Figure, 2, &batches, |batch| {
            plain(if batch.stall.is_some() {
                "-".to_owned()
            } else {
                open(batch, format!("{:.1}", batch.rate_tok_s))
            })
        }),
        column("cost", Kind::Figure, 1, &batches, |batch| plain(batch.cost_usd_micro)),
        column("budget", Kind::Figure, 7, &batches, |batch| {
            plain(batch.options.budget_usd_micro.map_or("-".to_owned(), |budget| budget.to_string()))
        }),
        column("left", Kind::Figure, 1, &batches, |batch| {
            let late = batch.finish_estimate.is_some_and(|finish| finish > deadline(batch));
            let finish = batch.finish_estimate.filter(|_| batch.stall.is_none());
            let left = finish.map_or("-".to_owned(), |finish| span::short(finish.since(now)));
            (open(batch, left), if late { palette.of(Color::Red) } else { Style::new() })
        }),
        column("due in", Kind::Figure, 5, &batches, |batch| {
            plain(open(batch, span::short(deadline(batch).since(now))))
        }),
        column("elapsed", Kind::Figure, 6, &batches, |batch| plain(span::short(report::elapsed(batch, now)))),
    ];
    let waiting = batches.iter().filter(|batch| batch.stall.is_some()).count();
    let waiting = if waiting > 0 { format!(" ({waiting} waiting)") } else { String::new() };
    let count = |ended: bool| {
        let states = snapshot.counts.iter().filter(|(state, _)| state.is_terminal() == ended);
        states.map(|(_, count)| count).sum::<u64>()
    };
    let (open, ended) = (count(false), count(true));
    let title =
        |shown| format!(" batches: {open} open{waiting}, {ended} ended{} ", part(shown, batches.len()));
    draw_list(frame, area, title, &columns, view.selected_row(List::Batches), has_keys, palette);
}

fn name_of(batch: &BatchView) -> String {
    printable(batch.name.as_deref().unwrap_or(batch.id.as_str()))
}

fn batch_colour(batch: &BatchView) -> Color {
    match batch.state {
        _ if batch.stall.is_some() => Color::Yellow,
        BatchState::Completed => Color::Green,
        BatchState::Failed | BatchState::Expired | BatchState::Cancelled => Color::Red,
        BatchState::PausedBudget | BatchState::Cancelling => Color::Yellow,
        BatchState::Validating | BatchState::InProgress | BatchState::Finalizing => Color::Cyan,
    }
}

/// Why a batch waits, and what to do about it.
fn notice(view: &View) -> Option<String> {
    let batch = view.waiting()?;
    let stall = batch.stall.as_ref()?;
    let name = name_of(batch);
    let advice = stall.advice.as_ref().map(|advice| format!("\n→ {}", printable(advice))).unwrap_or_default();
    Some(format!("{name} waits: {}{advice}", printable(&stall.reason)))
}

/// Lines that a text takes when it is wrapped at so many cells.
fn wrapped_lines(text: &str, width: u16) -> usize {
    let width = usize::from(width).max(1);
    text.lines().map(|line| width_of(line) / width + 1).sum()
}

fn draw_cover(frame: &mut Frame<'_>, view: &View, palette: Palette) {
    let (title, text) = match view.cover {
        Cover::Nothing => return,
        Cover::Keys => {
            let rows = KEYS.map(|(key, does)| format!("{key:<11} {does}"));
            (" keys ", rows.join("\n"))
        }
        Cover::Details => match details(view) {
            Some(text) => (" details; Esc closes ", text),
            None => return,
        },
    };
    let area = frame.area().inner(Margin { horizontal: 2, vertical: 1 });
    let rows = wrapped_lines(&text, area.width.saturating_sub(4));
    let height = u16::try_from(rows + 2).unwrap_or(u16::MAX).min(area.height);
    let area = Rect { height, ..area };
    let block = Block::new()
        .borders(Borders::ALL)
        .border_style(palette.of(Color::Cyan))
        .title(Span::styled(title, Style::new().add_modifier(Modifier::BOLD)));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }).block(block), area);
}

/// All that is known of the selected row.
fn details(view: &View) -> Option<String> {
    let row = view.selected_row(view.list)?;
    Some(match view.list {
        List::Batches => status::page(view.batches().get(row)?),
        List::Pods => pod_page(view.pods().get(row)?),
        List::Lost => lost_page(view.lost().get(row)?, view.snapshot.as_ref()?.at),
    })
}

fn lost_page(pod: &LostPod, now: TimeMs) -> String {
    let lines = [
        format!("{}, lost {}", pod.pod, ago(pod, now)),
        format!("  why       {}", pod.why),
        format!("  last seen {} UTC", date::utc(pod.at)),
        format!("  class     {} on host {}", pod.class, pod.host),
        format!("  model     {}", pod.model),
        format!("  price     {}/h", pod.price_usd_micro_per_hour),
        format!("  so far    {} tokens for {}", pod.tokens, pod.cost_usd_micro),
        format!("  dismiss   ternfleet pods --dismiss {}", pod.pod),
    ];
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

fn pod_page(pod: &PodView) -> String {
    let said = &pod.heartbeat;
    let price = pod.usd_micro_per_million_tokens.map_or("-".to_owned(), |price| price.to_string());
    let lines = [
        format!("{}, worker {}", said.pod, said.worker),
        format!("  state     {}, version {}", report::pod_state(pod), said.version),
        format!("  class     {} on host {}", said.pod_class, said.host),
        format!("  model     {}, context of {} tokens", said.model, said.context_tokens),
        format!("  engine    {} threads, {}", said.threads, said.isa),
        format!("  speed     {:.1} tok/s, prompts {:.1} tok/s", pod.rate_tok_s, said.prefill_tok_s),
        format!("  price     {}/h, {price} per 1M tokens", said.price_usd_micro_per_hour),
        format!(
            "  work      {} of {} slots in use, {} jobs queued",
            said.slots_in_use, said.slots, pod.queued_jobs
        ),
        format!("  so far    {} tokens for {}", pod.tokens, pod.cost_usd_micro),
    ];
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

/// `████▌     `, in eighths of a cell.
fn bar(share: f64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * (BAR_CELLS * 8) as f64).floor() as usize;
    let drawn = format!("{}{}", "█".repeat(eighths / 8), PARTS[eighths % 8]);
    format!("{drawn:░<BAR_CELLS$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_wide_at_any_share() {
        for share in [-1.0, 0.0, 0.33, 0.5, 0.999, 1.0, 7.0, f64::NAN] {
            assert_eq!(bar(share).chars().count(), BAR_CELLS, "{share}");
        }
        assert_eq!(bar(1.0), "█".repeat(BAR_CELLS));
    }
}
