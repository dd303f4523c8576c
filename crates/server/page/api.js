// The server's API, at addresses relative to the page's, so that a proxy may serve it below a path.

import { apiKey, setApiKey } from "./store.js";

/** An answer with an error status. `progress` is that of a server that loads its model: { done, of }. */
export class ApiError extends Error {
  constructor(status, message, progress) {
    super(message);
    this.status = status;
    this.progress = progress;
  }
}

/** Asks for the key; main.js sets it. Answers whether there is a new one. */
let askForKey = async () => false;
export const onKeyNeeded = (ask) => { askForKey = ask; };

/** A request with the key; where the server wants another key, it is asked for. */
async function call(path, options = {}) {
  for (;;) {
    const key = apiKey();
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const answer = await fetch(path, { ...options, headers, cache: "no-store" });
    if (answer.ok) return answer;
    const error = await errorOf(answer);
    if (answer.status !== 401) throw error;
    // A key that came meanwhile, from another request's question, is tried first.
    if (apiKey() !== key) continue;
    if (!(await askForKey(error.message))) throw error;
  }
}

async function errorOf(answer) {
  const text = await answer.text();
  try {
    const { message, progress } = JSON.parse(text).error;
    return new ApiError(answer.status, message, progress);
  } catch {
    return new ApiError(answer.status, text.slice(0, 300) || `${answer.status} ${answer.statusText}`);
  }
}

const asJson = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const JOBS = "v1/fine_tuning/jobs";

/** The cards of `/v1/models`. */
export const models = async () => (await (await call("v1/models")).json()).data;
export const memory = async () => (await call("memory")).json();
export const version = async () => (await (await call("version")).json()).version;
export const metrics = async () => parseMetrics(await (await call("metrics")).text());

/**
 * Streams an answer. `onDelta` gets each event's delta.
 * Resolves to { finish, usage, ttft, seconds }: times are in seconds as the browser sees them, `seconds` from the first token on.
 */
export async function chat(body, signal, onDelta) {
  const started = performance.now();
  const answer = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } }),
    signal,
  });
  const result = { finish: null, usage: null, ttft: null, seconds: 0 };
  let first = null;
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.code, event.error.message);
    if (event.usage) result.usage = event.usage;
    const choice = event.choices?.[0];
    if (!choice) continue;
    const delta = choice.delta ?? {};
    const has = delta.content || delta.reasoning_content || delta.reasoning || delta.tool_calls?.length;
    if (has) {
      first ??= performance.now();
      result.ttft = (first - started) / 1000;
      result.seconds = (performance.now() - first) / 1000;
    }
    if (choice.finish_reason) result.finish = choice.finish_reason;
    onDelta(delta, result);
  }
  return result;
}

/** The `data:` of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

/** The latest fine-tuning jobs, the newest first. */
export const jobs = async () => (await (await call(JOBS)).json()).data;
export const job = async (id) => (await call(`${JOBS}/${id}`)).json();
export const createJob = async (body) => (await call(JOBS, asJson(body))).json();
/** `verb` is cancel, pause or resume. */
export const changeJob = async (id, verb) => (await call(`${JOBS}/${id}/${verb}`, { method: "POST" })).json();
export const deleteModel = async (name) => (await call(`v1/models/${encodeURI(name)}`, { method: "DELETE" })).json();
export const preview = async (body) => (await call("v1/fine_tuning/preview", asJson(body))).json();

/** Sends a file to learn from. */
export async function upload(file) {
  const body = new FormData();
  body.append("purpose", "fine-tune");
  body.append("file", file);
  return (await call("v1/files", { method: "POST", body })).json();
}

/** The events of a job from its beginning, until it has ended. */
export async function* followJob(id, signal) {
  const answer = await call(`${JOBS}/${id}/events?stream=true`, { signal });
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
}

/** Prometheus' text format as `[{ name, labels, value }]`. */
function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\n/g, "\n").replace(/\\(["\\])/g, "$1");
    }
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}
