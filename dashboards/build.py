#!/usr/bin/env python3
"""Builds the Grafana dashboards beside this file from the tables below, and a page for each that says which question
each panel answers. Run it after a change: a test compares its output with what is committed.

    python3 dashboards/build.py          writes *.json and *.md
    python3 dashboards/build.py --check  exits with 1 when a file differs

Two coordinators, a leader and a standby, count the same answers: so what the fleet has done is the largest of what
they say, never the sum.
"""

import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
PICTURES = "../docs/dashboards"
PODS = 'pod=~"$pod",class=~"$class"'
BATCH = 'name=~"$batch"'
# When a panel has something to show; a test on a real fleet holds it to that.
ALWAYS, DURING, ENDED = "always", "during a batch", "after a batch"


def rate(name, by="", where=""):
    """Growth a second of a counter, by some of its labels."""
    series = f"{name}{{{where}}}" if where else name
    return f"max{f' by ({by}) ' if by else ''}(rate({series}[$__rate_interval]))"


def grown(name, by=""):
    """Growth of a counter over the whole range that is shown."""
    return f"max{f' by ({by}) ' if by else ''}(increase({name}[$__range]))"


def by_pod(name, extra="", how="sum"):
    return f"{how} by (pod) ({name}{{{PODS}{extra}}})"


def share(name, use):
    """A use's part of all, by pod."""
    return " / ".join(by_pod(name, f',use="{which}"') for which in (use, "all"))


def pod_rate(name):
    return f"sum by (pod) (rate({name}{{{PODS}}}[$__rate_interval]))"


def quantiles(name):
    """p50, p95 and p99 of a histogram."""
    return [
        (f"histogram_quantile({q}, sum by (le) (rate({name}_bucket[$__rate_interval])))", title)
        for q, title in [(0.5, "p50"), (0.95, "p95"), (0.99, "p99")]
    ]


def panel(title, question, unit, queries, kind="timeseries", width=12, data=ALWAYS, thresholds=None, decimals=None,
          stacked=False, logarithmic=False, words=None, named=False):
    """One panel; `queries` is one PromQL expression or a list of (PromQL, legend). `words` says in words what a number
    means, as {number: (word, color)}. `named` shows the names of the series in place of their values."""
    if isinstance(queries, str):
        queries = [(queries, "")]
    return dict(title=title, question=question, unit=unit, queries=queries, kind=kind, width=width, data=data,
                thresholds=thresholds, decimals=decimals, stacked=stacked, logarithmic=logarithmic, words=words, named=named)


def stat(title, question, unit, query, width=4, **more):
    return panel(title, question, unit, query, "stat", width, **more)


# Series that are good or bad have the same color in every panel: by the values of a label, or by the whole legend.
LABEL_COLORS = {
    "outcome": {"good": "green", "error": "red"},
    "state": {"live": "green", "ready": "green", "working": "green", "quiet": "yellow", "idle": "yellow", "lost": "red"},
    "use": {"busy": "green", "idle": "yellow", "over_budget": "red"},
    "reason": {"duplicate": "yellow", "repeated": "orange", "reprefilled": "yellow"},
}
LEGEND_COLORS = {
    "bound": "green", "done": "green", "within p95": "green", "right": "green",
    "moved": "yellow", "released": "yellow", "answered twice": "yellow", "not busy": "yellow",
    "failed": "red", "failed attempts": "red", "worker faults": "red", "assignments not stored": "red", "workers lost": "red",
    "hosts put in quarantine": "red", "last healthy host suspect": "red", "forged": "red", "undecodable": "red",
    "NATS did not reply": "red", "refused": "red", "above p95": "red", "slow now": "red",
}


def alerts():
    """First on every dashboard: the rules of rules/alerts.yml that fire now. Without one it says so, in green."""
    firing = 'sum by (alertname) (ALERTS{alertstate="firing",alertname=~"Ternfleet.+"})'
    none = 'label_replace(vector(0), "alertname", "none", "", "")'
    return panel("Firing alerts", "What needs a person now? Each alert has a section in docs/runbook.md.", "short",
                 [(f"{firing} or on () {none}", "{{alertname}}")], "stat", 24, decimals=0,
                 thresholds=[("green", None), ("red", 1)], named=True)


