// Charts of one value over time, drawn to any width.

import { h, say, svg } from "./dom.js";
import { clock, span } from "./format.js";

/** The next of 1, 1.2, 1.6, 2, 3 … times a power of ten, so that half of it reads well too. */
function round(most) {
  if (!(most > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(most));
  return unit * [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].find(step => step * unit >= most * .999999);
}

/** `value` reads a point, `show(n, short)` writes a figure. */
export function chart(label, value, show) {
  const box = svg("svg", { class: "chart", role: "img", tabindex: 0, "aria-label": label, preserveAspectRatio: "none", viewBox: "0 0 100 40" });
  const note = h("span.hint", "the first points come within seconds"), marks = [0, .5, 1].map(() => h("span")), from = h("span");
  const plot = h("div.plot", box, marks);
  const made = h("section.card", { "aria-label": label }, h("div.head", h("h2", label), note), plot, h("div.axis", from, h("span", "now")));
  let points = [];
  const y = (share) => 39.5 - 38.5 * share;
  made.update = next => {
    if (next.length < 2 || (points.length && points.at(-1).at === next.at(-1).at)) return;
    points = next;
    const values = points.map(value), most = Math.max(...values), top = round(most), begin = points[0].at, wide = Math.max(points.at(-1).at - begin, 1);
    const line = points.map((p, i) => (i ? "L" : "M") + (100 * (p.at - begin) / wide).toFixed(2) + " " + y(values[i] / top).toFixed(2)).join("");
    box.replaceChildren(...[0, .5, 1].map(share => svg("line", { class: "grid", x1: 0, x2: 100, y1: y(share), y2: y(share) })),
      svg("path", { class: "area", d: line + "L100 39.5L0 39.5Z" }), svg("path", { class: "line", d: line }));
    marks.forEach((mark, i) => { say(mark, show(top * i / 2, true)); mark.style.top = 100 * y(i / 2) / 40 + "%"; });
    say(from, span(wide) + " ago");
    say(note, "now " + show(values.at(-1)) + " · highest " + show(most));
    box.setAttribute("aria-label", label + ": now " + show(values.at(-1)) + ", highest " + show(most));
  };
  box.addEventListener("pointermove", event => {
    if (points.length < 2) return;
    const place = box.getBoundingClientRect(), share = (event.clientX - place.left) / place.width;
    const at = points[0].at + share * (points.at(-1).at - points[0].at);
    const near = points.reduce((a, b) => Math.abs(b.at - at) < Math.abs(a.at - at) ? b : a);
    say(note, clock(near.at) + " · " + show(value(near)));
    box.querySelector(".at")?.remove();
    box.append(svg("line", { class: "at", x1: 100 * share, x2: 100 * share, y1: 0, y2: 40 }));
  });
  box.addEventListener("pointerleave", () => box.querySelector(".at")?.remove());
  return made;
}

/** A line as high as a row of text. */
export function spark(label, values) {
  const top = Math.max(...values, 1e-9), last = Math.max(values.length - 1, 1);
  const line = values.map((v, i) => (i ? "L" : "M") + (100 * i / last).toFixed(1) + " " + (19 - 18 * v / top).toFixed(1)).join("");
  return svg("svg", { class: "spark", role: "img", "aria-label": label, viewBox: "0 0 100 20", preserveAspectRatio: "none" },
    values.length > 1 ? svg("path", { d: line }) : null);
}
