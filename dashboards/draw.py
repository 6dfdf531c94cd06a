#!/usr/bin/env python3
"""Draws the dashboards beside this file as pictures, with data from a running Prometheus: for the documentation, and
for those who have no Grafana at hand. Needs nothing but Python.

    python3 dashboards/draw.py --prometheus http://127.0.0.1:9090 --minutes 5 --out DIR

`make pictures` runs a fleet and draws docs/dashboards/ from it. Panels, queries, units and legends are read from the
JSON that Grafana reads; how they look is an approximation of Grafana's.
"""

import argparse
import json
import math
import pathlib
import re
import time
import urllib.parse
import urllib.request
from xml.sax.saxutils import escape

HERE = pathlib.Path(__file__).parent
DASHBOARDS = ["fleet", "batches", "engine", "reliability"]
COLUMN, ROW, GAP, MARGIN, HEADER = 52, 27, 8, 16, 64
COLORS = ["#3b7dd8", "#e07b39", "#3f9d5d", "#b8479c", "#c9a227", "#5ab4c5", "#d1495b", "#7a68c9", "#8a8f98", "#6b8e23"]
NAMED = {"green": "#3f9d5d", "yellow": "#c9a227", "red": "#d1495b", "orange": "#e07b39", "blue": "#3b7dd8"}
INK, FAINT, LINE, PAPER, CARD = "#24292f", "#6e7781", "#e3e7eb", "#f4f5f7", "#ffffff"
POINTS = 120


# Data


class Prometheus:
    def __init__(self, address, start, end):
        self.address, self.start, self.end = address.rstrip("/"), start, end
        self.step = max(2.0, (end - start) / POINTS)

    def ask(self, path, **parameters):
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]["result"]

    def prepared(self, expr):
        # Grafana takes four scrapes, and never less than a step.
        expr = expr.replace("$__rate_interval", f"{max(15, round(2 * self.step))}s")
        expr = expr.replace("$__range", f"{round(self.end - self.start)}s")
        return re.sub(r"\$(job|pod|class|batch)\b", ".+", expr)

    def over_time(self, expr):
        """Labels and points (seconds since the start, value or None) of each series."""
        found = self.ask("query_range", query=self.prepared(expr), start=self.start, end=self.end, step=self.step)
        for series in found:
            points, last = [], None
            for at, value in series["values"]:
                at, value = float(at) - self.start, float(value)
                if last is not None and at - last > 1.5 * self.step:
                    points.append((last, None))
                points.append((at, None if math.isnan(value) or math.isinf(value) else value))
                last = at
            yield series["metric"], points

    def now(self, expr):
        for series in self.ask("query", query=self.prepared(expr), time=self.end):
            yield series["metric"], float(series["value"][1])


def legend(template, labels):
    if template == "__auto":
        return ", ".join(value for key, value in sorted(labels.items()) if key != "__name__")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found.group(1), "?"), template)


# Numbers as people read them


def plain(value, decimals=None):
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def scaled(value, base, steps, decimals=None):
    for power, name in reversed(list(enumerate(steps))):
        if abs(value) >= base**power or power == 0:
            small = value / base**power
            return plain(small, decimals if power == 0 else None), name
    raise ValueError(value)


