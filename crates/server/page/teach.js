// Teaching: examples become a file, a file becomes a job of /v1/fine_tuning, and its result a model to chat with.

import { ApiError, changeJob, createJob, deleteModel, followJob, job, jobs, preview, upload } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { number, onLanguage, t } from "./i18n.js";
import { draft, setDraft } from "./store.js";
import { drawJob, drawJobs, isOver } from "./teach_job.js";

/** Fields of the form that are hyperparameters, and what they are called in a request. */
const NUMBERS = { "teach-epochs": "n_epochs", "teach-rate": "learning_rate_multiplier", "teach-rank": "lora_r" };
/** What stands in the form at first. */
const ROWS = 3;
const ROWS_DRAFT = "teach-rows";
/** Milliseconds until a job's state is asked for again. */
const SOON = 150;
/** Milliseconds until a connection that broke off is tried again. */
const AGAIN = 3000;

/** The dropped file, and its id once the server has it. */
let file = null;
let fileId = null;
/** The job that is looked at, and what it has told. */
let shown = null;
let following = null;
let isBusy = false;
/** Whether a picture is on its way, and for which job a look at its state: events of an old job come all at once. */
let isDrawn = false;
let asked = null;
let chatWith = () => {};
let loadModels = async () => {};

/** Makes the view work. `openChat(model)` shows the chat with a model, and `load` fills all lists of models. */
export function startTeach(openChat, load) {
  chatWith = openChat;
  loadModels = load;
  const kept = draft(ROWS_DRAFT);
  const rows = Array.isArray(kept) ? kept : [];
  for (let i = 0; i < Math.max(ROWS, rows.length); i += 1) addRow(rows[i]);
  byId("teach-add").addEventListener("click", () => addRow().focus());
  byId("teach-file").addEventListener("change", ({ target }) => take(target.files[0]));
  byId("teach-no-file").addEventListener("click", () => take(null));
  byId("teach-preview").addEventListener("click", () => withForm(showPreview));
  byId("teach-form").addEventListener("submit", (event) => {
    event.preventDefault();
    withForm(teach);
  });
  const drop = byId("teach-drop");
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") take(event.dataTransfer.files[0]);
    });
  }
  onLanguage(() => {
    drawRows();
    drawFile();
    draw();
  });
}

/** Fills the list of models to start from. */
export function setTeachModels(cards) {
  const select = byId("teach-model");
  const kept = cards.some(({ id }) => id === select.value) ? select.value : cards[0]?.id;
  select.replaceChildren(...cards.map(({ id }) => el("option", { value: id }, id)));
  select.value = kept ?? "";
}

/** Looks for jobs when the view is shown. */
export async function showTeach() {
  try {
    const [all] = await Promise.all([jobs(), loadModels()]);
    byId("teach-off").hidden = true;
    byId("teach-on").hidden = false;
    const running = all.find((one) => !isOver(one));
    const found = all.find(({ id }) => id === shown?.job.id);
    if (found) shown.job = found;
    if (!shown && running) look(running);
    else if (found && !isOver(found) && !following) look(found);
    else draw();
    drawJobs(all, shown?.job.id, look);
  } catch (error) {
    byId("teach-on").hidden = true;
    byId("teach-off").hidden = false;
    const isOff = error.status === 404;
    byId("teach-off-text").textContent = isOff ? t("teach_off") : error.status ? error.message : t("unreachable");
    byId("teach-off-how").hidden = !isOff;
  }
}

function addRow(texts = []) {
  const area = (key, i) => {
    const field = el("textarea", { rows: 2, "data-key": key, oninput: rowsChanged, onkeydown: addOnEnter });
    field.value = texts[i] ?? "";
    return field;
  };
  const [question, answer] = ["teach_question", "teach_answer"].map(area);
  const row = el("li", { class: "example" }, question, answer,
    el("button", { type: "button", class: "small", "data-key": "teach_remove", onclick: () => { row.remove(); rowsChanged(); } }));
  byId("teach-rows").append(row);
  drawRows();
  return question;
}

function addOnEnter(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  addRow().focus();
}

/** Names the fields of each row, which have no label of their own. */
function drawRows() {
  [...byId("teach-rows").children].forEach((row, i) => {
    for (const field of row.children) {
      const text = t(field.dataset.key);
      field.setAttribute("aria-label", `${text} ${i + 1}`);
      if (field.tagName === "BUTTON") field.textContent = "✕";
      else field.placeholder = text;
      field.title = text;
    }
  });
}

const rowTexts = () => [...byId("teach-rows").children].map((row) => [...row.querySelectorAll("textarea")].map(({ value }) => value));

function rowsChanged() {
  setDraft(ROWS_DRAFT, rowTexts().filter((texts) => texts.some((text) => text)));
  changed();
}

/** What was shown is no longer what would be learnt. */
function changed() {
  byId("teach-seen").replaceChildren();
  byId("teach-numbers").textContent = "";
}

function take(chosen) {
  file = chosen ?? null;
  fileId = null;
  // Choosing the same file again is a change, too.
  byId("teach-file").value = "";
  changed();
  drawFile();
  if (file) withForm(showPreview);
}

function drawFile() {
  byId("teach-write").hidden = Boolean(file);
  byId("teach-no-file").hidden = !file;
  byId("teach-file-name").textContent = file ? t("teach_file", { name: file.name, size: number(file.size / 1024, 1) }) : "";
}

/** The written examples as records. Rows without text are left out; half of a row is an error. */
function written() {
  const rows = rowTexts().map((texts) => texts.map((text) => text.trim()));
  const filled = rows.filter(([question, answer]) => question || answer);
  if (!filled.length) throw new ApiError(400, t("teach_no_examples"));
  const half = filled.find(([question, answer]) => !question || !answer);
  if (half) throw new ApiError(400, t("teach_half", { text: half[0] || half[1] }));
  return filled.map(([question, answer]) => ({
    messages: [{ role: "user", content: question }, { role: "assistant", content: answer }],
  }));
}