def none_is_good(title, question, query, width=4):
    return stat(title, question, "short", query, width, decimals=0, thresholds=[("green", None), ("red", 1)])


SPENT = f"sum({rate('ternfleet_cost_usd_total', 'use')})"
BUSY = rate("ternfleet_cost_usd_total", where='use="busy"')
# Of a fleet that hardly works the quotient says nothing.
PAID = f"{SPENT} / (sum({rate('ternfleet_tokens_total', 'phase')}) > 1) * 1e6"
AT_WORK = "max(ternfleet_fleet_usd_per_million_tokens)"
BOUND = "max(ternfleet_fleet_usd_per_million_tokens_bound)"

FLEET = dict(
    uid="ternfleet-fleet", title="Ternfleet / Fleet and money", variables=("job", "pod", "class"),
    about="Cost per 1M tokens now and its lower bound, the pods that cost too much, and idle pods.",
    panels=[
        alerts(),
        stat("Cost per 1M tokens", "What do 1M tokens cost now, idle pods included?", "currencyUSD", PAID,
             data=DURING, decimals=3),
        stat("Bound per 1M tokens", "What would 1M tokens cost on the cheapest pod only (the lower bound)?", "currencyUSD", BOUND, decimals=3),
        stat("Busy cost per 1M tokens", "What would 1M tokens cost if all pods were always busy?", "currencyUSD", AT_WORK, decimals=3),
        stat("Fleet speed", "What is the measured speed of the whole fleet?", "count:tok/s", "max(ternfleet_fleet_rate_tok_s)"),
        stat("Fleet price", "What do all pods cost per hour?", "currencyUSD", "max(ternfleet_fleet_price_usd_per_hour)", decimals=2),
        stat("Live workers", "How many workers are live?", "short", 'max(ternfleet_workers{state="live"})', decimals=0,
             thresholds=[("red", None), ("green", 1)]),
        panel("Cost per 1M tokens over time", "How far is the current cost from the lower bound?", "currencyUSD",
              [(PAID, "paid"), (BOUND, "bound"), (AT_WORK, "all pods busy")], data=DURING, decimals=3, logarithmic=True),
        panel("Tokens answered a second", "How much work is done, and of which kind?", "count:tok/s",
              [(rate("ternfleet_tokens_total", "phase"), "{{phase}}")], stacked=True),
        panel("Cost per 1M tokens, by pod", "Which pods are cheap per token, and which are expensive?", "currencyUSD",
              [(by_pod("ternfleet_pod_usd_per_million_tokens", how="max"), "{{pod}}"), (AT_WORK, "fleet")], decimals=3),
        panel("Measured speed, by pod", "Which pods are fast, and did one slow down?", "count:tok/s",
              [(by_pod("ternfleet_pod_rate_tok_s"), "{{pod}}")]),
        panel("Tokens computed, by class", "Which class of pod does the work?", "count:tok/s",
              [(rate("ternfleet_class_tokens_total", "class, phase"), "{{class}}: {{phase}}")], stacked=True),
        panel("Spending by use", "How much of the cost is work, and how much is boot, drain and idle time?", "currencyUSD",
              [(f"{rate('ternfleet_cost_usd_total', 'use')} * 3600", "{{use}} an hour")], decimals=3, stacked=True),
        panel("Idle share", "Which part of the cost is idle time?", "percentunit",
              [(f"1 - {BUSY} / {SPENT}", "not busy")],
              width=8, thresholds=[("green", None), ("yellow", 0.3), ("red", 0.7)]),
        panel("Router's regret", "How much more does placed work cost than on the cheapest worker?", "currencyUSD",
              [(f"{rate('ternfleet_router_regret_usd_total')} * 3600", "an hour")], width=8, decimals=3),
        panel("Workers by class and state", "Which pods work, which only start or end?", "short",
              [('sum by (class, state) (ternfleet_pod_workers{class=~"$class"})', "{{class}}: {{state}}")], width=8, decimals=0),
        panel("Plan and bound", "What will all accepted batches cost, and what is the least that any plan could cost?", "currencyUSD",
              [("max(ternfleet_plan_usd)", "plan"), ("max(ternfleet_plan_bound_usd)", "bound")], width=8, decimals=3),
        panel("Plan's regret", "By how much does the cost of the plan exceed the bound?", "percentunit",
              [("max(ternfleet_plan_regret_ratio)", "regret")], width=8),
        panel("Billing drift", "Does the provider's bill match the fleet's own?", "percentunit",
              [("max(ternfleet_billing_drift_ratio)", "provider / own - 1")], width=8,
              thresholds=[("green", None), ("red", 0.05)]),
        panel("Rented pods", "How many pods are ordered, booting, working and ending?", "short",
              [("max by (state) (ternfleet_scale_pods)", "{{state}}"), ('max(ternfleet_scale_pods_limit{limit="max"})', "at most")], width=8, decimals=0),
        panel("Spent on rented pods", "How much of the daily limit is spent?", "currencyUSD",
              [("max by (since) (ternfleet_scale_spent_usd)", "since {{since}}")], width=8, decimals=2),
        panel("Scaler actions and provider errors", "What does the scaler do, and which requests does the provider reject?", "short",
              [(grown("ternfleet_scale_acts_total", "act"), "{{act}}"), (f"sum({grown('ternfleet_provider_faults_total', 'fault')})", "refused")],
              width=8, decimals=0),
        panel("Cost so far, by pod", "What has each pod cost?", "currencyUSD",
              [(f"sum by (pod, class) (ternfleet_pod_cost_usd{{{PODS}}})", "{{pod}} ({{class}})")], "bargauge", decimals=4),
        panel("Price, by pod", "What does each pod cost per hour?", "currencyUSD",
              [(f"max by (pod, class) (ternfleet_pod_price_usd_per_hour{{{PODS}}})", "{{pod}} ({{class}})")], "bargauge", decimals=2),
    ],
)