def decades(low, high):
    """Ticks of a logarithmic axis, from below the lowest to above the highest value."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def written(value, unit, decimals=None):
    if value is None or math.isnan(value):
        return "no data"
    if unit == "currencyUSD":
        return f"${plain(value, 2 if decimals is None else decimals)}"
    if unit == "percentunit":
        return f"{plain(100 * value)} %"
    if unit == "bytes":
        return " ".join(scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]))
    if unit == "bool_on_off":
        return "on" if value else "off"
    if unit == "s":
        size = abs(value)
        if size < 1e-3:
            return f"{plain(value * 1e6)} µs" if value else "0 s"
        if size < 1:
            return f"{plain(value * 1e3)} ms"
        if size < 120:
            return f"{plain(value)} s"
        return f"{plain(value / 60)} min" if size < 7200 else f"{plain(value / 3600)} h"
    number, name = scaled(value, 1000, ["", "K", "M", "G"], decimals)
    suffix = {"cps": " /s", "short": ""}.get(unit, " " + unit.removeprefix("count:"))
    return f"{number}{name}{suffix}"


def nice_ticks(low, high, unit, wanted=4):
    """Round numbers of the unit that people read: minutes, hours, powers of 1,024."""
    largest, scale = max(abs(low), abs(high)), 1
    if unit == "s" and largest >= 120:
        scale = 3600 if largest >= 7200 else 60
    if unit == "bytes":
        scale = 1024 ** int(math.log(max(largest, 1), 1024))
    low, high = low / scale, high / scale
    span = (high - low) or abs(high) or 1.0
    raw = span / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [tick * step * scale for tick in range(first, max(last, first + 1) + 1)]


# Drawing


def text(x, y, content, size=11, color=INK, anchor="start", weight="400"):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">{escape(content)}</text>'


def cut(content, width, size=11):
    fits = max(4, int(width / (size * 0.56)))
    return content if len(content) <= fits else content[: fits - 1] + "…"


def color_of(value, steps):
    color = "green"
    for step in steps:
        if step["value"] is None or (value is not None and value >= step["value"]):
            color = step["color"]
    return NAMED.get(color, color)


class Card:
    """One panel's place on the page."""

    def __init__(self, panel):
        place, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
        self.panel, self.unit, self.decimals = panel, defaults["unit"], defaults.get("decimals")
        self.defaults, self.steps = defaults, defaults["thresholds"]["steps"]
        self.x = MARGIN + place["x"] * COLUMN + GAP / 2
        self.y = HEADER + place["y"] * ROW + GAP / 2
        self.w, self.h = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP

    def mapping(self, value):
        """What the panel says in place of a number, and its color."""
        options = [m["options"] for m in self.defaults.get("mappings", [])]
        key = None if value is None else f"{value:g}"
        return next((found[key] for found in options if key in found), None)

    def say(self, value):
        mapped = self.mapping(value)
        return mapped["text"] if mapped else written(value, self.unit, self.decimals)

    def color(self, number, name):
        """Of a series: its own, if the panel sets one."""
        for override in self.panel["fieldConfig"]["overrides"]:
            matcher = override["matcher"]
            pattern = matcher["options"].strip("/") if matcher["id"] == "byRegexp" else f"^{re.escape(matcher['options'])}$"
            if re.match(pattern, name):
                chosen = override["properties"][0]["value"]["fixedColor"]
                return NAMED.get(chosen, chosen)
        return COLORS[number % len(COLORS)]

    def frame(self):
        return [
            f'<g><title>{escape(self.panel["description"])}</title>',
            f'<rect x="{self.x:.1f}" y="{self.y:.1f}" width="{self.w:.1f}" height="{self.h:.1f}" rx="4" fill="{CARD}" stroke="{LINE}"/>',
            text(self.x + 10, self.y + 19, cut(self.panel["title"], self.w - 16, 12), 12, INK, weight="600"),
        ]

    def draw(self, source):
        kind = {"stat": self.stat, "bargauge": self.bars, "timeseries": self.lines}[self.panel["type"]]
        return self.frame() + kind(source) + ["</g>"]

    def names(self, source):
        """The series by their names, each on the color of its value."""
        target = self.panel["targets"][0]
        found = [(legend(target["legendFormat"], labels), value) for labels, value in source.now(target["expr"])][:6]
        width = (self.w - 16) / max(1, len(found))
        out = []
        for n, (name, value) in enumerate(sorted(found)):
            x = self.x + 8 + n * width
            out.append(f'<rect x="{x + 2:.1f}" y="{self.y + 30:.1f}" width="{width - 4:.1f}" height="{self.h - 38:.1f}" rx="3" fill="{color_of(value, self.steps)}"/>')
            out.append(text(x + width / 2, self.y + self.h / 2 + 16, cut(name, width - 8, 15), 15, CARD, "middle", "600"))
        return out or [self.nothing()]

    def stat(self, source):
        if self.panel["options"].get("textMode") == "name":
            return self.names(source)
        expr = self.panel["targets"][0]["expr"]
        value = next((value for _, value in source.now(expr) if math.isfinite(value)), None)
        points = next((points for _, points in source.over_time(expr)), [])
        if value is None:
            # What Grafana calls "last not null".
            value = next((v for _, v in reversed(points) if v is not None), None)
        color = color_of(value, self.steps) if self.panel["options"].get("colorMode") == "value" else INK
        if self.mapping(value):
            color = NAMED.get(self.mapping(value)["color"], INK)
        out = []
        known = [value for _, value in points if value is not None]
        if len(known) > 1 and max(known) > min(known):
            low, high = min(known), max(known)
            span = points[-1][0] - points[0][0] or 1
            at = lambda t, v: (self.x + 8 + (t - points[0][0]) / span * (self.w - 16), self.y + self.h - 6 - (v - low) / (high - low) * 22)
            out.append(path([(t, v) for t, v in points], at, "#b9c6d8", 1.2))
        out.append(text(self.x + self.w / 2, self.y + 52, self.say(value), 22, color, "middle", "600"))
        return out

    def bars(self, source):
        rows = [(legend(t["legendFormat"], labels), value) for t in self.panel["targets"] for labels, value in source.now(t["expr"])]
        rows = [row for row in rows if math.isfinite(row[1])][:10]
        largest = max((value for _, value in rows), default=0) or 1
        height = min(26, (self.h - 40) / max(1, len(rows)))
        label = min(170, self.w * 0.42)
        out = []
        for n, (name, value) in enumerate(rows):
            y = self.y + 32 + n * height
            room = self.w - label - 90
            out.append(text(self.x + label, y + height / 2 + 4, cut(name, label - 12), 11, FAINT, "end"))
            out.append(f'<rect x="{self.x + label + 8:.1f}" y="{y + 3:.1f}" width="{room:.1f}" height="{height - 6:.1f}" rx="2" fill="{PAPER}"/>')
            out.append(f'<rect x="{self.x + label + 8:.1f}" y="{y + 3:.1f}" width="{max(1.5, room * value / largest):.1f}" height="{height - 6:.1f}" rx="2" fill="{COLORS[0]}"/>')
            out.append(text(self.x + label + room + 14, y + height / 2 + 4, self.say(value), 11, INK, weight="600"))
        return out or [self.nothing()]

    def nothing(self):
        return text(self.x + self.w / 2, self.y + self.h / 2 + 8, "no data", 12, FAINT, "middle")

    def lines(self, source):
        series = []
        for target in self.panel["targets"]:
            found = [(legend(target["legendFormat"], labels), points) for labels, points in source.over_time(target["expr"])]
            series += sorted(found, key=lambda one: one[0])
        if not any(value is not None for _, points in series for _, value in points):
            return [self.nothing()]
        stacked = "stacking" in self.defaults.get("custom", {})
        shown = stack(series) if stacked else [(name, points, None) for name, points in series]
        values = [value for _, points, _ in shown for _, value in points if value is not None]
        lines = [step for step in self.steps if step["value"] is not None and "thresholdsStyle" in self.defaults.get("custom", {})]
        low, high = min(0.0, *values), max(values)
        # A line that marks a limit belongs into the picture if it is near.
        high = max([high] + [step["value"] for step in lines if step["value"] <= 2 * high])
        if self.unit == "percentunit":
            # Rates are sometimes slightly above 100 %.
            low, high = min(low, 0.0), 1.0 if high < 1.2 else high
        logarithmic = "scaleDistribution" in self.defaults.get("custom", {})
        if logarithmic:
            ticks = decades(min(value for value in values if value > 0), high)
        else:
            ticks = nice_ticks(low, high if high > low else low + 1, self.unit)
        if self.unit == "short" and self.decimals == 0:
            ticks = sorted({math.floor(t) for t in ticks} | {math.ceil(ticks[-1])})
        low, high = ticks[0], ticks[-1]
        left, right, top = self.x + 62, self.x + self.w - 12, self.y + 32
        rows = self.legend_rows(shown)
        bottom = self.y + self.h - 26 - 14 * len(rows)
        span = source.end - source.start
        scale = (lambda v: math.log10(max(v, low) / low) / math.log10(high / low)) if logarithmic else lambda v: (v - low) / (high - low)
        at = lambda t, v: (left + t / span * (right - left), bottom - scale(min(v, high)) * (bottom - top))
        out = []
        step_size = ticks[1] - ticks[0]
        digits = max(0, math.ceil(-math.log10(step_size) - 1e-9)) if self.unit == "currencyUSD" else None
        if digits is not None and not math.isclose(step_size, round(step_size, digits), rel_tol=1e-6):
            digits += 1
        for tick in ticks:
            y = at(0, tick)[1]
            out.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{LINE}"/>')
            out.append(text(left - 6, y + 3.5, written(tick, self.unit, digits), 10, FAINT, "end"))
        minutes = span / 60
        every = max(1, math.ceil(minutes / max(2, (right - left) / 70)))
        for m in range(0, int(minutes) + 1, every):
            anchor = "start" if m == 0 else "end" if m + 0.4 > minutes else "middle"
            out.append(text(at(m * 60, low)[0], bottom + 13, f"{m} min", 10, FAINT, anchor))
        for step in lines:
            if low <= step["value"] <= high:
                y = at(0, step["value"])[1]
                out.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{NAMED.get(step["color"], step["color"])}" stroke-dasharray="4 3"/>')
        for n, (name, points, base) in enumerate(shown):
            color = self.color(n, name)
            if base is not None:
                if [v for _, v in base] == [v for _, v in points if v is not None]:
                    continue  # Nothing of it: its line would hide the one below.
                out.append(area(points, base, at, color))
            out.append(path(points, at, color, 1.6))
        for n, row in enumerate(rows):
            x, y = left, bottom + 29 + 14 * n
            for number, entry in row:
                out.append(f'<rect x="{x:.1f}" y="{y - 7:.1f}" width="10" height="3" rx="1" fill="{self.color(number, shown[number][0])}"/>')
                out.append(text(x + 14, y - 2, entry, 10, FAINT))
                x += 30 + 5.6 * len(entry)
        return out

    def legend_rows(self, shown):
        """Names with their last values, in as many lines as they need, three at most."""
        rows, width = [[]], 0
        for number, (name, points, base) in enumerate(shown):
            last = next(((t, v) for t, v in reversed(points) if v is not None), None)
            value = None if last is None else last[1] - (dict(base).get(last[0]) or 0 if base else 0)
            entry = f"{name or 'value'}: {self.say(value)}"
            more = 30 + 5.6 * len(entry)
            if width + more > self.w - 74 and rows[-1]:
                rows.append([])
                width = 0
            rows[-1].append((number, entry))
            width += more
        return rows[:3]


