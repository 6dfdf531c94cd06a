//! The plot of a benchmark: tokens a second by threads and by batch, each beside its ceiling, as one SVG file.

use std::fmt::Write;

use super::report::{BatchRow, Figure, Report, ThreadRow};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 60.0;
/// Colours that people who see fewer of them can tell apart (Okabe and Ito).
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"];

/// One line of points: (x, rate with its runs and ceiling).
struct Series<'a> {
    name: String,
    points: Vec<(f64, &'a Figure)>,
}

/// The whole picture.
pub(super) fn svg(report: &Report) -> String {
    let by_threads = |name: &str, figure: fn(&super::report::Stream) -> &Figure| Series {
        name: name.to_owned(),
        points: report
            .threads
            .iter()
            .filter_map(|row| match row {
                ThreadRow::Measured(row) => Some((row.threads as f64, figure(row))),
                ThreadRow::Refused { .. } => None,
            })
            .collect(),
    };
    let threads = [by_threads("prompt", |row| &row.prompt), by_threads("generation", |row| &row.decode)];
    let measured: Vec<_> = report
        .batch
        .iter()
        .filter_map(|row| match row {
            BatchRow::Measured(row) => Some(row),
            BatchRow::Refused { .. } => None,
        })
        .collect();
    let mut prompts: Vec<usize> = measured.iter().map(|row| row.prompt).collect();
    prompts.sort_unstable();
    prompts.dedup();
    let batches: Vec<Series<'_>> = prompts
        .into_iter()
        .map(|prompt| Series {
            name: format!("prompts of {prompt}"),
            points: measured
                .iter()
                .filter(|row| row.prompt == prompt)
                .map(|row| (row.batch as f64, &row.decode))
                .collect(),
        })
        .collect();
    let mut out = String::new();
    let (width, height) = (2.0 * (WIDTH + LEFT) + 40.0, HEIGHT + TOP + 80.0);
    let title = format!(
        "{}, {}, head {}{}",
        report.machine.cpu,
        report.machine.isa,
        report.model.head,
        if report.quotable { "" } else { ": throttled, do not quote" }
    );
    let _ = write!(
        out,
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' \
         font-family='sans-serif' font-size='12'>\
         <rect width='100%' height='100%' fill='white'/><text x='{LEFT}' y='24' font-size='15'>{}</text>",
        escaped(&title)
    );
    panel(&mut out, 0.0, "threads", &threads);
    panel(&mut out, WIDTH + LEFT + 20.0, "sequences at once", &batches);
    out.push_str("</svg>\n");
    out
}

/// One set of axes. x grows by doublings, y from zero.
fn panel(out: &mut String, offset: f64, x_name: &str, series: &[Series<'_>]) {
    let points = || series.iter().flat_map(|series| &series.points);
    let x_max = points().map(|point| point.0).fold(2.0, f64::max).log2();
    let y_max = nice(points().map(|point| point.1.tok_s.max.max(point.1.ceiling.tok_s)).fold(1.0, f64::max));
    let x = |value: f64| offset + LEFT + value.log2() / x_max * (WIDTH - 20.0) + 10.0;
    let y = |value: f64| TOP + HEIGHT * (1.0 - value / y_max);
    for step in 0..=4 {
        let value = y_max * f64::from(step) / 4.0;
        let (left, right, at) = (offset + LEFT, offset + LEFT + WIDTH, y(value));
        let _ = write!(
            out,
            "<line x1='{left}' x2='{right}' y1='{at:.1}' y2='{at:.1}' stroke='#ddd'/>\
             <text x='{:.1}' y='{:.1}' text-anchor='end'>{value:.0}</text>",
            left - 6.0,
            at + 4.0
        );
    }
    let mut ticks: Vec<f64> = points().map(|point| point.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for tick in ticks {
        let _ = write!(
            out,
            "<text x='{:.1}' y='{:.1}' text-anchor='middle'>{tick}</text>",
            x(tick),
            TOP + HEIGHT + 18.0
        );
    }
    let (middle, below) = (offset + LEFT + WIDTH / 2.0, TOP + HEIGHT + 36.0);
    let _ = write!(
        out,
        "<text x='{middle}' y='{below}' text-anchor='middle'>{x_name}; tokens a second, dashed: \
         ceiling</text>"
    );
    for (n, (series, colour)) in series.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let path = |rate: fn(&Figure) -> f64| {
            let points =
                series.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(rate(point.1))));
            points.collect::<Vec<_>>().join(" ")
        };
        let _ = write!(
            out,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>\
             <polyline points='{}' fill='none' stroke='{colour}' stroke-dasharray='4 4'/>",
            path(|figure| figure.tok_s.median),
            path(|figure| figure.ceiling.tok_s)
        );
        for (at, figure) in &series.points {
            let _ = write!(
                out,
                "<circle cx='{:.1}' cy='{:.1}' r='3.5' fill='{colour}'/><line x1='{:.1}' x2='{:.1}' \
                 y1='{:.1}' y2='{:.1}' stroke='{colour}'/>",
                x(*at),
                y(figure.tok_s.median),
                x(*at),
                x(*at),
                y(figure.tok_s.min),
                y(figure.tok_s.max)
            );
        }
        let left = offset + LEFT + 12.0 + 130.0 * n as f64;
        let _ = write!(
            out,
            "<text x='{left}' y='{}' fill='{colour}'>{}</text>",
            TOP - 12.0,
            escaped(&series.name)
        );
    }
}

/// The next of 1, 2, 4, 5 or 10 times a power of ten.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|&step| step >= value)
        .unwrap_or(value)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!([1.0, 33.0, 360.0, 41.0, 99.0].map(nice), [1.0, 40.0, 400.0, 50.0, 100.0]);
    }

    #[test]
    fn a_name_cannot_break_the_picture() {
        assert_eq!(escaped("<a & b>"), "&lt;a &amp; b&gt;");
    }
}