BATCHES = dict(
    uid="ternfleet-batches", title="Ternfleet / Batches and deadlines", variables=("job", "batch"),
    about="Whether each batch meets its deadline and budget, and what its jobs wait for.",
    panels=[
        alerts(),
        stat("Live batches", "How many batches have not ended?", "short", "max(ternfleet_batches_active)", decimals=0),
        stat("Jobs waiting", "How many jobs have no worker yet?", "short", "sum(max by (lane) (ternfleet_queue_jobs))", decimals=0),
        stat("Tokens waiting", "How many tokens is that?", "short", "sum(max by (lane) (ternfleet_queue_tokens))"),
        stat("Oldest wait", "How long has the oldest of them been waiting?", "s", "max(ternfleet_queue_oldest_age_seconds)"),
        stat("Jobs with a worker", "How much work is in queues and slots?", "short", 'max(ternfleet_jobs{state="in_flight"})', decimals=0),
        stat("Answers a second", "How fast do jobs end?", "cps", f"sum({rate('ternfleet_jobs_committed_total', 'outcome')})", decimals=2),
        panel("Slack to the deadline", "Will the batch meet its deadline? Below zero it will not.", "s",
              [(f"max by (name) (ternfleet_batch_deadline_slack_seconds{{{BATCH}}})", "{{name}}")], data=DURING,
              thresholds=[("red", None), ("yellow", 0), ("green", 600)]),
        panel("Budget left", "Is the budget sufficient?", "currencyUSD",
              [(f"min by (name) (ternfleet_batch_budget_left_usd{{{BATCH}}})", "{{name}}")], data=DURING, decimals=4,
              thresholds=[("red", None), ("green", 0.01)]),
        panel("Progress", "How far is each batch?", "percentunit",
              [(f'1 - sum by (name) (ternfleet_batch_jobs{{{BATCH},state="open"}}) / sum by (name) (ternfleet_batch_jobs{{{BATCH}}})', "{{name}}")],
              data=DURING),
        panel("Speed by batch", "Which batches use the fleet?", "count:tok/s", [(f"max by (name) (ternfleet_batch_rate_tok_s{{{BATCH}}})", "{{name}}")],
              data=DURING, stacked=True),
        panel("Cost by batch", "What has each batch cost?", "currencyUSD", [(f"max by (name) (ternfleet_batch_cost_usd{{{BATCH}}})", "{{name}}")],
              data=DURING, decimals=4),
        panel("Bill over quote", "Do batches cost what they were quoted? 1 is the quoted bill (p50).", "short",
              [(f"histogram_quantile({q}, sum by (le) (increase(ternfleet_quote_error_ratio_bucket[$__range])))", title)
               for q, title in ((0.5, "p50"), (0.95, "p95"))], data=ENDED, decimals=2),
        panel("Bills within their quotes", "How many bills were above the quoted p95? One in twenty is expected.", "short",
              [(f'sum(increase(ternfleet_quotes_checked_total{{bill="{bill}"}}[$__range]))', legend)
               for bill, legend in (("within_p95", "within p95"), ("above_p95", "above p95"))], decimals=0),
        panel("Queue by lane", "How long is the queue, and does it shrink?", "short",
              [("max by (lane) (ternfleet_queue_jobs)", "{{lane}}")], decimals=0),
        panel("Answers by outcome", "Do lines fail more often than usual?", "cps",
              [(rate("ternfleet_jobs_committed_total", "outcome"), "{{outcome}}")], stacked=True),
        panel("Error answers by reason", "Why do lines fail?", "short", [(grown("ternfleet_answers_failed_total", "code"), "{{code}}")], "bargauge",
              decimals=0),
        panel("Attempts", "How many attempts does an answer take?", "short",
              [("sum(rate(ternfleet_job_attempts_sum[$__rate_interval])) / sum(rate(ternfleet_job_attempts_count[$__rate_interval]))", "mean")],
              width=8, data=DURING, decimals=2),
        panel("Wait for a slot", "How long do pulled jobs wait to be admitted?", "s", quantiles("ternfleet_job_queue_wait_seconds"), width=8, data=DURING),
        panel("Time to first token", "How long until a job's first token?", "s", quantiles("ternfleet_job_time_to_first_token_seconds"), width=8, data=DURING),
        panel("Time between tokens", "How long between two tokens of one job?", "s", quantiles("ternfleet_job_time_between_tokens_seconds"), data=DURING),
        panel("Job duration", "How long does one job take on a worker?", "s", quantiles("ternfleet_job_duration_seconds"), data=DURING),
    ],
)

