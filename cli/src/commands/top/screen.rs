//! The picture that `top` draws: a pure function of the view, for any size of terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{BatchState, BatchView, PodView, WorkerState};

use super::{Snapshot, View};
use crate::progress::{clock, state_name};
use crate::report::printable;

const BAR_CELLS: usize = 16;

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
    let pods = view.snapshot.as_ref().map_or(0, |snapshot| snapshot.pods.len());
    let area = frame.area();
    // Pods get what they need, at most 40 % of the height when there are many.
    let pod_rows =
        u16::try_from(pods).unwrap_or(u16::MAX).saturating_add(3).min((area.height * 2 / 5).max(4));
    let chart_rows = if area.height >= 24 { 4 } else { 0 };
    let [head, totals, chart, upper, lower, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(chart_rows),
        Constraint::Length(pod_rows),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(header(view, palette), head);
    match &view.snapshot {
        Some(snapshot) => {
            frame.render_widget(figures(snapshot, palette), totals);
            if chart_rows > 0 {
                frame.render_widget(speed(view, chart.width, palette), chart);
            }
            frame.render_widget(pod_table(&snapshot.pods, upper, palette), upper);
            frame.render_widget(batch_table(view, snapshot.at, lower, palette), lower);
        }
        None => frame.render_widget(Paragraph::new("asking the coordinator …"), totals),
    }
    let keys = " q quits   ↑↓ scroll   a ended batches ";
    frame.render_widget(Paragraph::new(keys).style(palette.soft()), foot);
}

fn header(view: &View, palette: Palette) -> Line<'static> {
    let mut parts = vec![
        Span::styled(
            " ternfleet ",
            palette.of(Color::Cyan).add_modifier(Modifier::BOLD | Modifier::REVERSED),
        ),
        Span::raw(format!("  {}  tenant {}", printable(&view.address), view.tenant)),
    ];
    if let Some(fault) = &view.fault {
        let text = format!("  ! {}", printable(fault));
        parts.push(Span::styled(text, palette.of(Color::Red).add_modifier(Modifier::BOLD)));
    }
    Line::from(parts)
}

fn figures(snapshot: &Snapshot, palette: Palette) -> Paragraph<'static> {
    let totals = snapshot.totals();
    let strong = palette.of(Color::Cyan).add_modifier(Modifier::BOLD);
    let kappa = totals.usd_micro_per_million_tokens.map_or("-".to_owned(), |price| price.to_string());
    let pairs = [
        (format!("{:.1}", totals.rate_tok_s), "tok/s"),
        (totals.usd_micro_per_hour.to_string(), "an hour"),
        (kappa, "per 1M tokens"),
        (totals.spent_usd_micro.to_string(), "spent"),
        (totals.open_jobs.to_string(), "jobs open"),
        (totals.queued_jobs.to_string(), "queued"),
        (totals.pods_live.to_string(), if totals.pods_live == 1 { "pod live" } else { "pods live" }),
    ];
    let spans = pairs.into_iter().flat_map(|(number, unit)| {
        [Span::raw(" "), Span::styled(number, strong), Span::styled(format!(" {unit}  "), palette.soft())]
    });
    Paragraph::new(Line::from_iter(spans))
}

fn speed(view: &View, width: u16, palette: Palette) -> Sparkline<'static> {
    let seen = usize::from(width.saturating_sub(2));
    let from = view.rates.len().saturating_sub(seen);
    // A sparkline has whole numbers; a tenth of a token is fine enough.
    let bars: Vec<u64> = view.rates.iter().skip(from).map(|rate| (rate * 10.0).round() as u64).collect();
    Sparkline::default()
        .block(frame_of(" tokens a second ", palette))
        .data(bars)
        .style(palette.of(Color::Cyan))
}

fn frame_of(title: &str, palette: Palette) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(palette.soft())
        .title(Span::styled(title.to_owned(), Style::new().add_modifier(Modifier::BOLD)))
}

fn right(text: String) -> Cell<'static> {
    Cell::new(Line::from(text).right_aligned())
}

