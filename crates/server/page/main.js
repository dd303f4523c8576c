// The page's frame: views, models, key, language and colours.

import { models, onKeyNeeded } from "./api.js";
import { settingsChanged, startChat } from "./chat.js";
import { setCompareModels, startCompare } from "./compare.js";
import { byId, el } from "./dom.js";
import { chooseLanguage, currentLanguage, onLanguage, setLanguage, t } from "./i18n.js";
import { startSettings } from "./settings.js";
import { showStatus, startStatus } from "./status.js";
import { apiKey, setApiKey, setSetting, setting } from "./store.js";
import { setTeachModels, showTeach, startTeach } from "./teach.js";

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
  document.title = `${t(`view_${name}`)} – qwen-burn`;
  showStatus(name === "status");
  if (name !== "status") loadModels();
  if (name === "teach") showTeach();
}

/** Fills the picker; adapters come and go while the server runs. */
async function loadModels() {
  const select = byId("model");
  try {
    const cards = await models();
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
    byId("trouble").hidden = true;
  } catch (error) {
    byId("trouble-text").textContent = error.status ? error.message : t("unreachable");
    byId("trouble").hidden = false;
  }
  byId("forget-key").hidden = !apiKey();
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
      given = Boolean(byId("key").value.trim());
      if (given) setApiKey(byId("key").value.trim());
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
  byId("model").addEventListener("change", ({ target }) => setSetting("model", target.value));
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  byId("forget-key").addEventListener("click", () => {
    setApiKey("");
    byId("forget-key").hidden = true;
  });
  byId("again").addEventListener("click", loadModels);
  onKeyNeeded(askForKey);
  startSettings(settingsChanged);
  startChat(() => byId("model").value);
  startCompare();
  startTeach(openChat);
  startStatus();
  setLanguage(currentLanguage());
  onLanguage(showView);
  addEventListener("hashchange", showView);
  addEventListener("focus", () => {
    if (byId("status").hidden && byId("trouble").hidden && !question) loadModels();
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    const view = VIEWS.map(byId).find(({ hidden }) => !hidden);
    view.querySelector(".ask textarea, .example textarea, .table")?.focus();
  });
  showView();
}

start();
