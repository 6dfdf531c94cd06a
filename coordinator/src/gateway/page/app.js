// Puts the views together: which one the address asks for, signing in and out, the theme, the state of the connection.

import { hasKey, useKey, whenRefused } from "./api.js";
import { say } from "./dom.js";
import { follow, listen, restart } from "./live.js";
import { signIn } from "./signin.js";
import { overviewView } from "./overview.js";
import { batchesView } from "./batches.js";
import { batchView } from "./batch.js";
import { podsView } from "./pods.js";
import { scalingView } from "./scaling.js";
import { tryView } from "./try.js";

const $ = id => document.getElementById(id);
const main = $("main");
const VIEWS = new Map(Object.entries({ "": overviewView, batches: batchesView, pods: podsView, scaling: scalingView, try: tryView }));
let leave = () => {}, began = false;

/** Addresses are typed and pasted, too: one that is no encoding means itself. */
function decoded(part) { try { return decodeURIComponent(part); } catch { return part; } }

/** A view gets the element to fill; it answers { title, update(overview), leave() }. */
function route() {
  const [name, what] = location.hash.replace(/^#\/?/, "").split("/");
  const known = VIEWS.has(name) ? name : "";
  leave();
  main.replaceChildren();
  const view = known === "batches" && what ? batchView(main, decoded(what)) : VIEWS.get(known)(main);
  const unlisten = view.update ? listen(view.update) : () => {};
  leave = () => { unlisten(); view.leave?.(); };
  document.title = view.title + " · Ternfleet";
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.getAttribute("href") === "#/" + known;
    if (own) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  // A new view begins at its top, also for those who hear it.
  if (began) { window.scrollTo(0, 0); main.focus({ preventScroll: true }); }
  began = true;
}

function askForKey(known) {
  leave();
  leave = () => {};
  document.title = "Sign in · Ternfleet";
  signIn(main, known, key => { useKey(key); begin(); });
}
function begin() { $("signout").hidden = !hasKey(); restart(); route(); }
whenRefused(known => { if (!main.querySelector(".signin")) { useKey(""); $("signout").hidden = true; askForKey(known); } });
$("signout").onclick = () => { useKey(""); begin(); };

const THEMES = ["system", "light", "dark"];
function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
  say($("theme"), "Theme: " + name);
  try { localStorage.setItem("theme", name); } catch { /* Private windows may refuse. */ }
}
theme(document.documentElement.dataset.theme || "system");
$("theme").onclick = () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "system") + 1) % 3]);
$("skip").onclick = event => { event.preventDefault(); main.focus(); };
say($("base"), location.origin + "/v1");
addEventListener("hashchange", route);
begin();
follow((kind, text) => { say($("link"), text); $("link").className = "link " + kind; });