ENGINE = dict(
    uid="ternfleet-engine", title="Ternfleet / Engine and pods", variables=("job", "pod", "class"),
    about="What each engine does with its threads, slots and memory, and what slows it.",
    panels=[
        alerts(),
        panel("Generated tokens a second", "How fast does each pod decode?", "count:tok/s",
              [(pod_rate("ternfleet_pod_decode_tokens_total"), "{{pod}}")]),
        panel("Prompt tokens a second", "How much prefill does each pod do?", "count:tok/s",
              [(pod_rate("ternfleet_pod_prefill_tokens_total"), "{{pod}}")]),
        panel("Batch size", "How many sequences share one forward step?", "short",
              [(f"{pod_rate('ternfleet_pod_step_sequences_total')} / {pod_rate('ternfleet_pod_steps_total')}", "{{pod}}")], width=8, data=DURING, decimals=1),
        panel("Slots in use", "Are the engines' batches full?", "percentunit",
              [(share("ternfleet_pod_slots", "busy"), "{{pod}}")], width=8),
        panel("KV pages free", "Does KV cache memory limit the batch size?", "percentunit",
              [(share("ternfleet_pod_kv_pages", "free"), "{{pod}}")], width=8,
              thresholds=[("red", None), ("green", 0.1)]),
        panel("Step time", "How long does one forward step take?", "s",
              [(f"{pod_rate('ternfleet_pod_busy_seconds_total')} / {pod_rate('ternfleet_pod_steps_total')}", "{{pod}}")], width=8, data=DURING),
        panel("Slow workers", "Is a worker much slower than before? The usual reason is other load on its host.", "short",
              [("max(ternfleet_workers_slow)", "slow now"), (grown("ternfleet_worker_slowdowns_total"), "slowdowns")], width=8, decimals=0),
        panel("Busy", "How much of the time does a pod's engine compute?", "percentunit",
              [(pod_rate("ternfleet_pod_busy_seconds_total"), "{{pod}}")], width=8),
        panel("Queue by pod", "How many jobs are queued at each pod?", "short", [(by_pod("ternfleet_pod_queued_jobs"), "{{pod}}")], width=8, decimals=0),
        panel("Prefix-cache hits", "How often does a prompt begin with cached pages?", "cps",
              [(pod_rate("ternfleet_pod_prefix_cache_hits_total"), "{{pod}}")], width=8),
        panel("Head fall-backs", "How often must the output head run in full, and how often is it screened?", "cps",
              [(f"sum(rate(ternfleet_pod_{name}_total{{{PODS}}}[$__rate_interval]))", legend)
               for name, legend in (("head_fallbacks", "in full"), ("head_screened", "screened"))], width=8),
        panel("Guessed tokens", "How many tokens are drafted at the end of a batch, and how many are accepted?", "count:tok/s",
              [(f"sum(rate(ternfleet_pod_{name}_total{{{PODS}}}[$__rate_interval]))", legend)
               for name, legend in (("guessed_tokens", "guessed"), ("right_guesses", "right"))], width=8),
        panel("Throttled", "Does the kernel throttle a pod because of its CPU quota?", "percentunit",
              [(pod_rate("ternfleet_pod_throttled_seconds_total"), "{{pod}}")], width=8, thresholds=[("green", None), ("red", 0.05)]),
        panel("Checkpoint age", "How much work would be repeated if a pod died now?", "s",
              [(by_pod("ternfleet_pod_checkpoint_age_seconds", how="max"), "{{pod}}")], width=8, thresholds=[("green", None), ("red", 10)]),
        panel("Jobs ended", "How do jobs leave a pod?", "cps",
              [(f"sum(rate(ternfleet_pod_jobs_{how}_total{{{PODS}}}[$__rate_interval]))", how) for how in ("done", "failed", "released")], width=8),
        panel("Threads and instruction sets", "What does each pod run on?", "short",
              [(f"sum by (pod, isa) (ternfleet_pod_threads{{{PODS}}})", "{{pod}}: {{isa}}")], "bargauge", 8, decimals=0),
    ],
)