function hyperparameters() {
  const settings = {};
  for (const [id, name] of Object.entries(NUMBERS)) if (byId(id).value.trim()) settings[name] = Number(byId(id).value);
  return settings;
}

/** The id of the examples on the server. */
async function uploaded() {
  if (!file) {
    const lines = written().map((record) => `${JSON.stringify(record)}\n`);
    return (await upload(new File(lines, "examples.jsonl"))).id;
  }
  // A file that was written since it was chosen cannot be read.
  await file.slice(0, 1).arrayBuffer().catch(() => {
    throw new ApiError(400, t("teach_changed", { name: file.name }));
  });
  fileId ??= (await upload(file)).id;
  return fileId;
}

/** Does something with what stands in the form, once at a time. */
async function withForm(work) {
  if (isBusy) return;
  isBusy = true;
  drawButtons();
  byId("teach-error").textContent = "";
  try {
    await work();
  } catch (error) {
    byId("teach-error").textContent = error.status ? error.message : t("unreachable");
    byId("teach-error").scrollIntoView({ block: "nearest" });
  }
  isBusy = false;
  drawButtons();
}

function drawButtons() {
  for (const id of ["teach-preview", "teach-go"]) byId(id).disabled = isBusy;
}

async function showPreview() {
  const body = { method: { type: "supervised", supervised: { hyperparameters: hyperparameters() } }, limit: 5 };
  const found = await preview(file ? { ...body, training_file: await uploaded() } : { ...body, examples: written() });
  byId("teach-numbers").textContent = t("teach_numbers", {
    examples: number(found.num_examples), tokens: number(found.num_tokens), trained: number(found.num_trained),
  });
  byId("teach-seen").replaceChildren(...found.data.map(({ place, spans }) => {
    const parts = spans.map(({ text, trained }) => (trained ? el("mark", {}, text) : text));
    // A line of a file, or the index of a written example.
    const count = place.startsWith("[") ? Number(place.slice(1, -1)) + 1 : place;
    return el("figure", { class: "seen" }, el("figcaption", {}, count), el("pre", { tabindex: 0, "aria-label": count }, ...parts));
  }));
  announce(byId("teach-numbers").textContent);
}

async function teach() {
  const settings = hyperparameters();
  const prompt = byId("teach-prompt").value.trim();
  if (prompt) Object.assign(settings, { sample_prompts: [prompt], sample_steps: Number(byId("teach-every").value) || 10 });
  const suffix = byId("teach-name").value.trim();
  const started = await createJob({
    model: byId("teach-model").value,
    training_file: await uploaded(),
    ...(suffix ? { suffix } : {}),
    method: { type: "supervised", supervised: { hyperparameters: settings } },
  });
  look(started);
  byId("teach-job").scrollIntoView({ block: "start" });
  byId("teach-job").focus();
}

/** Shows a job, and follows it to its end. */
async function look(chosen) {
  following?.abort();
  const own = new AbortController();
  following = own;
  shown = { job: chosen, events: [] };
  draw();
  while (await follow(own)) await new Promise((done) => { setTimeout(done, AGAIN); });
  if (following !== own) return;
  if (isOver(shown.job)) following = null;
  draw();
  announce(t(`job_${shown.job.status}`));
  showTeach();
}

/** Takes up what the job tells, from its beginning. Whether the job goes on when that ends: the server was away. */
async function follow(own) {
  if (own.signal.aborted) return false;
  const events = [];
  try {
    for await (const event of followJob(shown.job.id, own.signal)) {
      if (following !== own) return false;
      events.push(event);
      Object.assign(shown, { events, trouble: null });
      // A sentence may come with another status.
      if (event.type === "message" && !event.data.sample) askSoon(own);
      drawSoon();
    }
    const found = await job(shown.job.id);
    if (following !== own) return false;
    Object.assign(shown, { job: found, trouble: null });
  } catch (error) {
    if (own.signal.aborted) return false;
    shown.trouble = error.status ? error.message : t("broken_off_job");
    draw();
    return !(error.status < 500);
  }
  return !isOver(shown.job);
}

function drawSoon() {
  if (isDrawn) return;
  isDrawn = true;
  requestAnimationFrame(() => {
    isDrawn = false;
    draw();
  });
}

/** Takes up the job's state, unless another job is looked at by then. */
function askSoon(own) {
  if (asked === own || isOver(shown.job)) return;
  asked = own;
  setTimeout(async () => {
    if (asked === own) asked = null;
    // The end of the stream tells what is wrong.
    const found = following === own ? await job(shown.job.id).catch(() => null) : null;
    if (!found || following !== own) return;
    shown.job = found;
    draw();
  }, SOON);
}

function draw() {
  byId("teach-job").hidden = !shown;
  if (!shown) return;
  const name = shown.job.fine_tuned_model;
  const isServed = [...byId("teach-model").options].some(({ value }) => value === name);
  drawJob({ ...shown, isServed }, {
    change: async (verb) => {
      try {
        shown.job = await changeJob(shown.job.id, verb);
        if (verb === "resume") look(shown.job);
      } catch (error) {
        shown.trouble = error.message;
      }
      draw();
    },
    chat: () => chatWith(shown.job.fine_tuned_model),
    remove: async () => {
      if (!confirm(t("job_confirm_delete", { name }))) return;
      try {
        await deleteModel(name);
      } catch (error) {
        shown.trouble = error.message;
      }
      showTeach();
    },
  });
}
