// The server's API, at addresses relative to the page's, so that a proxy may serve it below a path.

import { t } from "./i18n.js";
import { apiKey } from "./store.js";

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
    const { onSent, ...asked } = { ...options, headers, cache: "no-store" };
    const answer = await (onSent ? send(path, asked, onSent) : fetch(path, asked));
    if (answer.ok) return answer;
    const error = await errorOf(answer);
    if (answer.status !== 401) throw error;
    // A key that came meanwhile, from another request's question, is tried first.
    if (apiKey() !== key) continue;
    if (!(await askForKey(error.message))) throw error;
  }
}

/** As `fetch`, which does not tell how much is sent: `onSent(bytes)` does. */
function send(path, { method, headers, body, signal }, onSent) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const request = new XMLHttpRequest();
    request.open(method, path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", ({ loaded }) => onSent(loaded));
    request.addEventListener("load", () => {
      const { status, statusText, responseText } = request;
      const headers = { "Content-Type": request.getResponseHeader("Content-Type") ?? "" };
      resolve(new Response([204, 205, 304].includes(status) ? null : responseText, { status, statusText, headers }));
    });
    request.addEventListener("error", () => reject(new TypeError(path)));
    request.addEventListener("abort", () => reject(signal.reason));
    signal.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

/** Statuses for which there is a sentence; proxies answer with pages of their own. */
const SAID = [413, 429, 500, 502, 503, 504];

/** What an answer with an error says, in the form of this server or of another one. */
async function errorOf(answer) {
  const { status } = answer;
  const text = (await answer.text()).trim();
  // Undefined for a text, or a page.
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    // It is no JSON.
  }
  const isPage = text.startsWith("<") || (answer.headers.get("Content-Type") ?? "").includes("html");
  const plain = body === undefined && !isPage ? text.slice(0, 300) : "";
  const said = wordsOf(body) || plain || t(SAID.includes(status) ? `http_${status}` : "http_other", { status });
  return new ApiError(status, said, body?.error?.progress);
}

/** The text of an error: `{"error": {"message": …}}`, `{"error": …}`, `{"detail": …}` and the like; empty where there is none. */
function wordsOf(body) {
  const { error, message, detail } = body ?? {};
  const details = Array.isArray(detail) ? detail.map((one) => one?.msg).filter((one) => one).join("; ") : detail;
  const isText = (text) => typeof text === "string" && text.trim();
  return [error?.message, error, message, details?.message, details].find(isText) ?? "";
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
    if (event.error) throw new ApiError(event.error.code, wordsOf(event) || t("http_other", { status: event.error.code ?? "?" }));
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
export const preview = async (body, signal) => (await call("v1/fine_tuning/preview", { ...asJson(body), signal })).json();

/** Sends a file to learn from; `onSent(bytes)` tells how much of it is sent. */
export async function upload(file, signal, onSent) {
  const body = new FormData();
  body.append("purpose", "fine-tune");
  body.append("file", file);
  return (await call("v1/files", { method: "POST", body, signal, onSent })).json();
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
