// Nodes. Everything that comes from elsewhere becomes a text node or an attribute; no text is ever parsed as HTML.

import { kind, words } from "./format.js";

/** `h("p.hint", { id: "x", onclick: f }, "text", node, null)`. */
export function h(what, ...rest) {
  const [name, ...classes] = what.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  return fill(made, rest);
}

export function svg(name, ...rest) { return fill(document.createElementNS("http://www.w3.org/2000/svg", name), rest); }

function fill(made, rest) {
  const [first] = rest;
  const has = first && typeof first === "object" && !(first instanceof Node) && !Array.isArray(first);
  if (has) for (const [key, value] of Object.entries(first)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...(has ? rest.slice(1) : rest).flat().filter(child => child != null && child !== false));
  return made;
}

/** Sets a text only if it is another one, so that what is selected stays selected. */
export function say(node, text) { if (node.textContent !== text) node.textContent = text; }

/** Puts nodes in place of others only if `mark` has changed. */
export function show(node, mark, make) {
  const text = JSON.stringify(mark);
  if (node.dataset.mark === text) return;
  node.dataset.mark = text;
  node.replaceChildren(...[make()].flat().filter(child => child != null && child !== false));
}

/** `label` says more than the text to those who hear it. */
export function button(text, act, cls = "quiet small", label = null) {
  return h("button." + cls.split(" ").join("."), { type: "button", "aria-label": label, onclick: act }, text);
}

/** A named field: `field("Prompt", h("textarea", { id: "prompt" }), "a hint")`. */
export function field(name, control, hint) {
  const note = hint ? h("small.hint", { id: control.id + "-hint" }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div.field", h("label", { for: control.id }, name), control, note);
}

/** A state in its colour. */
export const badge = state => h("span.state" + (kind(state) && "." + kind(state)), words(state));

/** Shares of a whole, one after the other: [share, class]. */
export function bar(label, parts) {
  const whole = Math.min(1, parts.reduce((sum, [share]) => sum + share, 0));
  const made = h("div.bar", { role: "progressbar", "aria-label": label, "aria-valuenow": Math.floor(100 * whole) });
  for (const [share, cls] of parts) {
    const part = h("i" + (cls ? "." + cls : ""));
    part.style.width = 100 * Math.min(1, Math.max(0, share)) + "%";
    made.append(part);
  }
  return made;
}

/** Text in which `…` marks what is typed. */
export function prose(what, text) { return h(what, text.split("`").map((part, i) => i % 2 ? h("code", part) : part)); }

/** A table whose rows are kept by key: what is unchanged keeps its nodes, and so focus and selection.
 *  Columns: { label, cls, mark(item), make(item) }; without `make` the mark is the text. */
export function table(label, columns) {
  const body = h("tbody", { role: "rowgroup" });
  const heads = columns.map(column => h("th", { role: "columnheader", class: column.cls, scope: "col" }, column.label));
  const made = h("div.scroll", h("table", { role: "table", "aria-label": label },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)), body));
  made.update = (items, key) => {
    const old = new Map([...body.children].map(row => [row.dataset.key, row]));
    items.forEach((item, at) => {
      const name = key(item);
      let row = old.get(name);
      old.delete(name);
      if (!row) {
        row = h("tr", { role: "row" }, columns.map(column => h("td", { role: "cell", class: column.cls, "data-label": column.label })));
        row.dataset.key = name;
      }
      columns.forEach((column, i) => {
        const mark = column.mark(item);
        show(row.children[i], mark ?? "–", () => column.make ? column.make(item) : String(mark ?? "–"));
      });
      if (body.children[at] !== row) body.insertBefore(row, body.children[at] ?? null);
    });
    for (const row of old.values()) row.remove();
    made.hidden = items.length === 0;
  };
  return made;
}

/** A section with a heading; `note` stands at the right of it. */
export function card(title, ...content) {
  const note = h("span.hint");
  const made = h("section.card", { "aria-label": title }, h("div.head", h("h2", title), note), content);
  made.note = note;
  return made;
}

/** Buttons of which one is chosen. `options`: [value, label]. */
export function choice(label, options, chosen, act) {
  const made = h("div.choice", { role: "group", "aria-label": label });
  const choose = value => { for (const one of made.children) one.setAttribute("aria-pressed", String(one.dataset.value === value)); };
  for (const [value, name] of options) {
    const one = h("button", { type: "button", "data-value": value, onclick: () => { choose(value); act(value); } }, name);
    made.append(one);
  }
  choose(chosen);
  return made;
}
