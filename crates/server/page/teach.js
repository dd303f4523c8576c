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
/** Milliseconds until work is shown that takes so long. */
const LONG = 300;
const MIB = 2 ** 20;

/** The chosen file: `{ file, id }`, the id once the server has it. Each choice is an object of its own. */
let choice = null;
/** What is being done with the form and the choice that it is about: `{ controller, choice, isPreview, begun, sent }`. */
let busy = null;
/** The job that is looked at, and what it has told. */
let shown = null;
let following = null;
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
  byId("teach-file").addEventListener("change", ({ target }) => take([...target.files]));
  byId("teach-no-file").addEventListener("click", () => {
    choose(null);
    byId("teach-rows").querySelector("textarea")?.focus();
  });
  byId("teach-preview").addEventListener("click", () => withForm(showPreview, true));
  byId("teach-cancel").addEventListener("click", () => {
    abandon();
    byId("teach-preview").focus();
  });
  byId("teach-form").addEventListener("submit", (event) => {
    event.preventDefault();
    withForm(teach);
  });
  const drop = byId("teach-drop");
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") take([...event.dataTransfer.files]);
    });
  }
  onLanguage(() => {
    drawRows();
    drawFile();
    drawBusy();
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
    el("button", { type: "button", class: "small", "data-key": "teach_remove", onclick: () => removeRow(row) }));
  byId("teach-rows").append(row);
  drawRows();
  return question;
}

function removeRow(row) {
  const next = row.nextElementSibling ?? row.previousElementSibling;
  row.remove();
  rowsChanged();
  (next?.querySelector("button") ?? byId("teach-add")).focus();
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

/** What was shown is no longer what would be learnt, nor is what is still on its way. */
function changed() {
  if (busy?.isPreview) abandon();
  byId("teach-seen").replaceChildren();
  byId("teach-numbers").textContent = "";
}

/** Takes one file. Anything else that was dropped leaves the choice as it was. */
function take(files) {
  if (files.length === 1) {
    choose(files[0]);
    return;
  }
  const names = files.map(({ name }) => name).join(", ");
  byId("teach-error").textContent = files.length ? t("teach_one_file", { names }) : t("teach_no_drop");
}

/** Takes a file, or none. What is being done with an earlier one ends. */
function choose(file) {
  abandon();
  choice = file && { file, id: null };
  // Choosing the same file again is a change, too.
  byId("teach-file").value = "";
  byId("teach-error").textContent = "";
  changed();
  drawFile();
  if (file) withForm(showPreview, true);
}

function drawFile() {
  const file = choice?.file;
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
async function uploaded(own) {
  const { signal } = own.controller;
  if (!own.choice) {
    const lines = written().map((record) => `${JSON.stringify(record)}\n`);
    return (await upload(new File(lines, "examples.jsonl"), signal)).id;
  }
  const { file } = own.choice;
  // A file that was written since it was chosen cannot be read.
  await file.slice(0, 1).arrayBuffer().catch(() => {
    throw new ApiError(400, t("teach_changed", { name: file.name }));
  });
  own.choice.id ??= (await upload(file, signal, (bytes) => tellSent(own, bytes))).id;
  tellSent(own, null);
  return own.choice.id;
}

/** How much of the file is sent; null where the server has all of it. */
function tellSent(own, bytes) {
  own.sent = bytes === null ? null : Math.min(bytes, own.choice.file.size);
  drawBusy();
}

/** Does something with what stands in the form, once at a time. `work(own)` is over early when `own` is abandoned. */
async function withForm(work, isPreview) {
  if (busy) return;
  const own = { controller: new AbortController(), choice, isPreview, begun: performance.now(), sent: choice && !choice.id ? 0 : null };
  const focused = document.activeElement;
  busy = own;
  drawBusy();
  setTimeout(drawBusy, LONG + 1);
  byId("teach-error").textContent = "";
  try {
    await work(own);
  } catch (error) {
    if (busy === own) {
      byId("teach-error").textContent = error.status ? error.message : t("unreachable");
      byId("teach-error").scrollIntoView({ block: "nearest" });
    }
  }
  if (busy !== own) return;
  busy = null;
  drawBusy();
  // A button that is out of use loses the keyboard.
  if (document.activeElement === document.body && focused.closest("#teach")) focused.focus();
}

/** Ends what is being done with the form; an answer that is on its way counts no longer. */
function abandon() {
  busy?.controller.abort();
  busy = null;
  drawBusy();
}

function drawBusy() {
  for (const id of ["teach-preview", "teach-go"]) byId(id).disabled = Boolean(busy);
  const isLong = Boolean(busy) && performance.now() - busy.begun > LONG;
  byId("teach-busy").hidden = !isLong;
  if (!isLong) return;
  const { choice: of, sent } = busy;
  const size = number((of?.file.size ?? 0) / MIB, 1);
  const values = { name: of?.file.name, size, sent: number((sent ?? 0) / MIB, 1) };
  const isSent = sent === null || sent >= of.file.size;
  byId("teach-busy-text").textContent = !of ? t("teach_reads") : t(isSent ? "teach_reads_file" : "teach_sends", values);
  const bar = byId("teach-busy-bar");
  if (isSent) bar.removeAttribute("value");
  else Object.assign(bar, { max: of.file.size, value: sent });
}

async function showPreview(own) {
  const { signal } = own.controller;
  const body = { method: { type: "supervised", supervised: { hyperparameters: hyperparameters() } }, limit: 5 };
  const asked = own.choice ? { ...body, training_file: await uploaded(own) } : { ...body, examples: written() };
  const found = await preview(asked, signal);
  if (signal.aborted) return;
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

async function teach(own) {
  const { signal } = own.controller;
  const settings = hyperparameters();
  const prompt = byId("teach-prompt").value.trim();
  if (prompt) Object.assign(settings, { sample_prompts: [prompt], sample_steps: Number(byId("teach-every").value) || 10 });
  const suffix = byId("teach-name").value.trim();
  const model = byId("teach-model").value;
  const file = await uploaded(own);
  signal.throwIfAborted();
  // From here on the server has been asked to teach, and the job is shown whatever is chosen meanwhile.
  const started = await createJob({
    model,
    training_file: file,
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
