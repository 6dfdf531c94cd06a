// Talking to the gateway: the key, requests, server-sent events, downloads.

let key = "";
// Where a browser blocks storage, `sessionStorage` itself throws; the key then lasts until the page is loaded again.
try { key = sessionStorage.getItem("key") || ""; } catch { /* Nothing is stored. */ }
let refused = () => {};

export const hasKey = () => key !== "";
/** Kept in this tab alone; "" signs out. */
export function useKey(value) {
  key = value;
  try { if (value) sessionStorage.setItem("key", value); else sessionStorage.removeItem("key"); } catch { /* Not stored. */ }
}
/** Called when the gateway asks for a key, or does not know this one. */
export function whenRefused(act) { refused = act; }

class Fault extends Error {
  constructor(message, status, code) { super(message); this.status = status; this.code = code; }
}

export async function call(path, options = {}) {
  const headers = key ? { ...options.headers, Authorization: "Bearer " + key } : options.headers;
  let answer;
  try { answer = await fetch(path, { ...options, headers }); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("the coordinator does not reply", 0, "unreachable");
  }
  if (answer.ok) return answer;
  // A proxy may answer in the gateway's place: then the status has to do.
  const said = await answer.json().catch(() => null);
  if (answer.status === 401) refused(key !== "");
  const { message, code } = said?.error ?? {};
  throw new Fault(message || ("the coordinator replied " + answer.status + " " + answer.statusText).trim(), answer.status, code);
}
export const get = async path => (await call(path)).json();
export const send = (path, value, signal) => call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value), signal });
export const post = async (path, value) => (await send(path, value)).json();
export const remove = async path => (await call(path, { method: "DELETE" })).json();

/** Server-sent events by fetch, because EventSource cannot send a key. */
export async function events(answer, on) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let at; (at = rest.indexOf("\n\n")) >= 0; rest = rest.slice(at + 2)) {
      let name = "message";
      const data = [];
      for (const line of rest.slice(0, at).split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      }
      if (data.length) on(name, data.join("\n"));
    }
  }
}

export async function download(path, name) {
  const content = await (await call(path)).blob(), a = document.createElement("a");
  a.href = URL.createObjectURL(content);
  a.download = name.endsWith(".jsonl") ? name : name + ".jsonl";
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 1000);
}

export async function upload(file) {
  const form = new FormData();
  form.append("purpose", "batch");
  form.append("file", file);
  return (await (await call("/v1/files", { method: "POST", body: form })).json()).id;
}
