// The server's state: what /metrics, /memory, /version and /v1/models tell, again and again while the view can be seen.

import { memory, metrics, models, version } from "./api.js";
import { byId, el } from "./dom.js";
import { number, onLanguage, t } from "./i18n.js";

const PERIOD = 2000;
/** Rows of the table of memory: a field of /memory, and its text. */
const MEMORY = [
  ["device_total", "mem_total"],
  ["budget", "mem_budget"],
  ["weights", "mem_weights"],
  ["adapters", "mem_adapters"],
  ["activations", "mem_activations"],
  ["kv_cache", "mem_kv"],
  ["lm_head_int8", "mem_lm_head"],
  ["driver", "mem_driver"],
];
let timer = 0;
let last = null;
/** Counters of the scrape before, for rates. */
let before = null;
/** Which looks are still wanted: a slow answer to an older one is dropped. */
let turn = 0;

export function startStatus() {
  onLanguage(() => last && draw(last));
  document.addEventListener("visibilitychange", () => {
    if (!byId("status").hidden) showStatus(!document.hidden);
  });
}

/** Begins or ends looking. */
export function showStatus(isShown) {
  clearTimeout(timer);
  turn += 1;
  before = null;
  if (isShown) look(turn);
}

async function look(own) {
  try {
    const [samples, cards, program, parts] = await Promise.all([metrics(), models(), version(), memory()]);
    if (own !== turn) return;
    last = { ...state(samples, cards, program), parts };
    draw(last);
    byId("status-error").hidden = true;
  } catch (error) {
    if (own !== turn) return;
    byId("status-error").textContent = error.status ? error.message : t("unreachable");
    byId("status-error").hidden = false;
    // The question for the key was closed: it isn't asked again until the user comes back.
    if (error.status === 401) return;
  }
  timer = setTimeout(() => look(own), PERIOD);
}

/** The numbers that are shown. */
function state(samples, cards, program) {
  const find = (name) => samples.find((sample) => [name, `${name}_total`].includes(sample.name));
  const value = (name) => find(name)?.value ?? null;
  const labels = (name) => find(name)?.labels ?? {};
  const now = { time: performance.now(), out: value("vllm:generation_tokens"), in: value("vllm:prompt_tokens") };
  const seconds = before ? (now.time - before.time) / 1000 : 0;
  const rate = (key) => (seconds > 0 ? Math.max(0, now[key] - before[key]) / seconds : null);
  const rates = { out: rate("out"), in: rate("in") };
  before = now;
  const names = (text) => (text ?? "").split(",").filter((name) => name);
  const lora = labels("vllm:lora_requests_info");
  const ended = samples.filter(({ name }) => name.startsWith("vllm:request_success"));
  return {
    cards,
    program,
    rates,
    counters: now,
    running: value("vllm:num_requests_running"),
    waiting: value("vllm:num_requests_waiting"),
    kv: value("vllm:kv_cache_usage_perc"),
    kvTokens: Number(labels("vllm:cache_config_info").kv_cache_size_tokens ?? NaN),
    queries: value("vllm:prefix_cache_queries"),
    hits: value("vllm:prefix_cache_hits"),
    preemptions: value("vllm:num_preemptions"),
    ended: ended.reduce((sum, sample) => sum + sample.value, 0),
    memory: value("process_resident_memory_bytes"),
    maxLoras: Number(lora.max_lora ?? 0),
    busy: { running: names(lora.running_lora_adapters), waiting: names(lora.waiting_lora_adapters) },
  };
}

const shown = (value, digits = 0) => (Number.isFinite(value) ? number(value, digits) : "–");
const percent = (value) => (Number.isFinite(value) ? `${number(100 * value, 1)} %` : "–");

function draw(now) {
  const hitRate = now.queries > 0 ? now.hits / now.queries : NaN;
  const used = t("of_tokens", { tokens: shown(now.kvTokens) });
  const cards = [
    card("running", shown(now.running)),
    card("waiting", shown(now.waiting)),
    card("kv_use", percent(now.kv), used, now.kv),
    card("prefix_hits", percent(hitRate), t("of_tokens", { tokens: shown(now.queries) }), hitRate),
    card("tokens_out", shown(now.rates.out, 1), t("in_all", { tokens: shown(now.counters.out) })),
    card("tokens_in", shown(now.rates.in, 1), t("in_all", { tokens: shown(now.counters.in) })),
    card("ended", shown(now.ended)),
    card("preemptions", shown(now.preemptions)),
    card("memory", now.memory ? `${shown(now.memory / 2 ** 30, 2)} GiB` : "–"),
    card("version", now.program),
  ];
  byId("cards").replaceChildren(...cards);
  drawMemory(now.parts);
  byId("models").replaceChildren(...now.cards.map((model) => row(model, now)));
  const num = now.cards.filter(({ parent }) => parent).length;
  byId("adapters").textContent = t("adapters", { num: number(num), max: number(now.maxLoras) });
}

function card(key, value, detail = "", part = NaN) {
  const meter = Number.isFinite(part) ? el("meter", { min: 0, max: 1, value: part, "aria-label": t(key) }) : null;
  const small = detail ? el("small", {}, detail) : null;
  return el("div", { class: "card" }, el("dt", {}, t(key)), el("dd", {}, el("strong", {}, value), meter, small));
}

/** A number of bytes. */
const size = (bytes) =>
  bytes < 2 ** 30 ? `${number(bytes / 2 ** 20, 1)} MiB` : `${number(bytes / 2 ** 30, 2)} GiB`;

/** What takes how much of the device's memory. A device that isn't a GPU lacks some rows. */
function drawMemory(parts) {
  const rows = MEMORY.filter(([field]) => Number.isFinite(parts[field])).map(([field, key]) => {
    const of = ["device_total", "budget"].includes(field) ? null
      : el("meter", { min: 0, max: Math.max(parts.budget, 1), value: parts[field], "aria-label": t(key) });
    return el("tr", {}, el("th", { scope: "row" }, t(key)), el("td", { class: "right" }, size(parts[field])), el("td", {}, of));
  });
  byId("memory").replaceChildren(...rows);
  byId("memory-kv").textContent = t("mem_hint", {
    blocks: number(parts.kv_cache_blocks),
    size: number(parts.block_size),
    tokens: number(parts.kv_cache_tokens),
    length: number(parts.max_model_len),
    num: number(parts.max_concurrency, 1),
  });
}

function row(model, { busy }) {
  const isBusy = busy.running.includes(model.id) ? "answering" : busy.waiting.includes(model.id) ? "waiting" : null;
  const kind = model.parent ? t("adapter_of", { model: model.parent }) : t("base_model");
  return el("tr", {},
    el("th", { scope: "row" }, model.id),
    el("td", {}, isBusy ? `${kind} · ${t(isBusy)}` : kind),
    el("td", { class: "right" }, shown(model.max_model_len)),
    el("td", {}, model.root));
}