RELIABILITY = dict(
    uid="ternfleet-reliability", title="Ternfleet / NATS and reliability", variables=("job",),
    about="Whether all guarantees hold (no lost or duplicate answers, little repeated work), and the state of NATS.",
    panels=[
        alerts(),
        none_is_good("Broken invariants", "Has the code detected a broken invariant?", f"sum({grown('ternfleet_invariant_violations_total', 'id')})"),
        none_is_good("Divergent answers", "Did two runs of one job differ?", grown("ternfleet_answers_divergent_total")),
        none_is_good("Dead letters", "How many jobs became dead letters?", grown("ternfleet_jobs_dead_total")),
        none_is_good("Hosts in quarantine", "Do hosts fail repeatedly?", "max(ternfleet_hosts_quarantined)"),
        stat("NATS", "Is every coordinator connected?", "short", "min(ternfleet_nats_connected)", decimals=0,
             thresholds=[("red", None), ("green", 1)], words={0: ("disconnected", "red"), 1: ("connected", "green")}),
        stat("Durability", "Where is a batch stored before it is accepted?", "short", "min(ternfleet_durability_level)", decimals=0,
             thresholds=[("red", None), ("yellow", 1), ("green", 2)],
             words={0: ("memory", "red"), 1: ("stored", "yellow"), 2: ("replicated", "green"), 3: ("synced to disk", "green")}),
        panel("Jobs moved and repeated", "How many jobs moved to other workers, and how many tokens were repeated?", "cps",
              [(rate("ternfleet_jobs_moved_total"), "moved"), (rate("ternfleet_answers_duplicate_total"), "answered twice"),
               (rate("ternfleet_attempts_failed_total"), "failed attempts"), (rate("ternfleet_worker_faults_total"), "worker faults"),
               (rate("ternfleet_handovers_failed_total"), "assignments not stored")]),
        panel("Wasted tokens", "How much work is wasted, and why?", "count:tok/s",
              [(rate("ternfleet_tokens_wasted_total", "reason"), "{{reason}}")], stacked=True),
        panel("Workers by state", "Who is live, quiet or lost?", "short", [("max by (state) (ternfleet_workers)", "{{state}}")], width=8, decimals=0),
        panel("Machines lost or suspect", "Do machines fail?", "short",
              [(grown("ternfleet_workers_lost_total"), "workers lost"), (grown("ternfleet_hosts_quarantined_total"), "hosts put in quarantine"),
               (grown("ternfleet_last_host_suspect_total"), "last healthy host suspect")], width=8, decimals=0),
        panel("Checkpoints a second", "Are checkpoints stored?", "cps", [("sum(rate(ternfleet_pod_checkpoints_total[$__rate_interval]))", "stored")], width=8),
        panel("NATS round trip", "How fast does JetStream answer?", "s", quantiles("ternfleet_nats_round_trip_seconds"), width=8),
        panel("Messages in streams", "Does a stream grow without bound?", "short", [("max by (stream) (ternfleet_nats_stream_messages)", "{{stream}}")], width=8),
        panel("Bytes in streams", "How much disk do they take?", "bytes", [("max by (stream) (ternfleet_nats_stream_bytes)", "{{stream}}")], width=8),
        panel("Answers read", "Does the ledger keep up with the stream?", "cps",
              [("max(deriv(ternfleet_results_read_to[$__rate_interval]))", "read"), (f"sum({rate('ternfleet_jobs_committed_total', 'outcome')})", "committed")], width=8),
        panel("Fenced and rejected", "Were workers fenced, or messages invalid?", "cps",
              [("sum(rate(ternfleet_pod_fenced_total[$__rate_interval]))", "fenced"), (rate("ternfleet_messages_undecodable_total"), "undecodable"),
               (rate("ternfleet_answers_forged_total"), "forged"), (rate("ternfleet_nats_questions_failed_total"), "NATS did not reply")], width=8),
        panel("Leader", "Which coordinator leads?", "short", [("max by (instance) (ternfleet_leader)", "{{instance}}")], "bargauge", 4,
              decimals=0, words={0: ("standby", "blue"), 1: ("leader", "green")}),
        panel("Versions", "Which versions run?", "short", [("count by (version) (ternfleet_build_info)", "{{version}}")], "bargauge", 4, decimals=0),
    ],
)

