// The languages of the page. Texts stand in en.js and zh.js, under the same keys.

import en from "./en.js";
import zh from "./zh.js";
import { setting, setSetting } from "./store.js";

const TEXTS = { en, zh };
/** Called after the language has changed. */
const listeners = [];
let language = chosen();

function chosen() {
  const kept = setting("language");
  if (kept in TEXTS) return kept;
  return (navigator.language ?? "en").toLowerCase().startsWith("zh") ? "zh" : "en";
}

/** The text of a key; `{name}` in it is replaced by `values.name`. */
export function t(key, values = {}) {
  const text = TEXTS[language][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** A number as the language writes it. */
export function number(value, digits = 0) {
  const options = { maximumFractionDigits: digits, minimumFractionDigits: digits };
  return value.toLocaleString(language === "zh" ? "zh-CN" : "en", options);
}

/** Day and time of a `Date.now()`. */
export function date(value) {
  const options = { dateStyle: "short", timeStyle: "short" };
  return new Date(value).toLocaleString(language === "zh" ? "zh-CN" : "en", options);
}

/** Writes the texts of all elements below `root` that name one. */
function translate(root = document) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const attribute of ["aria-label", "placeholder", "title"]) {
    for (const element of root.querySelectorAll(`[data-t-${attribute}]`)) {
      element.setAttribute(attribute, t(element.getAttribute(`data-t-${attribute}`)));
    }
  }
}

export const currentLanguage = () => language;
export const onLanguage = (listener) => listeners.push(listener);

/** Switches the page to a language for good. Without it the browser's language counts, each time. */
export function chooseLanguage(name) {
  setSetting("language", name);
  setLanguage(name);
}

/** Shows the page in a language. */
export function setLanguage(name) {
  language = name in TEXTS ? name : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  translate();
  listeners.forEach((listener) => listener());
}
