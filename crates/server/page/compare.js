// The same question to two models side by side, such as a base model and its adapter. Each question stands for itself.

import { announce, byId, el, isFree, isLost, sendOnEnter } from "./dom.js";
import { keepDraft } from "./draft.js";
import { onLanguage, t } from "./i18n.js";
import { answerOf, fill, messageView } from "./message.js";
import { requestSettings, systemMessages } from "./settings.js";

const SIDES = ["left", "right"];
/** Questions with their answers, the latest first. */
const rounds = [];
let controller = null;

const model = (side) => byId(`compare-${side}`).value;

/** Makes the view work. */
export function startCompare() {
  const question = byId("compare-question");
  keepDraft(question);
  question.addEventListener("keydown", sendOnEnter(() => byId("compare-ask").requestSubmit()));
  byId("compare-ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(question.value.trim());
  });
  byId("compare-stop").addEventListener("click", () => controller?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isFree("compare") && !event.isComposing) controller?.abort();
  });
  onLanguage(draw);
}

/** Puts base and first adapter side by side, until the user chooses. */
export function setCompareModels(cards) {
  const adapter = cards.find(({ parent }) => parent) ?? cards.at(-1);
  const defaults = [cards[0]?.id, adapter?.id];
  SIDES.forEach((side, i) => {
    const select = byId(`compare-${side}`);
    const kept = cards.some(({ id }) => id === select.value) ? select.value : defaults[i];
    select.replaceChildren(...cards.map(({ id }) => el("option", { value: id }, id)));
    select.value = kept ?? "";
  });
  byId("compare-hint").hidden = cards.some(({ parent }) => parent);
}

/** Both answers are asked for at once, so that the engine computes them in one batch. */
async function ask(question) {
  if (!question || controller) return;
  controller = new AbortController();
  const { signal } = controller;
  const messages = [...systemMessages(), { role: "user", content: question }];
  const round = { question, answers: SIDES.map((side) => answerOf(model(side))), isRunning: true };
  rounds.unshift(round);
  draw();
  announce(t("answering"));
  await Promise.all(round.answers.map(async (answer, i) => {
    const body = { ...requestSettings(), model: answer.model, messages };
    await fill(answer, body, signal, () => round.views[i].later());
    round.views[i].update(false);
  }));
  controller = null;
  round.isRunning = false;
  draw();
  announce(t("answered"));
}

function draw() {
  const focused = document.activeElement;
  byId("compare-stop").hidden = !controller;
  byId("compare-send").hidden = Boolean(controller);
  if (!byId("compare").hidden && isLost(focused)) byId("compare-question").focus({ preventScroll: true });
  byId("rounds").replaceChildren(...rounds.map((round) => {
    round.views = round.answers.map((answer) => messageView(answer));
    round.views.forEach((view, i) => {
      view.element.setAttribute("aria-label", round.answers[i].model);
      view.element.querySelector("h3").textContent = round.answers[i].model;
      view.update(round.isRunning);
    });
    const sides = el("div", { class: "sides" }, ...round.views.map(({ element }) => element));
    return el("section", { class: "round" }, el("h3", { class: "asked" }, round.question), sides);
  }));
}