def stack(series):
    """Each series on top of those before it: name, upper line, lower line."""
    floor, stacked = {}, []
    for name, points in series:
        base = [(t, floor.get(t, 0.0)) for t, v in points if v is not None]
        upper = [(t, None if v is None else v + floor.get(t, 0.0)) for t, v in points]
        floor.update({t: v for t, v in upper if v is not None})
        stacked.append((name, upper, base))
    return stacked


def path(points, at, color, width):
    parts, pen = [], "M"
    for t, v in points:
        if v is None:
            pen = "M"
            continue
        x, y = at(t, v)
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    # A lone point shows as a dot, thanks to the round ends.
    joined = re.sub(r"(M[^ML]+)(?=M|$)", r"\1h0", "".join(parts))
    return f'<path d="{joined}" fill="none" stroke="{color}" stroke-width="{width}" stroke-linecap="round" stroke-linejoin="round"/>'


def area(points, base, at, color):
    upper = [at(t, v) for t, v in points if v is not None]
    lower = [at(t, v) for t, v in base]
    outline = "L".join(f"{x:.1f} {y:.1f}" for x, y in upper + lower[::-1])
    return f'<path d="M{outline}Z" fill="{color}" fill-opacity="0.28"/>'


def picture(dashboard, source):
    cards = [Card(panel) for panel in dashboard["panels"]]
    width = 2 * MARGIN + 24 * COLUMN
    height = max(card.y + card.h for card in cards) + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif">',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        text(MARGIN + 4, 30, dashboard["title"], 18, INK, weight="600"),
        text(MARGIN + 4, 50, dashboard["description"], 12, FAINT),
    ]
    for card in cards:
        out += card.draw(source)
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    options = argparse.ArgumentParser(description="Draws the dashboards with data from a Prometheus.")
    options.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    options.add_argument("--minutes", type=float, default=15, help="how far back")
    options.add_argument("--out", type=pathlib.Path, default=HERE.parent / "docs/dashboards", metavar="DIR")
    chosen = options.parse_args()
    end = time.time()
    source = Prometheus(chosen.prometheus, end - 60 * chosen.minutes, end)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        file = chosen.out / f"{name}.svg"
        file.write_text(picture(json.loads((HERE / f"{name}.json").read_text()), source))
        print(file)


if __name__ == "__main__":
    main()
