// How a fine-tuning job looks: its state, the curve of its loss, what the model says meanwhile, and the list of all jobs.

import { byId, el } from "./dom.js";
import { date, number, t } from "./i18n.js";
import { action } from "./message.js";

const SVG = "http://www.w3.org/2000/svg";
/** The curve's size in its own units. */
const [WIDTH, HEIGHT, EDGE] = [600, 160, 8];
/** Points of a curve, at most: more cannot be told apart. */
const POINTS = 300;

/** Whether a job stays as it is. */
export const isOver = ({ status }) => ["succeeded", "failed", "cancelled"].includes(status);
/** What may be done with a job, by its status. */
const VERBS = {
  validating_files: ["cancel"],
  queued: ["pause", "cancel"],
  running: ["pause", "cancel"],
  paused: ["resume", "cancel"],
};

/** Draws a job; `acts` are `change(verb)`, `chat()` and `remove()`. */
export function drawJob({ job, events, trouble, isServed }, acts) {
  const steps = events.filter(({ data }) => Number.isFinite(data.train_loss)).map(({ data }) => data);
  const last = steps.at(-1);
  byId("teach-status").textContent = t(`job_${job.status}`);
  byId("teach-id").textContent = job.fine_tuned_model ?? job.id;
  byId("teach-progress").max = last?.total_steps ?? 1;
  byId("teach-progress").value = last?.step ?? 0;
  byId("teach-step").textContent = last ? stepText(last, job) : "";
  byId("teach-job-error").textContent = trouble ?? job.error?.message ?? "";
  const buttons = (VERBS[job.status] ?? []).map((verb) => action(`job_${verb}`, () => acts.change(verb)));
  if (job.status === "succeeded" && isServed) {
    buttons.push(el("button", { type: "button", class: "primary", id: "teach-chat", onclick: acts.chat }, t("teach_chat")));
    buttons.push(el("button", { type: "button", id: "teach-delete", onclick: acts.remove }, t("job_delete")));
  }
  keepFocus(byId("teach-actions"), buttons);
  byId("teach-curve").replaceChildren(...(steps.length > 1 ? [curve(steps)] : []));
  drawSamples(events.filter(({ data }) => data.sample).map(({ data }) => data.sample));
}

function stepText({ step, total_steps: total, train_loss: loss, tokens_per_second: rate }, job) {
  const left = job.estimated_finish && !isOver(job) ? Math.max(0, job.estimated_finish - Date.now() / 1000) : null;
  const parts = [t("job_step", { step: number(step), total: number(total) }), t("job_loss", { loss: number(loss, 4) })];
  if (rate && !isOver(job)) parts.push(t("stat_rate", { rate: number(rate, 1) }));
  if (left) parts.push(t("job_left", { minutes: number(left / 60, 1) }));
  return parts.join(" · ");
}

/** Replaces buttons, but keeps those that are as before: a press may be on its way. */
function keepFocus(parent, buttons) {
  const same = (list) => [...list].map(({ textContent }) => textContent).join("\n");
  if (same(parent.children) === same(buttons)) return;
  const isFocused = parent.contains(document.activeElement);
  parent.replaceChildren(...buttons);
  if (isFocused) (buttons[0] ?? byId("teach-job")).focus();
}

/** The loss over the steps as a line. */
function curve(steps) {
  const every = Math.ceil(steps.length / POINTS);
  const kept = steps.filter((_, i) => i % every === 0 || i === steps.length - 1);
  const losses = kept.map(({ train_loss: loss }) => loss);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const first = kept[0].step;
  const across = Math.max(1, (kept.at(-1).total_steps ?? kept.at(-1).step) - first);
  const points = kept.map(({ step, train_loss: loss }) => {
    const x = EDGE + ((step - first) / across) * (WIDTH - 2 * EDGE);
    const y = EDGE + ((high - loss) / (high - low || 1)) * (HEIGHT - 2 * EDGE);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", t("curve", { first: number(losses[0], 3), last: number(losses.at(-1), 3) }));
  picture.append(line);
  const caption = el("figcaption", {}, t("curve", { first: number(losses[0], 3), last: number(losses.at(-1), 3) }));
  return el("figure", { class: "curve" }, picture, caption);
}

/** What the model answered, the latest first. */
function drawSamples(samples) {
  const items = samples.toReversed().map(({ step, prompt, completion }) => {
    const asked = typeof prompt === "string" ? prompt : JSON.stringify(prompt);
    return el("li", {}, el("small", {}, `${t("after_steps", { step: number(step) })} · ${asked}`), el("p", {}, completion));
  });
  byId("teach-samples-title").hidden = !items.length;
  byId("teach-samples").replaceChildren(...items);
}

/** Draws the list of all jobs; `look(job)` shows one. */
export function drawJobs(all, chosen, look) {
  byId("teach-jobs-title").hidden = !all.length;
  byId("teach-jobs").replaceChildren(...all.map((job) => {
    const name = job.fine_tuned_model ?? job.user_provided_suffix ?? job.id;
    const button = el("button", { type: "button", "aria-current": job.id === chosen ? "true" : null, onclick: () => look(job) },
      el("span", {}, name), el("small", {}, `${t(`job_${job.status}`)} · ${date(job.created_at * 1000)}`));
    return el("li", {}, button);
  }));
}
