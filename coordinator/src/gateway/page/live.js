// The overview that the gateway sends each second: one stream for all views, as long as somebody looks.

import { call, events } from "./api.js";

const POINTS_MAX = 360;
const listeners = new Set();
let said = null, points = [], stop = new AbortController();

/** The last overview, if there was one. */
export const overview = () => said;
/** The last hour, oldest first. */
export const history = () => points;
/** Calls `act` with each overview from now on; answers how to end that. */
export function listen(act) {
  listeners.add(act);
  if (said) act(said);
  return () => listeners.delete(act);
}
/** After signing in or out: what was another's is forgotten, and the stream is started again. */
export function restart() { said = null; points = []; stop.abort(); }

/** Never returns; `tell` is told how the connection stands. */
export async function follow(tell) {
  for (;;) {
    stop = new AbortController();
    try {
      const answer = await call("/api/live", { signal: stop.signal });
      points = [];
      await events(answer, (name, data) => {
        const value = JSON.parse(data);
        if (name === "fault") return tell("off", value.error.message);
        if (name === "history") { points = points.concat(value).slice(-POINTS_MAX); return; }
        said = value;
        tell("on", "live");
        for (const act of listeners) act(said);
      });
      tell("off", "connection lost; retrying");
    } catch (error) {
      if (stop.signal.aborted) continue;
      tell("off", error.status === 401 ? "signed out" : "not connected: " + error.message);
      if (error.status === 401) { await new Promise(resolve => stop.signal.addEventListener("abort", resolve)); continue; }
    }
    await new Promise(resolve => setTimeout(resolve, 2000));
  }
}
