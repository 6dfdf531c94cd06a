//! Tables for people: pods with what they cost, batches in a list.

use std::collections::BTreeSet;

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{
    BatchView, ClassView, PodList, PodView, ScaleDials, ScalePodState, ScaleView, StallCode,
};
use ternfleet_proto::table::ApiVerb;

use crate::client::{Fleet, Patience};
use crate::progress::{reason_of, state_or_stall};
use crate::{date, span};

/// Characters of an id that a list shows at least.
const ID_SHOWN_MIN: usize = "batch_".len() + 8;

/// What the coordinator knows of the pods, in the order of their names: all pages, or those behind `known`.
pub(crate) async fn pods(fleet: &Fleet, known: Vec<PodView>) -> anyhow::Result<Vec<PodView>> {
    let mut pods = known;
    loop {
        let after = pods.last().map(|pod| pod.heartbeat.worker.clone());
        let ask = PodList { after: after.clone() };
        let page: Vec<PodView> = fleet.ask(ApiVerb::Pods, &ask, Patience::Short).await?;
        let known = pods.len();
        // A coordinator of an earlier version answers with all of them each time.
        pods.extend(page.into_iter().filter(|pod| Some(&pod.heartbeat.worker) > after.as_ref()));
        if pods.len() == known {
            break;
        }
    }
    sort_by_name(&mut pods);
    Ok(pods)
}

pub(crate) fn sort_by_name(pods: &mut [PodView]) {
    pods.sort_by(|a, b| {
        (&a.heartbeat.pod, &a.heartbeat.worker).cmp(&(&b.heartbeat.pod, &b.heartbeat.worker))
    });
}

/// What the fleet rents; none where it rents nothing, or does not say.
pub(crate) async fn scale(fleet: &Fleet) -> Option<ScaleView> {
    fleet.ask_once(ApiVerb::ScaleShow, &ScaleDials::default()).await.ok()
}

/// In place of a table without rows. A fleet that rents its pods on demand is well without any.
pub(crate) fn no_pods(scale: Option<&ScaleView>) -> String {
    let Some(scale) = scale else { return "no pods: start one with `ternfleet worker`".to_owned() };
    let starting = scale
        .pods
        .iter()
        .filter(|pod| matches!(pod.state, ScalePodState::Ordered | ScalePodState::Booting))
        .count();
    match (scale.pods_max, starting) {
        (0, _) => "0 pods, and the limit is 0: raise it with `ternfleet scale set --max N`".to_owned(),
        (max, 0) => format!("0 pods, rented on demand (at most {max})"),
        (max, starting) => format!("0 pods ready, {starting} starting (at most {max})"),
    }
}

/// Why batches of a table wait, one line each, with what to do about it.
pub(crate) fn waits(batches: &[BatchView]) -> Option<String> {
    let length = id_length(batches);
    let waits = batches.iter().filter_map(|batch| {
        let stall = batch.stall.as_ref().filter(|stall| stall.code != StallCode::Validating)?;
        let id: String = batch.id.as_str().chars().take(length).collect();
        Some(format!("{id} waits: {}", reason_of(stall)))
    });
    let lines: Vec<String> = waits.collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// A pod is quiet while its heartbeats are late; one that stays quiet is lost, and no longer among these.
pub(crate) fn pod_state(pod: &PodView) -> String {
    if pod.live { format!("{:?}", pod.heartbeat.state).to_lowercase() } else { "quiet".to_owned() }
}

/// One row a pod.
pub(crate) fn pod_table(pods: &[PodView]) -> String {
    let head = ["pod", "class", "state", "threads", "isa", "tokens", "tok/s", "price/h", "$ per 1M tokens"];
    let rows = pods.iter().map(|pod| {
        let said = &pod.heartbeat;
        vec![
            said.pod.clone(),
            said.pod_class.clone(),
            pod_state(pod),
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

/// One row a class, for fleets of which not every pod is shown.
pub(crate) fn class_table(classes: &[ClassView]) -> String {
    let head = ["class", "live", "quiet", "slots in use", "queued", "tok/s", "price/h", "cost"];
    let rows = classes.iter().map(|class| {
        vec![
            class.class.clone(),
            class.workers_live.to_string(),
            class.workers_quiet.to_string(),
            format!("{}/{}", class.slots_in_use, class.slots),
            class.queued_jobs.to_string(),
            format!("{:.1}", class.rate_tok_s),
            class.usd_micro_per_hour.to_string(),
            class.cost_usd_micro.to_string(),
        ]
    });
    table(&head, rows.collect())
}

/// One row a batch, with as much of each id as tells the listed ones apart; commands take that for the id.
pub(crate) fn batch_table(batches: &[BatchView], now: TimeMs) -> String {
    let head = ["batch", "name", "state", "jobs", "failed", "tokens", "cost", "created (UTC)", "elapsed"];
    let shown = id_length(batches);
    let rows = batches.iter().map(|batch| {
        vec![
            batch.id.as_str().chars().take(shown).collect(),
            batch.name.clone().unwrap_or_default(),
            state_or_stall(batch),
            format!("{}/{}", batch.completed + batch.failed, batch.total),
            batch.failed.to_string(),
            batch.completion_tokens.to_string(),
            batch.cost_usd_micro.to_string(),
            date::utc(batch.created_at),
            span::short(elapsed(batch, now)),
        ]
    });
    table(&head, rows.collect())
}

/// From its acceptance to its end, or up to now.
pub(crate) fn elapsed(batch: &BatchView, now: TimeMs) -> std::time::Duration {
    batch.ended_at.unwrap_or(now).since(batch.created_at)
}

/// So many characters tell all of these ids apart.
fn id_length(batches: &[BatchView]) -> usize {
    let longest = batches.iter().map(|batch| batch.id.as_str().len()).max().unwrap_or(0);
    let differ = |length: &usize| {
        let mut seen = BTreeSet::new();
        batches.iter().all(|batch| seen.insert(batch.id.as_str().chars().take(*length).collect::<String>()))
    };
    (ID_SHOWN_MIN..longest).find(differ).unwrap_or(longest)
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
