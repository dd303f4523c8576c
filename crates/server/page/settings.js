// Sampling, system prompt and tools: a form whose empty fields leave the server's defaults in force.

import { byId, el } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { onStoredSetting, setSetting, setting } from "./store.js";

/** Fields with numbers: name, least, most, step. The names are the API's. */
const NUMBERS = [
  ["temperature", 0, 2, "any"],
  ["top_p", 0, 1, "any"],
  ["top_k", -1, null, 1],
  ["min_p", 0, 1, "any"],
  ["max_tokens", 1, null, 1],
  ["repetition_penalty", 0, null, "any"],
  ["presence_penalty", -2, 2, "any"],
  ["frequency_penalty", -2, 2, "any"],
  ["seed", null, null, 1],
];
const TEXTS = ["system", "stop", "tools", "thinking"];
const NAMES = [...NUMBERS.map(([name]) => name), ...TEXTS];

let values = {};
const value = (name) => (typeof values[name] === "string" ? values[name] : "");
/** Another tab may have changed them. */
const load = () => { values = setting("request") ?? {}; };
load();
const field = (name) => byId(`set-${name}`);

/** The settings' part of a request. */
export function requestSettings() {
  const body = {};
  for (const [name] of NUMBERS) if (value(name).trim()) body[name] = Number(value(name));
  const stop = value("stop").split("\n").filter((line) => line);
  if (stop.length) body.stop = stop;
  if (value("thinking")) body.chat_template_kwargs = { enable_thinking: value("thinking") === "on" };
  if (value("tools").trim()) body.tools = JSON.parse(value("tools"));
  return body;
}

/** A system message, or none. */
export const systemMessages = () => (value("system").trim() ? [{ role: "system", content: value("system") }] : []);

/** What differs from the server's defaults, for the line under the question. */
export function settingsSummary() {
  const set = NUMBERS.map(([name]) => name).filter((name) => value(name).trim()).map((name) => `${name} ${value(name)}`);
  if (value("system").trim()) set.unshift(t("system_is_set"));
  if (value("tools").trim()) set.push(t("tools_are_set"));
  if (value("stop").trim()) set.push(t("stop_is_set"));
  if (value("thinking")) set.push(`${t("set_thinking")}: ${t(value("thinking"))}`);
  return set.join(" · ");
}

/** Null, or why the tools are not tools. */
function toolsError(text) {
  if (!text.trim()) return null;
  try {
    const tools = JSON.parse(text);
    const isTool = (tool) => tool?.type === "function" && typeof tool.function?.name === "string";
    return Array.isArray(tools) && tools.every(isTool) ? null : t("tools_shape");
  } catch (error) {
    return t("tools_json", { error: error.message });
  }
}

/** Makes the form work; `changed` is called after each change that was kept. */
export function startSettings(changed) {
  const dialog = byId("settings");
  for (const [name, min, max, step] of NUMBERS) {
    const input = el("input", { id: `set-${name}`, type: "number", min, max, step, inputmode: "decimal" });
    byId("numbers").append(el("label", { for: input.id, title: name }, el("span", { "data-t": `set_${name}` }), input));
  }
  /** What stood in the form at first. */
  let shown = {};
  const show = () => {
    load();
    for (const name of NAMES) field(name).value = value(name);
    shown = Object.fromEntries(NAMES.map((name) => [name, value(name)]));
    byId("settings-error").hidden = true;
  };
  const placeholders = () => {
    for (const [name] of NUMBERS) field(name).placeholder = t("default");
  };
  onLanguage(placeholders);
  byId("settings-open").addEventListener("click", () => {
    show();
    dialog.showModal();
  });
  byId("settings-cancel").addEventListener("click", () => dialog.close());
  byId("settings-reset").addEventListener("click", () => {
    for (const name of NAMES) field(name).value = "";
  });
  byId("settings-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const wrong = toolsError(field("tools").value);
    byId("settings-error").textContent = wrong ?? "";
    byId("settings-error").hidden = !wrong;
    if (wrong) return;
    load();
    const edited = NAMES.filter((name) => field(name).value !== shown[name]);
    values = { ...values, ...Object.fromEntries(edited.map((name) => [name, field(name).value])) };
    setSetting("request", values);
    dialog.close();
    changed();
  });
  onStoredSetting((name) => {
    if (name !== undefined && name !== "request") return;
    load();
    changed();
  });
}
