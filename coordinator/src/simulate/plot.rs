//! A plot of runs as SVG: what each policy cost beside the bound, and dollars over time. Two panels, no library.

use std::fmt::Write as _;

use super::Run;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 380.0;
const COLOURS: [&str; 5] = ["#1f6fb4", "#d9702b", "#3a9a4b", "#b03a48", "#7a5fa8"];

/// Draws the runs of one fleet.
pub fn plot_svg(title: &str, runs: &[Run]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"24\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    bars(&mut svg, runs);
    courses(&mut svg, runs);
    svg.push_str("</svg>\n");
    svg
}

fn bars(svg: &mut String, runs: &[Run]) {
    let (left, top, width, height) = (130.0, 60.0, 280.0, 260.0);
    let most = runs
        .iter()
        .map(|run| run.report.cost_usd_micro.max(run.report.bound_usd_micro))
        .max()
        .unwrap_or(1)
        .max(1) as f64;
    let step = height / runs.len().max(1) as f64;
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">cost; the line is the lower bound</text>", top - 12.0);
    for (place, run) in runs.iter().enumerate() {
        let y = top + place as f64 * step;
        let length = run.report.cost_usd_micro as f64 / most * width;
        let middle = y + step / 2.0 + 4.0;
        let late = match run.report.missed_deadlines {
            0 => String::new(),
            missed => format!(", {missed} late"),
        };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{left}\" y=\"{}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{middle}\" fill=\"white\" text-anchor=\"end\">${:.3}{late}</text>",
            left - 8.0,
            run.report.policy,
            y + 4.0,
            step - 8.0,
            COLOURS[place % COLOURS.len()],
            left + length - 6.0,
            run.report.cost_usd_micro as f64 / 1e6,
        );
    }
    if let Some(run) = runs.first() {
        let x = left + run.report.bound_usd_micro as f64 / most * width;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{}\" stroke=\"black\" stroke-dasharray=\"5 3\"/>",
            top + height
        );
    }
}

fn courses(svg: &mut String, runs: &[Run]) {
    let (left, top, width, height) = (500.0, 60.0, 420.0, 260.0);
    let points = || runs.iter().flat_map(|run| &run.timeline);
    let last_s = points().map(|point| point.at_s).fold(1.0, f64::max);
    let most = points().map(|point| point.cost_usd_micro).fold(1.0, f64::max);
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"{}\">dollars billed over hours</text>\
         <rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#999\"/>",
        top - 12.0
    );
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let (x, y) = (left + share * width, top + (1.0 - share) * height);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{:.1}</text>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.2}</text>",
            top + height + 18.0,
            share * last_s / 3600.0,
            left - 6.0,
            y + 4.0,
            share * most / 1e6,
        );
    }
    for (place, run) in runs.iter().enumerate() {
        let mut line = String::new();
        for point in &run.timeline {
            let x = left + point.at_s / last_s * width;
            let y = top + (1.0 - point.cost_usd_micro / most) * height;
            let _ = write!(line, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            line.trim_end(),
            COLOURS[place % COLOURS.len()]
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
