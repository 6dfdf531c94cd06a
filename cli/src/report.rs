//! Tables for people: pods with what they cost, batches in a list.

use ternfleet_proto::message::{BatchView, PodView};
use ternfleet_proto::table::ApiVerb;

use crate::client::{Fleet, Patience};
use crate::progress::state_name;

/// What the coordinator knows of the pods, in the order of their names.
pub(crate) async fn pods(fleet: &Fleet) -> anyhow::Result<Vec<PodView>> {
    let mut pods: Vec<PodView> = fleet.ask(ApiVerb::Pods, &(), Patience::Short).await?;
    pods.sort_by(|a, b| {
        (&a.heartbeat.pod, &a.heartbeat.worker).cmp(&(&b.heartbeat.pod, &b.heartbeat.worker))
    });
    Ok(pods)
}

/// One row a pod.
pub(crate) fn pod_table(pods: &[PodView]) -> String {
    let head = ["pod", "class", "state", "threads", "isa", "tokens", "tok/s", "price/h", "$ per 1M tokens"];
    let rows = pods.iter().map(|pod| {
        let said = &pod.heartbeat;
        let state = if pod.live { format!("{:?}", said.state).to_lowercase() } else { "lost".to_owned() };
        vec![
            said.pod.clone(),
            said.pod_class.clone(),
            state,
            said.threads.to_string(),
            said.isa.clone(),
            pod.tokens.to_string(),
            format!("{:.1}", pod.rate_tok_s),
            said.price_usd_micro_per_hour.to_string(),
            pod.usd_micro_per_million_tokens.map_or("-".to_owned(), |price| price.to_string()),
        ]
    });
    table(&head, rows.collect())
}

/// One row a batch.
pub(crate) fn batch_table(batches: &[BatchView]) -> String {
    let head = ["batch", "name", "state", "jobs", "failed", "tokens", "cost"];
    let rows = batches.iter().map(|batch| {
        vec![
            batch.id.to_string(),
            batch.name.clone().unwrap_or_default(),
            state_name(batch.state),
            format!("{}/{}", batch.completed + batch.failed, batch.total),
            batch.failed.to_string(),
            batch.completion_tokens.to_string(),
            batch.cost_usd_micro.to_string(),
        ]
    });
    table(&head, rows.collect())
}

/// Columns as wide as they need to be; the first is set left, numbers and the rest right. Control characters of
/// foreign texts are shown, not obeyed.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(head[column].chars().count())
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// A text that cannot steer a terminal; line breaks and tabs become spaces.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' | '\r' => ' ',
            c if c.is_control() => '\u{FFFD}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = table(
            &["pod", "tok/s"],
            vec![vec!["local-1".into(), "9.5".into()], vec!["b".into(), "120.0".into()]],
        );
        assert_eq!(text, "pod      tok/s\nlocal-1    9.5\nb        120.0");
    }

    #[test]
    fn a_hostile_name_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{FFFD}[2Jb c");
    }
}