ALL = {"fleet": FLEET, "batches": BATCHES, "engine": ENGINE, "reliability": RELIABILITY}
SOURCES = {
    "job": "label_values(ternfleet_leader, job)",
    "pod": 'label_values(ternfleet_pod_rate_tok_s{job=~"$job"}, pod)',
    "class": 'label_values(ternfleet_pod_rate_tok_s{job=~"$job"}, class)',
    "batch": 'label_values(ternfleet_batch_rate_tok_s{job=~"$job"}, name)',
}
LABELS = {"job": "Job", "pod": "Pod", "class": "Class", "batch": "Batch"}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def of_job(expr):
    """Every series of the chosen job alone: one Prometheus may watch several fleets."""
    expr = re.sub(r"(ternfleet_\w+)\{", r'\1{job=~"$job",', expr)
    return re.sub(r"(ternfleet_\w+)(?![\w{])", r'\1{job=~"$job"}', expr)


HEIGHTS = {"stat": 4, "bargauge": 6, "timeseries": 8}


def grafana_panel(number, spec, place):
    steps = [{"color": color, "value": value} for color, value in spec["thresholds"] or [("green", None)]]
    defaults = {"unit": spec["unit"], "thresholds": {"mode": "absolute", "steps": steps}}
    if spec["decimals"] is not None:
        defaults["decimals"] = spec["decimals"]
    if spec["words"]:
        defaults["mappings"] = [{"type": "value", "options": {
            str(number): {"text": word, "color": color, "index": place}
            for place, (number, (word, color)) in enumerate(sorted(spec["words"].items()))
        }}]
    if spec["kind"] == "timeseries":
        defaults["custom"] = {"lineWidth": 2, "fillOpacity": 10, "showPoints": "never"}
        if spec["stacked"]:
            defaults["custom"].update(fillOpacity=40, stacking={"mode": "normal", "group": "A"})
        if spec["thresholds"]:
            defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
        if spec["logarithmic"]:
            defaults["custom"]["scaleDistribution"] = {"type": "log", "log": 10}
        if spec["unit"] == "percentunit":
            defaults.update(min=0, max=1)
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        if spec["kind"] == "bargauge":
            options.update(displayMode="basic", orientation="horizontal")
        else:
            options["colorMode"] = "value" if spec["thresholds"] else "none"
            if spec["named"]:
                options.update(colorMode="background", textMode="name", justifyMode="center")
    targets = [
        {"refId": chr(65 + i), "expr": of_job(expr), "legendFormat": legend or "__auto", "datasource": DATASOURCE,
         **({"instant": True} if spec["kind"] != "timeseries" else {"range": True})}
        for i, (expr, legend) in enumerate(spec["queries"])
    ]
    return {
        "id": number, "type": spec["kind"], "title": spec["title"], "description": spec["question"],
        "datasource": DATASOURCE, "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": colors_by_name(spec)}, "options": options, "targets": targets,
    }


