// The page's frame: views, models, key, language and colours.

import { models, onKeyNeeded } from "./api.js";
import { settingsChanged, startChat } from "./chat.js";
import { setCompareModels, startCompare } from "./compare.js";
import { byId, el, grow } from "./dom.js";
import { chooseLanguage, currentLanguage, onLanguage, setLanguage, t } from "./i18n.js";
import { startSettings } from "./settings.js";
import { showStatus, startStatus } from "./status.js";
import { apiKey, onUnkept, setApiKey, setSetting, setting } from "./store.js";
import { setTeachModels, showTeach, startTeach } from "./teach.js";

/** Milliseconds until a server that loads its model, or that is away, is asked again. */
const [LOADS, AWAY] = [1000, 4000];

const VIEWS = ["chat", "compare", "teach", "status"];

/** Shows the view that the address names. */
function showView() {
  const name = VIEWS.find((view) => location.hash === `#${view}`) ?? "chat";
  for (const view of VIEWS) {
    byId(view).hidden = view !== name;
    const link = byId(`to-${view}`);
    if (view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId(name).querySelectorAll(".ask textarea, .edit textarea").forEach(grow);
  document.title = `${t(`view_${name}`)} – qwen-burn`;
  showStatus(name === "status");
  if (name !== "status") lookAgain();
}

/** Tokens that a model takes at most, by its name. */
const limits = new Map();
let retry = 0;

/** Says why there are no models, and looks again by itself where that may help. */
function showTrouble(error) {
  const loads = Boolean(error.progress);
  const { done, of } = error.progress ?? {};
  const text = loads ? t("loading") : error.status ? error.message : t("unreachable");
  // Screen readers say it once.
  if (byId("trouble-text").textContent !== text) byId("trouble-text").textContent = text;
  byId("trouble-progress").hidden = !of;
  if (of) Object.assign(byId("trouble-progress"), { max: of, value: done });
  byId("again").hidden = loads;
  byId("trouble").hidden = false;
  if (!error.status || [502, 503, 504].includes(error.status)) retry = setTimeout(lookAgain, loads ? LOADS : AWAY);
}

/** Fills the picker; adapters come and go while the server runs. */
async function loadModels() {
  const select = byId("model");
  clearTimeout(retry);
  try {
    const cards = await models();
    for (const { id, max_model_len: limit } of cards) limits.set(id, limit);
    const chosen = select.value || setting("model");
    const option = ({ id }) => el("option", { value: id }, id);
    const group = (key, own) => (own.length ? el("optgroup", { label: t(key) }, ...own.map(option)) : null);
    const groups = [
      group("base_models", cards.filter(({ parent }) => !parent)),
      group("adapters_group", cards.filter(({ parent }) => parent)),
    ];
    select.replaceChildren(...groups.filter((own) => own));
    select.value = cards.some(({ id }) => id === chosen) ? chosen : (cards[0]?.id ?? "");
    setCompareModels(cards);
    setTeachModels(cards);
    settingsChanged();
    byId("trouble").hidden = true;
  } catch (error) {
    clearTimeout(retry);
    showTrouble(error);
  }
  byId("forget-key").hidden = !apiKey();
}

/** Asks for the models, and in the view that teaches for its jobs, too. */
function lookAgain() {
  if (byId("teach").hidden) loadModels();
  else showTeach();
}

/** Shows the chat with a model that was not there before. */
async function openChat(model) {
  setSetting("model", model);
  await loadModels();
  byId("model").value = model;
  location.hash = "#chat";
}

/** The question for a key that is open, so that several requests ask once. */
let question = null;

function askForKey(reason) {
  question ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-reason").textContent = apiKey() ? reason : "";
    byId("key").value = "";
    let given = false;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = byId("key").value.trim();
      // A browser sends no other signs in a header, and says no more than that the request failed.
      if (/[^ -~]/.test(key)) {
        byId("key-reason").textContent = t("key_signs");
        return;
      }
      given = Boolean(key);
      if (given) setApiKey(key);
      dialog.close();
    };
    dialog.onclose = () => {
      byId("key").value = "";
      byId("forget-key").hidden = !apiKey();
      question = null;
      resolve(given);
    };
    dialog.showModal();
  });
  return question;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").value = theme;
}

function start() {
  setTheme(setting("theme") ?? "auto");
  byId("theme").addEventListener("change", ({ target }) => {
    setSetting("theme", target.value);
    setTheme(target.value);
  });
  byId("language").value = currentLanguage();
  byId("language").addEventListener("change", ({ target }) => chooseLanguage(target.value));
  byId("model").addEventListener("change", ({ target }) => {
    setSetting("model", target.value);
    settingsChanged();
  });
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  byId("forget-key").addEventListener("click", () => {
    setApiKey("");
    byId("forget-key").hidden = true;
    byId("settings-open").focus();
  });
  byId("again").addEventListener("click", lookAgain);
  onKeyNeeded(askForKey);
  onUnkept((isSo) => { byId("unkept").hidden = !isSo; });
  startSettings(settingsChanged);
  startChat(() => byId("model").value, (model) => limits.get(model));
  startCompare();
  startTeach(openChat, loadModels);
  startStatus();
  setLanguage(currentLanguage());
  onLanguage(showView);
  addEventListener("hashchange", showView);
  addEventListener("focus", () => {
    if (byId("status").hidden && byId("trouble").hidden && !question) lookAgain();
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    const view = VIEWS.map(byId).find(({ hidden }) => !hidden);
    view.querySelector(".ask textarea, .example textarea, .table")?.focus();
  });
  showView();
}

start();
