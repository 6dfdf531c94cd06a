//! `ternfleet scale`: what is rented, what would be, and the settings.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};

use ternfleet_proto::message::{ScaleDials, ScaleView};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{TimeMs, UsdMicro};

use crate::client::{Fleet, Patience};
use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::report::{printable, table};
use crate::{span, stop};

#[derive(Debug, Args)]
pub(crate) struct Scale {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the rented pods, the limits and the money spent
    Show(Show),
    /// Change the limits; they survive restarts
    Set(Set),
    /// Show what the scaler would do next, and why; changes nothing
    Plan(Set),
}

#[derive(Debug, Args)]
struct Show {
    /// Print one JSON object; money is in micro-dollars, times are in milliseconds since 1970
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
struct Set {
    /// Minimum number of pods, kept even without work
    #[arg(long, value_name = "N")]
    min: Option<u32>,
    /// Maximum number of pods; 0 returns all pods
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// Use only these of the configured classes; `all` means all of them
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    class: Vec<String>,
    /// Maximum cost of all rented pods per hour, in dollars; `none` removes the limit
    #[arg(long, value_name = "USD", value_parser = limit)]
    usd_per_hour: Option<UsdMicro>,
    /// Maximum cost per UTC day, in dollars; `none` removes the limit
    #[arg(long, value_name = "USD", value_parser = limit)]
    usd_per_day: Option<UsdMicro>,
    /// Return a pod after this time without work: 90s, 5m
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    idle: Option<Duration>,
    /// Show what would be done with these settings; changes nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object; money is in micro-dollars, times are in milliseconds since 1970
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Dollars, or `none`; on the wire 0 lifts a limit, so 0 is not taken for one.
fn limit(text: &str) -> Result<UsdMicro, String> {
    if text == "none" {
        return Ok(UsdMicro::ZERO);
    }
    match text.trim_start_matches('$').parse::<f64>() {
        Ok(usd) if usd.is_finite() && usd >= 0.000_001 => Ok(UsdMicro::from_dollars(usd)),
        _ => Err(format!(
            "{text:?} is not an amount: use dollars above 0, or none; to rent nothing use \
                          --max 0"
        )),
    }
}

impl Scale {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let (verb, dials, json, connection) = match self.what {
            What::Show(show) => (ApiVerb::ScaleShow, ScaleDials::default(), show.json, show.connection),
            What::Set(set) if !set.dry_run => {
                let dials = set.dials();
                if dials == ScaleDials::default() {
                    bail!(
                        "nothing to set: pass --min, --max, --class, --usd-per-hour, --usd-per-day or --idle"
                    );
                }
                (ApiVerb::ScaleSet, dials, set.json, set.connection)
            }
            What::Set(set) | What::Plan(set) => (ApiVerb::ScalePlan, set.dials(), set.json, set.connection),
        };
        let view: ScaleView = stop::block_on(async {
            let fleet = Fleet::connect(&connection).await?;
            fleet.ask(verb, &dials, Patience::Short).await
        })?;
        match (json, verb) {
            (true, _) => say_json(&view)?,
            (false, ApiVerb::ScalePlan) => say(&plan_page(&view, TimeMs::now()))?,
            (false, _) => say(&page(&view, TimeMs::now()))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Set {
    fn dials(&self) -> ScaleDials {
        let classes: Vec<String> = self.class.iter().filter(|name| *name != "all").cloned().collect();
        ScaleDials {
            pods_min: self.min,
            pods_max: self.max,
            classes: (!self.class.is_empty()).then_some(classes),
            usd_micro_per_hour_max: self.usd_per_hour,
            usd_micro_per_day_max: self.usd_per_day,
            idle_limit_ms: self.idle.map(|span| span.as_millis() as u64),
        }
    }
}

/// What is rented, for people.
fn page(view: &ScaleView, now: TimeMs) -> String {
    let sum = |limit: Option<UsdMicro>| limit.map_or("no limit".to_owned(), |usd| usd.to_string());
    let per_hour: UsdMicro = view.pods.iter().map(|pod| pod.price_usd_micro_per_hour).sum();
    let mut lines = vec![
        format!("provider  {}; pods are named {}-…", view.provider, view.fleet),
        format!("pods      {} of {} to {}", view.pods.len(), view.pods_min, view.pods_max),
        format!("per hour  {per_hour} ({})", sum(view.usd_micro_per_hour_max)),
        format!("today     {} ({})", view.spent_today_usd_micro, sum(view.usd_micro_per_day_max)),
        format!("total     {}", view.spent_usd_micro),
        format!("idle      returned after {} s", view.idle_limit_ms / 1000),
    ];
    if let Some(why) = &view.halted {
        lines.push(format!("halted    {why}"));
    }
    let head = ["class", "pods", "tok/s", "price/h", ""];
    let classes = view.classes.iter().map(|class| {
        let note = match &class.refused {
            _ if !class.enabled => "left out".to_owned(),
            Some(why) => format!("not ordered now: {why}"),
            None => String::new(),
        };
        let pods = format!("{}/{}", class.pods, class.pods_max);
        let rate = format!("{:.1}", class.rate_tok_s);
        vec![class.name.clone(), pods, rate, class.price_usd_micro_per_hour.to_string(), note]
    });
    lines.push(String::new());
    lines.push(table(&head, classes.collect()));
    for (class, failed) in view.classes.iter().filter_map(|class| Some((class, class.failed.as_ref()?))) {
        let ago = span::short(now.since(failed.at));
        lines.push(format!(
            "\nlast failure of {}: {} ({ago} ago): {}",
            class.name,
            failed.pod,
            printable(&failed.why)
        ));
        lines.extend(failed.log.iter().map(|line| format!("  {}", printable(line))));
    }
    if !view.pods.is_empty() {
        let head = ["pod", "class", "state", "place", "tok/s", "price/h", "billed", "since"];
        let pods = view.pods.iter().map(|pod| {
            vec![
                pod.name.clone(),
                pod.class.clone(),
                pod.state.as_str().to_owned(),
                pod.data_center.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{:.1}", pod.rate_tok_s),
                pod.price_usd_micro_per_hour.to_string(),
                pod.billed_usd_micro.to_string(),
                span::short(now.since(pod.since)),
            ]
        });
        lines.push(String::new());
        lines.push(table(&head, pods.collect()));
    }
    lines.join("\n")
}

/// What would be done, for people.
fn plan_page(view: &ScaleView, now: TimeMs) -> String {
    let mut lines = Vec::new();
    if let Some(why) = &view.halted {
        lines.push(format!("nothing is ordered: {why}"));
    }
    if view.acts.is_empty() {
        lines.push("nothing to do: the running pods match the plan".to_owned());
    }
    for act in &view.acts {
        let what = match act.what.as_str() {
            "give_back" => "return".to_owned(),
            other => other.replace('_', " "),
        };
        lines.push(format!("{what:<12} {} ({}): {}", act.pod, act.class, act.why));
    }
    for batch in &view.batches {
        let done = match batch.finish_p95_ms.since(now) {
            never if never.as_secs() > 10 * 365 * 86_400 => "never".to_owned(),
            span => format!("in {}", span::short(span)),
        };
        let verdict = match batch.binds {
            None => "kept".to_owned(),
            Some(limit) => format!("at risk: {}", limit.as_str()),
        };
        let (name, tokens, cost) = (&batch.batch, batch.tokens_left, batch.cost_usd_micro);
        lines.push(format!(
            "batch        {name}: {tokens:.0} tokens left, {cost}, done {done} (p95), {verdict}"
        ));
    }
    lines.push(format!(
        "plan         {} for the rest of the work; no plan can cost less than {}",
        view.plan_usd_micro, view.bound_usd_micro
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_dollars_or_none() {
        assert_eq!(limit("1.50"), Ok(UsdMicro(1_500_000)));
        assert_eq!(limit("none"), Ok(UsdMicro::ZERO));
        for wrong in ["0", "-1", "much", "inf"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }
}
