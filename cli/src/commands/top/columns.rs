//! Columns that share a width: a figure is shown whole or not at all, a text is shortened with `…`, and what does not fit
//! is left out, the least important column first.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

/// Between two columns.
const GAP: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Set right, never shortened.
    Figure,
    /// Set left, shortened down to so many cells.
    Text { min: usize },
}

#[derive(Debug)]
pub(super) struct Column {
    pub(super) head: &'static str,
    pub(super) kind: Kind,
    /// Columns with the highest rank go first when there is no room.
    pub(super) rank: u8,
    pub(super) cells: Vec<(String, Style)>,
}

impl Column {
    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|(text, _)| width_of(text));
        cells.max().unwrap_or(0).max(width_of(self.head))
    }

    fn least(&self) -> usize {
        match self.kind {
            Kind::Figure => self.width(),
            Kind::Text { min } => self.width().min(min.max(width_of(self.head))),
        }
    }
}

/// The columns that fit into so many cells, with their widths.
fn fit(columns: &[Column], width: usize) -> Vec<(&Column, usize)> {
    let mut kept: Vec<&Column> = columns.iter().collect();
    let needed =
        |kept: &[&Column]| kept.iter().map(|column| column.least() + GAP).sum::<usize>().saturating_sub(GAP);
    while needed(&kept) > width {
        let Some(last) = (0..kept.len()).max_by_key(|&place| (kept[place].rank, place)) else { break };
        kept.remove(last);
    }
    let mut spare = width.saturating_sub(needed(&kept));
    let widen = |column: &Column, spare: &mut usize| {
        let more = (column.width() - column.least()).min(*spare);
        *spare -= more;
        column.least() + more
    };
    kept.into_iter().map(|column| (column, widen(column, &mut spare))).collect()
}

/// The head line and one line a row, at most `width` cells wide.
pub(super) fn lines(columns: &[Column], width: usize, head: Style) -> (Line<'static>, Vec<Line<'static>>) {
    let kept = fit(columns, width);
    let join = |cells: Vec<(String, Style)>| {
        let mut spans = Vec::with_capacity(2 * cells.len());
        for (place, (text, style)) in cells.into_iter().enumerate() {
            if place > 0 {
                spans.push(Span::raw(" ".repeat(GAP)));
            }
            spans.push(Span::styled(text, style));
        }
        Line::from(spans)
    };
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or(0);
    let heads = kept.iter().map(|(column, width)| (padded(column.head, column.kind, *width), head));
    let row = |n: usize| {
        let cells = kept.iter().map(|(column, width)| {
            let (text, style) = &column.cells[n];
            (padded(text, column.kind, *width), *style)
        });
        join(cells.collect())
    };
    (join(heads.collect()), (0..rows).map(row).collect())
}

fn padded(text: &str, kind: Kind, width: usize) -> String {
    let text = shortened(text, width);
    let blanks = " ".repeat(width.saturating_sub(width_of(&text)));
    match kind {
        Kind::Figure => format!("{blanks}{text}"),
        Kind::Text { .. } => format!("{text}{blanks}"),
    }
}

/// At most so many cells of a text; what is cut off ends in `…`.
pub(super) fn shortened(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 1;
    for letter in text.chars() {
        used += width_of(letter.encode_utf8(&mut [0; 4]));
        if used > width {
            break;
        }
        kept.push(letter);
    }
    kept.push('…');
    kept
}

/// Cells that a text takes on a terminal.
pub(super) fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(head: &'static str, kind: Kind, rank: u8, cell: &str) -> Column {
        Column { head, kind, rank, cells: vec![(cell.to_owned(), Style::new())] }
    }

    fn row(columns: &[Column], width: usize) -> String {
        let (head, rows) = lines(columns, width, Style::new());
        assert!(head.width() <= width && rows[0].width() <= width, "{width}");
        rows[0].spans.iter().map(|span| span.content.as_ref()).collect()
    }

    #[test]
    fn a_figure_is_whole_or_absent_and_a_text_is_shortened() {
        let columns = [
            column("batch", Kind::Text { min: 5 }, 0, "a long name"),
            column("jobs", Kind::Figure, 0, "1234567/9999999"),
            column("cost", Kind::Figure, 1, "$0.005000"),
            column("due", Kind::Figure, 2, "12m 30s"),
        ];
        assert_eq!(row(&columns, 60), "a long name  1234567/9999999  $0.005000  12m 30s");
        assert_eq!(row(&columns, 45), "a long …  1234567/9999999  $0.005000  12m 30s");
        assert_eq!(row(&columns, 35), "a long…  1234567/9999999  $0.005000");
        assert_eq!(row(&columns, 24), "a long…  1234567/9999999");
        assert_eq!(row(&columns, 12), "a long name");
    }

    #[test]
    fn no_width_is_too_small_and_wide_letters_take_two_cells() {
        let columns =
            [column("batch", Kind::Text { min: 5 }, 0, "日本語の名前"), column("n", Kind::Figure, 0, "12")];
        for width in 0..30 {
            row(&columns, width);
        }
        assert_eq!(shortened("日本語", 4), "日…");
    }
}
