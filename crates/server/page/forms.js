// Forms among the messages: one that is edited, and what called tools return.

import { el, grow, sendOnEnter } from "./dom.js";
import { t } from "./i18n.js";

/** What stands in forms and is not sent, by conversation and then by form; it stays while another conversation is open. */
const unsent = new Map();

/** The texts of a conversation's forms. */
export function unsentOf(id) {
  if (!unsent.has(id)) unsent.set(id, new Map());
  return unsent.get(id);
}

/** Forgets the texts of a conversation, or keeps them for it under a new id. */
export function moveUnsent(id, next) {
  if (next) unsent.set(next, unsentOf(id));
  unsent.delete(id);
}

/** Where the text of a form in place of message `i` is kept. Versions of a message have a form each. */
export const editKey = ({ content }, i) => `edit ${i} ${content}`;

/** A form in place of message `i`, with its text in `texts`. `send(text)` is not called while `setBusy` has it busy. */
export function editView(message, i, texts, { send, close }) {
  const key = editKey(message, i);
  const text = el("textarea", { id: `edit-${i}`, "aria-label": t("edit") });
  text.value = texts.get(key);
  text.addEventListener("input", () => {
    texts.set(key, text.value);
    grow(text);
  });
  requestAnimationFrame(() => grow(text));
  const { role } = message;
  const isAnswer = role === "assistant";
  const submit = el("button", { type: "submit", class: "primary" }, t(isAnswer ? "save" : "send"));
  const form = el("form", { class: `message ${role} edit` }, text,
    el("div", { class: "row" },
      submit,
      el("button", { type: "button", onclick: close }, t("cancel"))));
  if (!isAnswer) text.addEventListener("keydown", sendOnEnter(() => form.requestSubmit()));
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    // It stops no answer as well.
    event.stopPropagation();
    close();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (text.value.trim() && !submit.disabled) send(text.value);
  });
  return { element: form, setBusy: (isBusy) => { submit.disabled = isBusy; } };
}

/** A form for what the called tools return, which is kept in `texts`; `send(messages)` gets it. */
export function resultsView({ tool_calls: calls }, texts, send) {
  const key = ({ id }) => `result ${id}`;
  const fields = calls.map((call) => {
    const oninput = ({ target }) => texts.set(key(call), target.value);
    const field = el("textarea", { id: `result-${call.id}`, rows: "2", required: true, oninput });
    field.value = texts.get(key(call)) ?? "";
    return [call, field];
  });
  const form = el("form", { class: "message tool" },
    ...fields.map(([call, field]) =>
      el("label", { for: field.id }, t("tool_result", { name: call.function.name }), field)),
    el("div", { class: "row" }, el("button", { type: "submit", class: "primary" }, t("send_results"))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    for (const call of calls) texts.delete(key(call));
    send(fields.map(([call, field]) => ({ role: "tool", tool_call_id: call.id, content: field.value })));
  });
  return form;
}
