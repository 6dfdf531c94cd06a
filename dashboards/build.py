#!/usr/bin/env python3
"""Builds the Grafana dashboards beside this file from the tables below, and a page for each that says which question
each panel answers. Run it after a change: a test compares its output with what is committed.

    python3 dashboards/build.py          writes *.json and *.md
    python3 dashboards/build.py --check  exits with 1 when a file differs
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
PODS = 'pod=~"$pod",class=~"$class"'
QUANTILES = [(0.5, "half"), (0.95, "95 %"), (0.99, "99 %")]


def quantiles(name):
    """p50, p95 and p99 of a histogram over all jobs."""
    return [
        (f"histogram_quantile({q}, sum by (le) (rate({name}_bucket[$__rate_interval])))", title)
        for q, title in QUANTILES
    ]


def panel(title, question, unit, queries, kind="timeseries", width=8, thresholds=None, decimals=None):
    """One panel; `queries` is a list of (PromQL, legend)."""
    if isinstance(queries, str):
        queries = [(queries, "")]
    return dict(title=title, question=question, unit=unit, queries=queries, kind=kind, width=width,
                thresholds=thresholds, decimals=decimals)


FLEET = dict(
    uid="ternfleet-fleet", title="Ternfleet / Fleet and money", variables=("pod", "class"),
    about="What a million tokens costs now, who earns its price, and what stands idle.",
    panels=[
        panel("Price of a million tokens", "What does a million tokens cost us now?", "currencyUSD",
              "ternfleet_fleet_usd_per_million_tokens", "stat", 6, decimals=3),
        panel("Fleet speed", "How fast is the whole fleet, as measured?", "tok/s", "ternfleet_fleet_rate_tok_s", "stat", 6, decimals=1),
        panel("Fleet price", "What do we pay an hour?", "currencyUSD", "ternfleet_fleet_price_usd_per_hour", "stat", 6, decimals=2),
        panel("Live workers", "How many workers answer?", "short", 'ternfleet_workers{state="live"}', "stat", 6,
              thresholds=[("red", None), ("green", 1)]),
        panel("Tokens a second", "How much work gets done, and of which kind?", "tok/s",
              [("sum by (phase) (rate(ternfleet_tokens_total[$__rate_interval]))", "{{phase}}")], width=12),
        panel("Dollars a million, by pod", "Which pod earns its price, and which does not?", "currencyUSD",
              [(f"max by (pod) (ternfleet_pod_usd_per_million_tokens{{{PODS}}})", "{{pod}}"),
               ("ternfleet_fleet_usd_per_million_tokens", "fleet")], width=12, decimals=3),
        panel("Measured speed, by pod", "Which pods are fast, and did one slow down?", "tok/s",
              [(f"sum by (pod) (ternfleet_pod_rate_tok_s{{{PODS}}})", "{{pod}}")], width=12),
        panel("Spending by use", "Of each dollar, how much bought work and how much stood idle?", "currencyUSD",
              [('rate(ternfleet_cost_usd{use=~"busy|idle"}[$__rate_interval]) * 3600', "{{use}} an hour")], width=12, decimals=4),
        panel("Cost so far, by pod", "Where did the money go?", "currencyUSD",
              [(f"sum by (pod, class) (ternfleet_pod_cost_usd{{{PODS}}})", "{{pod}} ({{class}})")], "bargauge", 12, decimals=4),
        panel("Idle share", "Which part of what we pay buys nothing?", "percentunit",
              'sum(rate(ternfleet_cost_usd{use="idle"}[$__rate_interval])) / sum(rate(ternfleet_cost_usd{use="billed"}[$__rate_interval]))',
              "timeseries", 12),
    ],
)

BATCHES = dict(
    uid="ternfleet-batches", title="Ternfleet / Batches and deadlines", variables=("batch",),
    about="Whether each batch makes its deadline within its budget, and what its jobs wait for.",
    panels=[
        panel("Live batches", "How many batches have not ended?", "short", "ternfleet_batches_active", "stat", 6),
        panel("Jobs waiting", "How much work has no worker yet?", "short", 'ternfleet_jobs{state="waiting"}', "stat", 6),
        panel("Jobs with a worker", "How much work is in queues and slots?", "short", 'ternfleet_jobs{state="in_flight"}', "stat", 6),
        panel("Answers a second", "How fast do jobs end?", "short", "sum(rate(ternfleet_jobs_committed_total[$__rate_interval]))", "stat", 6, decimals=2),
        panel("Slack to the deadline", "Will the batch make its deadline? Below zero it will not.", "s",
              [('ternfleet_batch_deadline_slack_seconds{batch=~"$batch"}', "{{batch}}")], width=12,
              thresholds=[("red", None), ("yellow", 0), ("green", 600)]),
        panel("Budget left", "Will the money last?", "currencyUSD", [('ternfleet_batch_budget_left_usd{batch=~"$batch"}', "{{batch}}")],
              width=12, decimals=4, thresholds=[("red", None), ("green", 0.01)]),
        panel("Progress", "How far is each batch?", "percentunit",
              [('1 - sum by (batch) (ternfleet_batch_jobs{batch=~"$batch",state="open"}) / sum by (batch) (ternfleet_batch_jobs{batch=~"$batch"})', "{{batch}}")], width=12),
        panel("Speed by batch", "Who gets the fleet?", "tok/s", [('ternfleet_batch_rate_tok_s{batch=~"$batch"}', "{{batch}}")], width=12),
        panel("Answers by outcome", "Do lines fail more than they should?", "short",
              [("sum by (outcome) (rate(ternfleet_jobs_committed_total[$__rate_interval]))", "{{outcome}}")], width=12),
        panel("Cost by batch", "What has each batch cost?", "currencyUSD", [('ternfleet_batch_cost_usd{batch=~"$batch"}', "{{batch}}")], width=12, decimals=4),
        panel("Job duration", "How long does one job take on a worker?", "s", quantiles("ternfleet_job_duration_seconds")),
        panel("Time to first token", "How long until a job's first token?", "s", quantiles("ternfleet_job_time_to_first_token_seconds")),
        panel("Wait for a slot", "How long do pulled jobs wait to be admitted?", "s", quantiles("ternfleet_job_queue_wait_seconds")),
    ],
)

ENGINE = dict(
    uid="ternfleet-engine", title="Ternfleet / Engine and pods", variables=("pod", "class"),
    about="What each engine does with its threads, slots and memory, and what slows it.",
    panels=[
        panel("Generated tokens a second", "How fast does each pod decode?", "tok/s",
              [(f"sum by (pod) (rate(ternfleet_pod_decode_tokens_total{{{PODS}}}[$__rate_interval]))", "{{pod}}")], width=12),
        panel("Prompt tokens a second", "How much prefill does each pod do?", "tok/s",
              [(f"sum by (pod) (rate(ternfleet_pod_prefill_tokens_total{{{PODS}}}[$__rate_interval]))", "{{pod}}")], width=12),
        panel("Slots in use", "Are the engines' batches full?", "percentunit",
              [(f'sum by (pod) (ternfleet_pod_slots{{{PODS},use="busy"}}) / sum by (pod) (ternfleet_pod_slots{{{PODS},use="all"}})', "{{pod}}")]),
        panel("KV pages free", "Is memory for contexts what limits?", "percentunit",
              [(f'sum by (pod) (ternfleet_pod_kv_pages{{{PODS},use="free"}}) / sum by (pod) (ternfleet_pod_kv_pages{{{PODS},use="all"}})', "{{pod}}")]),
        panel("Queue by pod", "Who has work waiting at the door?", "short", [(f"sum by (pod) (ternfleet_pod_queued_jobs{{{PODS}}})", "{{pod}}")]),
        panel("Time between tokens", "How long between two tokens of one job?", "s", quantiles("ternfleet_job_time_between_tokens_seconds")),
        panel("Throttled", "Does the kernel hold a pod back for its CPU quota?", "percentunit",
              [(f"sum by (pod) (rate(ternfleet_pod_throttled_milliseconds_total{{{PODS}}}[$__rate_interval])) / 1000", "{{pod}}")],
              thresholds=[("green", None), ("red", 0.05)]),
        panel("Busy", "Which share of the time does a pod have work?", "percentunit",
              [(f"sum by (pod) (rate(ternfleet_pod_busy_milliseconds_total{{{PODS}}}[$__rate_interval])) / 1000", "{{pod}}")]),
        panel("Prefix-cache hits", "How often does a prompt begin with pages that are there already?", "short",
              [(f"sum by (pod) (rate(ternfleet_pod_prefix_cache_hits_total{{{PODS}}}[$__rate_interval]))", "{{pod}}")]),
        panel("Full heads", "How often must the screened output head run in full?", "short",
              [(f"sum by (pod) (rate(ternfleet_pod_head_fallbacks_total{{{PODS}}}[$__rate_interval]))", "{{pod}}")]),
        panel("Threads and instruction sets", "What does each pod run on?", "short",
              [(f"sum by (pod, isa) (ternfleet_pod_threads{{{PODS}}})", "{{pod}}: {{isa}}")], "bargauge", 8),
    ],
)

RELIABILITY = dict(
    uid="ternfleet-reliability", title="Ternfleet / NATS and reliability", variables=(),
    about="Whether every promise holds: nothing lost, nothing doubled, little repeated.",
    panels=[
        panel("Broken invariants", "Has the code caught itself breaking a rule?", "short", "sum(ternfleet_invariant_violations_total)", "stat", 6,
              thresholds=[("green", None), ("red", 1)]),
        panel("Divergent answers", "Did two runs of one job differ?", "short", "ternfleet_answers_divergent_total", "stat", 6,
              thresholds=[("green", None), ("red", 1)]),
        panel("Dead letters", "How many jobs were given up?", "short", "ternfleet_jobs_dead_total", "stat", 6,
              thresholds=[("green", None), ("red", 1)]),
        panel("NATS", "Is the bus there?", "short", "min(ternfleet_nats_connected)", "stat", 6, thresholds=[("red", None), ("green", 1)]),
        panel("Jobs moved and repeated", "How much unrest is there?", "short",
              [("rate(ternfleet_jobs_moved_total[$__rate_interval])", "moved"), ("rate(ternfleet_answers_duplicate_total[$__rate_interval])", "answered twice"),
               ("rate(ternfleet_attempts_failed_total[$__rate_interval])", "failed attempts"), ("rate(ternfleet_worker_faults_total[$__rate_interval])", "worker faults")], width=12),
        panel("Wasted tokens", "How much work is done for nothing, and why?", "tok/s",
              [("sum by (reason) (rate(ternfleet_tokens_wasted_total[$__rate_interval]))", "{{reason}}")], width=12),
        panel("Workers by state", "Who is live, quiet or lost?", "short", [("sum by (state) (ternfleet_workers)", "{{state}}")]),
        panel("Workers lost, hosts in quarantine", "Do machines fail?", "short",
              [("increase(ternfleet_workers_lost_total[$__range])", "lost"), ("ternfleet_hosts_quarantined", "in quarantine")]),
        panel("Checkpoints a second", "Is progress being saved?", "short", "sum(rate(ternfleet_pod_checkpoints_total[$__rate_interval]))"),
        panel("Answers read", "Does the ledger keep up with the stream?", "short", "rate(ternfleet_results_read_to[$__rate_interval])"),
        panel("Fenced and undecodable", "Did a fence have to act, did a message make no sense?", "short",
              [("sum(rate(ternfleet_pod_fenced_total[$__rate_interval]))", "fenced"), ("rate(ternfleet_messages_undecodable_total[$__rate_interval])", "undecodable"),
               ("rate(ternfleet_answers_forged_total[$__rate_interval])", "forged")]),
        panel("Leader", "Which coordinator leads?", "short", [("ternfleet_leader", "{{instance}}")]),
    ],
)

ALL = {"fleet": FLEET, "batches": BATCHES, "engine": ENGINE, "reliability": RELIABILITY}
SOURCES = {
    "pod": "label_values(ternfleet_pod_rate_tok_s, pod)",
    "class": "label_values(ternfleet_pod_rate_tok_s, class)",
    "batch": "label_values(ternfleet_batch_rate_tok_s, batch)",
}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def grafana_panel(number, spec, x, y):
    steps = [{"color": color, "value": value} for color, value in spec["thresholds"] or [("green", None)]]
    defaults = {"unit": spec["unit"], "thresholds": {"mode": "absolute", "steps": steps}}
    if spec["decimals"] is not None:
        defaults["decimals"] = spec["decimals"]
    if spec["kind"] == "timeseries":
        defaults["custom"] = {"lineWidth": 2, "fillOpacity": 10, "showPoints": "never"}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        if spec["kind"] == "bargauge":
            options.update(displayMode="basic", orientation="horizontal")
        else:
            options["colorMode"] = "value" if spec["thresholds"] else "none"
    targets = [
        {"refId": chr(65 + i), "expr": expr, "legendFormat": legend or "__auto", "datasource": DATASOURCE,
         **({"instant": True} if spec["kind"] != "timeseries" else {"range": True})}
        for i, (expr, legend) in enumerate(spec["queries"])
    ]
    return {
        "id": number, "type": spec["kind"], "title": spec["title"], "description": spec["question"],
        "datasource": DATASOURCE, "gridPos": {"x": x, "y": y, "w": spec["width"], "h": 4 if spec["kind"] == "stat" else 8},
        "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options, "targets": targets,
    }


def dashboard(spec):
    panels, x, y, row = [], 0, 0, 0
    for number, one in enumerate(spec["panels"], 1):
        height = 4 if one["kind"] == "stat" else 8
        if x + one["width"] > 24:
            x, y, row = 0, y + row, 0
        panels.append(grafana_panel(number, one, x, y))
        x, row = x + one["width"], max(row, height)
    variables = [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}]
    for name in spec["variables"]:
        variables.append({
            "name": name, "label": name.capitalize(), "type": "query", "datasource": DATASOURCE, "query": SOURCES[name],
            "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*", "sort": 1,
            "current": {"text": "All", "value": "$__all"},
        })
    links = [
        {"title": other["title"].split(" / ")[1], "type": "link", "url": f"/d/{other['uid']}", "keepTime": True, "includeVars": False}
        for other in ALL.values() if other is not spec
    ]
    return {
        "uid": spec["uid"], "title": spec["title"], "description": spec["about"], "tags": ["ternfleet"], "editable": False,
        "schemaVersion": 41, "version": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
        "templating": {"list": variables}, "links": links, "panels": panels, "annotations": {"list": []},
    }


def page(spec):
    lines = [f"# {spec['title'].split(' / ')[1]}", "", spec["about"], "", "| panel | question | query |", "|---|---|---|"]
    for one in spec["panels"]:
        queries = "<br>".join(f"`{expr}`".replace("|", "\\|") for expr, _ in one["queries"])
        lines.append(f"| {one['title']} | {one['question']} | {queries} |")
    return "\n".join(lines) + "\n"


def files():
    for name, spec in ALL.items():
        yield HERE / f"{name}.json", json.dumps(dashboard(spec), indent=1) + "\n"
        yield HERE / f"{name}.md", page(spec)


def main():
    stale = []
    for path, content in files():
        if not path.exists() or path.read_text() != content:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(content)
    if "--check" in sys.argv and stale:
        sys.exit(f"not as dashboards/build.py makes them: {', '.join(stale)}; run it and commit the result")


if __name__ == "__main__":
    main()
