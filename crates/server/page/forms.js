// Forms among the messages: one that is edited, and what called tools return.

import { el, grow, sendOnEnter } from "./dom.js";
import { t } from "./i18n.js";

/** What stands in the fields for results, by call. */
const results = new WeakMap();

/** The message of `editing` as a form, which keeps its text there. `send(text)` is not called while the conversation is busy. */
export function editView(editing, isBusy, { send, close }) {
  const text = el("textarea", { id: "edit-text", "aria-label": t("edit") });
  text.value = editing.text;
  text.addEventListener("input", () => {
    editing.text = text.value;
    grow(text);
  });
  requestAnimationFrame(() => grow(text));
  const { role } = editing.message;
  const isAnswer = role === "assistant";
  const form = el("form", { class: `message ${role} edit` }, text,
    el("div", { class: "row" },
      el("button", { type: "submit", class: "primary", disabled: isBusy }, t(isAnswer ? "save" : "send")),
      el("button", { type: "button", onclick: close }, t("cancel"))));
  if (!isAnswer) text.addEventListener("keydown", sendOnEnter(() => form.requestSubmit()));
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) close();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (text.value.trim() && !isBusy) send(text.value);
  });
  return form;
}

/** A form for what the called tools return; `send(messages)` gets it. */
export function resultsView({ tool_calls: calls }, send) {
  const fields = calls.map((call) => {
    const oninput = ({ target }) => results.set(call, target.value);
    const field = el("textarea", { id: `result-${call.id}`, rows: "2", required: true, oninput });
    field.value = results.get(call) ?? "";
    return [call, field];
  });
  const form = el("form", { class: "message tool" },
    ...fields.map(([call, field]) =>
      el("label", { for: field.id }, t("tool_result", { name: call.function.name }), field)),
    el("div", { class: "row" }, el("button", { type: "submit", class: "primary" }, t("send_results"))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(fields.map(([call, field]) => ({ role: "tool", tool_call_id: call.id, content: field.value })));
  });
  return form;
}
