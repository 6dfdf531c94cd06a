// Talking to the gateway: the key, requests, server-sent events, downloads.

const stored = (box, name) => { try { return box.getItem(name) || ""; } catch { return ""; } };
const store = (box, name, value) => { try { if (value) box.setItem(name, value); else box.removeItem(name); } catch { /* Private windows may refuse. */ } };

let key = stored(sessionStorage, "key");
let refused = () => {};

export const hasKey = () => key !== "";
/** Kept in this tab alone; "" signs out. */
export function useKey(value) { key = value; store(sessionStorage, "key", value); }
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
    throw new Fault("the coordinator does not answer", 0, "unreachable");
  }
  if (answer.ok) return answer;
  let said = {};
  try { said = (await answer.json()).error; } catch { /* No JSON: the status has to do. */ }
  if (answer.status === 401) refused(key !== "");
  throw new Fault(said.message || answer.status + " " + answer.statusText, answer.status, said.code);
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