fn heads(names: &[(&'static str, bool)], palette: Palette) -> Row<'static> {
    let cells = names.iter().map(
        |(name, is_number)| {
            if *is_number { right((*name).to_owned()) } else { Cell::new(*name) }
        },
    );
    Row::new(cells.collect::<Vec<_>>()).style(palette.soft())
}

fn pod_table(pods: &[PodView], area: Rect, palette: Palette) -> Table<'static> {
    let names = [
        ("pod", false),
        ("class", false),
        ("state", false),
        ("tok/s", true),
        ("$/h", true),
        ("$ per 1M", true),
        ("slots", true),
        ("queue", true),
        ("busy", true),
        ("tokens", true),
    ];
    let widths = [
        Constraint::Min(10),
        Constraint::Max(12),
        Constraint::Length(11),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Length(10),
    ];
    let rows = pods.iter().map(|pod| {
        let said = &pod.heartbeat;
        let (state, colour) = match said.state {
            _ if !pod.live => ("quiet", Color::Red),
            WorkerState::Ready => ("ready", Color::Green),
            WorkerState::Calibrating => ("calibrating", Color::Yellow),
            WorkerState::Draining => ("draining", Color::Yellow),
            WorkerState::Gone => ("gone", Color::Red),
        };
        Row::new(vec![
            Cell::new(printable(&said.pod)),
            Cell::new(printable(&said.pod_class)),
            Cell::new(Span::styled(state, palette.of(colour))),
            right(format!("{:.1}", pod.rate_tok_s)),
            right(said.price_usd_micro_per_hour.to_string()),
            right(pod.usd_micro_per_million_tokens.map_or("-".to_owned(), |price| price.to_string())),
            right(format!("{}/{}", said.slots_in_use, said.slots)),
            right(pod.queued_jobs.to_string()),
            right(format!("{:.0}%", pod.busy_ratio * 100.0)),
            right(pod.tokens.to_string()),
        ])
    });
    let seen = usize::from(area.height.saturating_sub(2));
    let title =
        if pods.len() > seen { format!(" pods, {seen} of {} ", pods.len()) } else { " pods ".to_owned() };
    Table::new(rows.collect::<Vec<_>>(), widths)
        .header(heads(&names, palette))
        .block(frame_of(&title, palette))
}

fn batch_table(view: &View, now: TimeMs, area: Rect, palette: Palette) -> Table<'static> {
    let names = [
        ("batch", false),
        ("state", false),
        ("progress", false),
        ("jobs", true),
        ("failed", true),
        ("tok/s", true),
        ("cost", true),
        ("budget", true),
        ("left", true),
        ("deadline", true),
    ];
    let widths = [
        Constraint::Min(14),
        Constraint::Length(13),
        Constraint::Length(BAR_CELLS as u16 + 5),
        Constraint::Length(13),
        Constraint::Length(6),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(8),
    ];
    let batches = view.batches();
    let seen = usize::from(area.height.saturating_sub(2));
    let scroll = view.scroll.min(batches.len().saturating_sub(seen));
    let rows = batches.iter().skip(scroll).map(|batch| batch_row(batch, now, palette));
    let title = match batches.len() {
        0 => " batches: none yet; `ternfleet submit FILE.jsonl` makes one ".to_owned(),
        n if n > seen => format!(" batches, {} to {} of {n} ", scroll + 1, (scroll + seen).min(n)),
        _ => " batches ".to_owned(),
    };
    Table::new(rows.collect::<Vec<_>>(), widths)
        .header(heads(&names, palette))
        .block(frame_of(&title, palette))
}

fn batch_row(batch: &BatchView, now: TimeMs, palette: Palette) -> Row<'static> {
    let done = batch.completed + batch.failed;
    let share = f64::from(done) / f64::from(batch.total.max(1));
    let colour = match batch.state {
        BatchState::Completed => Color::Green,
        BatchState::Failed | BatchState::Expired | BatchState::Cancelled => Color::Red,
        BatchState::PausedBudget | BatchState::Cancelling => Color::Yellow,
        BatchState::Validating | BatchState::InProgress | BatchState::Finalizing => Color::Cyan,
    };
    let deadline = batch.options.deadline.unwrap_or(batch.expires_at);
    let ended = batch.state.is_terminal();
    let late = !ended && batch.finish_estimate.is_some_and(|finish| finish > deadline);
    let left = match batch.finish_estimate {
        Some(finish) if !ended => clock(finish.since(now)),
        _ => "-".to_owned(),
    };
    let total = if batch.total_is_final { batch.total.to_string() } else { format!("{}+", batch.total) };
    let failed = Span::styled(
        batch.failed.to_string(),
        if batch.failed > 0 { palette.of(Color::Red) } else { Style::new() },
    );
    Row::new(vec![
        Cell::new(printable(batch.name.as_deref().unwrap_or(batch.id.as_str()))),
        Cell::new(Span::styled(state_name(batch.state).replace('_', " "), palette.of(colour))),
        Cell::new(Line::from(vec![
            Span::styled(bar(share), palette.of(colour)),
            Span::raw(format!(" {:3.0}%", (share * 100.0).floor())),
        ])),
        right(format!("{done}/{total}")),
        Cell::new(Line::from(failed).right_aligned()),
        right(if ended { "-".to_owned() } else { format!("{:.1}", batch.rate_tok_s) }),
        right(batch.cost_usd_micro.to_string()),
        right(batch.options.budget_usd_micro.map_or("-".to_owned(), |budget| budget.to_string())),
        Cell::new(
            Line::from(Span::styled(left, if late { palette.of(Color::Red) } else { Style::new() }))
                .right_aligned(),
        ),
        right(if ended { "-".to_owned() } else { clock(deadline.since(now)) }),
    ])
}

/// `████▌           `, in eighths of a cell.
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