def colors_by_name(spec):
    """Good is green and errors are red, whatever order the series come in."""
    if spec["kind"] != "timeseries":
        return []

    def override(matcher, options, color):
        fixed = {"id": "color", "value": {"mode": "fixed", "fixedColor": color}}
        return {"matcher": {"id": matcher, "options": options}, "properties": [fixed]}

    overrides = []
    for legend in dict.fromkeys(legend for _, legend in spec["queries"]):
        if legend in LEGEND_COLORS:
            overrides.append(override("byName", legend, LEGEND_COLORS[legend]))
        for label in re.findall(r"{{(\w+)}}", legend):
            for value, color in LABEL_COLORS.get(label, {}).items():
                pattern = legend.replace("{{%s}}" % label, value)
                overrides.append(override("byRegexp", f"/^{re.sub(r'{{.+?}}', '.+', pattern)}$/", color))
    return overrides


def rows(panels):
    """Panels side by side until 24 columns are full."""
    row, width = [], 0
    for one in panels:
        if width + one["width"] > 24:
            yield row
            row, width = [], 0
        row.append(one)
        width += one["width"]
    yield row


def dashboard(spec):
    panels, y = [], 0
    for row in rows(spec["panels"]):
        x, height = 0, max(HEIGHTS[one["kind"]] for one in row)
        for one in row:
            panels.append(grafana_panel(len(panels) + 1, one, dict(x=x, y=y, w=one["width"], h=height)))
            x += one["width"]
        y += height
    variables = [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}]
    for name in spec["variables"]:
        variables.append({
            "name": name, "label": LABELS[name], "type": "query", "datasource": DATASOURCE, "query": SOURCES[name],
            "refresh": 2, "multi": True, "includeAll": True, "allValue": ".+", "sort": 1,
            "current": {"text": "All", "value": "$__all"},
        })
    links = [
        {"title": other["title"].split(" / ")[1], "type": "link", "url": f"/d/{other['uid']}", "keepTime": True,
         "includeVars": True, "asDropdown": False, "targetBlank": False, "tags": [], "icon": "dashboard", "tooltip": other["about"]}
        for other in ALL.values() if other is not spec
    ]
    return {
        "uid": spec["uid"], "title": spec["title"], "description": spec["about"], "tags": ["ternfleet"], "editable": False,
        "schemaVersion": 41, "version": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
        "templating": {"list": variables}, "links": links, "panels": panels, "annotations": {"list": []},
    }


def page(name, spec):
    title = spec["title"].split(" / ")[1]
    lines = [
        f"# {title}", "", spec["about"], "",
        f"[![{title}, drawn from a real run]({PICTURES}/{name}.svg)]({PICTURES}/{name}.svg)", "",
        "Every query selects the chosen job. *Has data* states when a panel has data. A test on a real fleet "
        "with a real Prometheus checks this.", "", "| panel | question | has data | query |", "|---|---|---|---|",
    ]
    for one in spec["panels"]:
        queries = "<br>".join(f"`{expr}`".replace("|", "\\|") for expr, _ in one["queries"])
        lines.append(f"| {one['title']} | {one['question']} | {one['data']} | {queries} |")
    return "\n".join(lines) + "\n"


def files():
    for name, spec in ALL.items():
        yield HERE / f"{name}.json", json.dumps(dashboard(spec), indent=1) + "\n"
        yield HERE / f"{name}.md", page(name, spec)


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
