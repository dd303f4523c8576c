// The chat: conversations in a list, one of them open. An answer goes on while another conversation is open.

import { announce, byId, el, isFree, isLost, sendOnEnter } from "./dom.js";
import { empty, keepDraft } from "./draft.js";
import { save } from "./export.js";
import { editKey, editView, moveUnsent, resultsView, unsentOf } from "./forms.js";
import { number, onLanguage, t } from "./i18n.js";
import { drawList, setList, startList } from "./list.js";
import { action, answerOf, fill, forApi, messageView } from "./message.js";
import { copyButton } from "./markdown.js";
import { requestSettings, settingsSummary, systemMessages } from "./settings.js";
import { deleteConversation, isDeleted, newConversation, onStoredConversation, saveConversation, storedConversation } from "./store.js";
import { isElsewhere, startTabs, stopElsewhere, tellBegun, tellEnded } from "./tabs.js";
import { isEmpty, keepReplaced, withVersion } from "./versions.js";

/** Milliseconds between two versions of an answer that is being written, for other tabs and in case this one ends. */
const KEEP_EVERY = 1000;

/** The open conversation, the views of its messages, and the forms in place of those that are edited. */
let open = newConversation();
let views = new Map();
let forms = new Map();
/** Answers that are being written in this tab, by conversation: `{ conversation, message, old, controller }`; `old` are the messages before. */
const running = new Map();
let chosenModel = () => "";
let limitOf = () => undefined;

const isOpen = (conversation) => conversation.id === open.id;
const isRunning = ({ id }) => running.has(id) || isElsewhere(id);

/** Makes the view work; `model` tells the model that is chosen, and `limit(model)` how many tokens it takes. */
export function startChat(model, limit) {
  chosenModel = model;
  limitOf = limit;
  const question = byId("question");
  keepDraft(question);
  question.addEventListener("keydown", sendOnEnter(() => byId("ask").requestSubmit()));
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(question.value);
  });
  byId("stop").addEventListener("click", stopOpen);
  byId("new-chat").addEventListener("click", () => {
    show(newConversation());
    question.focus();
  });
  byId("export-json").addEventListener("click", () => save(open, "json"));
  byId("export-md").addEventListener("click", () => save(open, "md"));
  byId("delete-chat").addEventListener("click", remove);
  byId("rename-chat").addEventListener("click", rename);
  byId("to-end").addEventListener("click", scrollDown);
  byId("log").addEventListener("scroll", drawEnd);
  // The list above it, and the keyboard of a phone, take room.
  new ResizeObserver(drawEnd).observe(byId("log"));
  startList({ isOpen, isRunning, show });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isFree("chat") && !event.isComposing) stopOpen();
  });
  addEventListener("pagehide", leave);
  addEventListener("pageshow", ({ persisted }) => {
    if (!persisted) return;
    takeUp();
    drawMessages();
  });
  onLanguage(() => {
    for (const drawn of [views, forms]) drawn.clear();
    drawMessages();
    drawList();
  });
  onStoredConversation(takeUp);
  startTabs({
    own: () => [...running.keys()],
    stop,
    changed: (id) => {
      reload();
      if (id === undefined || id === open.id) drawMessages();
      drawList();
    },
  });
}

/** Shows what another tab has made of a conversation; without an id it may be any. */
function takeUp(id) {
  for (const { conversation } of running.values()) if (isDeleted(conversation)) forget(conversation);
  if (isDeleted(open)) forget(open);
  else if (id === undefined || id === open.id) reload();
  drawList();
}

/** Reads the open conversation again, where another tab has written it. */
function reload() {
  const stored = storedConversation(open.id);
  if (!stored || running.has(open.id) || stored.updated === open.updated) return;
  const follows = isAtEnd();
  // Messages stay the same ones, and so do what is drawn of them, a selection there, and the word that an input method writes.
  open = { ...stored, messages: stored.messages.map((message, i) => renewed(open.messages[i], message)) };
  drawMessages();
  if (follows) scrollDown();
}

/** The message `old` as `message` has it, or `message` where there was none like it. */
function renewed(old, message) {
  if (old?.role !== message.role) return message;
  for (const name of Object.keys(old)) if (!(name in message)) delete old[name];
  return Object.assign(old, message);
}

const stop = (id) => running.get(id)?.controller.abort();

function stopOpen() {
  stop(open.id);
  if (isElsewhere(open.id)) stopElsewhere(open.id);
}

function remove() {
  if (!open.messages.length || !confirm(t("confirm_delete"))) return;
  deleteConversation(open.id);
  forget(open);
}

/** Has nothing more to do with a conversation that is deleted. */
function forget({ id }) {
  stop(id);
  moveUnsent(id);
  if (running.delete(id)) tellEnded(id);
  if (id === open.id) show(newConversation());
}

function rename() {
  const title = prompt(t("rename_to"), open.title)?.trim();
  if (!title) return;
  open.title = title;
  keep(open);
  drawList();
}

/** Opens a conversation. */
function show(conversation) {
  const { id } = conversation;
  if (id !== open.id) open = running.get(id)?.conversation ?? storedConversation(id) ?? conversation;
  byId("full").hidden = true;
  byId("answer-error").textContent = "";
  drawMessages();
  drawList();
  setList(false);
  scrollDown();
}

function drawMessages() {
  const before = { views, forms };
  [views, forms] = [new Map(), new Map()];
  const texts = unsentOf(open.id);
  const focused = document.activeElement;
  const place = [...byId("messages").children].findIndex((child) => child.contains(focused));
  const written = focused?.matches("#messages textarea") ? focused : null;
  const last = open.messages.at(-1);
  const runs = isRunning(open);
  const elements = open.messages.map((message, i) => {
    if (texts.has(editKey(message, i))) {
      const form = before.forms.get(message) ?? editForm(message, i, texts);
      forms.set(message, form);
      form.setBusy(runs);
      return form.element;
    }
    const view = before.views.get(message) ?? messageView(message);
    views.set(message, view);
    view.act(actions(message, i));
    view.update(runs && message === last);
    return view.element;
  });
  if (last?.tool_calls?.length && !runs && !forms.size) {
    elements.push(resultsView(last, texts, (found) => answer([...open.messages, ...found])));
  }
  replaceOthers(byId("messages"), elements);
  const area = written && byId(written.id);
  if (area && area !== document.activeElement) {
    area.focus();
    area.setSelectionRange(written.selectionStart, written.selectionEnd);
  }
  byId("welcome").hidden = open.messages.length > 0;
  drawControls();
  if (!isLost(focused) || document.activeElement?.matches("textarea")) return;
  const same = focused?.dataset.do && buttonOf(place, focused.dataset.do);
  if (same) same.focus();
  else focusOnQuestion();
}

/** What may be done with message `i`, as a button. */
const buttonOf = (i, key) => byId("messages").children[i]?.querySelector(`footer [data-do="${key}"]`);

/** Where somebody goes on who has sent, stopped or deleted something. A touch screen would show its keyboard. */
function focusOnQuestion() {
  byId(matchMedia("(pointer: coarse)").matches ? "log" : "question").focus({ preventScroll: true });
}

/** Replaces the children of `parent` that are not these, so that the others keep the focus and what is selected in them. */
function replaceOthers(parent, elements) {
  elements.forEach((element, i) => {
    const child = parent.children[i];
    if (!child) parent.append(element);
    else if (child !== element) child.replaceWith(element);
  });
  while (parent.children.length > elements.length) parent.lastElementChild.remove();
}

function drawControls() {
  const runs = isRunning(open);
  byId("stop").hidden = !runs;
  byId("send").hidden = runs;
  for (const id of ["rename-chat", "export-json", "export-md", "delete-chat"]) byId(id).disabled = !open.messages.length;
  // The tab that has it answered writes it.
  byId("rename-chat").disabled ||= isElsewhere(open.id);
  byId("settings-summary").textContent = settingsSummary();
  byId("context-use").textContent = contextUse();
  drawEnd();
}

/** How much of what the chosen model takes the conversation has, as its last answer tells. */
function contextUse() {
  const known = open.messages.findLast(({ stats }) => stats?.prompt)?.stats;
  const limit = limitOf(chosenModel());
  if (!known || !limit) return "";
  return t("context_use", { tokens: number(known.prompt + (known.tokens ?? 0)), limit: number(limit) });
}

/** The way back to the end, where it is out of sight. */
function drawEnd() {
  byId("to-end").hidden = isAtEnd();
}

/** After a change of settings. */
export const settingsChanged = drawControls;

function actions(message, i) {
  const buttons = [];
  const runs = isRunning(open);
  if (message.content && !(runs && message === open.messages.at(-1))) buttons.push(copyButton(message.content));
  if (runs) return buttons;
  if (message.versions) buttons.unshift(versionsView(message.versions, i));
  const isAnswer = message.role === "assistant";
  if (message.role === "user" || (isAnswer && message.content)) {
    buttons.push(action("edit", () => {
      unsentOf(open.id).set(editKey(message, i), message.content);
      drawMessages();
      byId(`edit-${i}`).focus();
    }));
  }
  if (isAnswer && message === open.messages.at(-1) && isCut(message)) buttons.push(action("go_on", () => goOn(message)));
  if (isAnswer) buttons.push(action("retry", () => answer(open.messages.slice(0, i))));
  return buttons;
}

/** Leads to what an edit or a retry has replaced. */
function versionsView({ at, ends }, i) {
  const turn = (sign, key, next) => el("button", {
    type: "button",
    class: "small",
    "aria-label": t(key),
    title: t(key),
    disabled: !(next in ends),
    onclick: () => {
      open.messages = withVersion(open.messages, i, next);
      keep(open);
      drawMessages();
      const buttons = [...byId("messages").children[i].querySelectorAll(".versions button")];
      const button = (next > at ? buttons.reverse() : buttons).find(({ disabled }) => !disabled);
      (button ?? byId(`edit-${i}`)).focus();
    },
  }, sign);
  const which = el("span", {}, `${at + 1}/${ends.length}`);
  return el("span", { class: "versions" }, turn("‹", "version_earlier", at - 1), which, turn("›", "version_later", at + 1));
}

/** Whether an answer may go on from where it is. */
function isCut({ content, edited, stopped, error, stats, tool_calls: calls }) {
  return Boolean(content.trim()) && !calls?.length && Boolean((edited && !stats) || stopped || error || stats?.finish === "length");
}

/** The form of the message that is edited. Sending a question asks it anew; an answer is only written otherwise. */
const editForm = (message, i, texts) => editView(message, i, texts, {
  close: () => {
    texts.delete(editKey(message, i));
    drawMessages();
    buttonOf(i, "edit")?.focus();
  },
  send: (content) => {
    texts.delete(editKey(message, i));
    const before = open.messages.slice(0, i);
    if (message.role !== "assistant") {
      answer([...before, { role: "user", content }]);
      return;
    }
    if (content === message.content) {
      drawMessages();
      buttonOf(i, "edit")?.focus();
      return;
    }
    const edited = { ...message, content, edited: true, stopped: false, error: null, stats: null, before: 0 };
    // What came after it is part of both versions.
    const messages = [...before, edited, ...structuredClone(open.messages.slice(i + 1))];
    keepReplaced(open.messages, messages);
    open.messages = messages;
    keep(open);
    drawMessages();
    buttonOf(i, "edit")?.focus();
  },
});

function ask(text) {
  if (!text.trim() || isRunning(open)) return;
  empty(byId("question"));
  answer([...open.messages, { role: "user", content: text }]);
}

/** Has the model answer `messages`, which become the conversation's. */
function answer(messages) {
  const model = chosenModel();
  return request([...messages, answerOf(model)], { model, messages: messages.map(forApi) });
}

/** Has the chosen model write the rest of an answer. */
function goOn(message) {
  const before = (message.before ?? 0) + (message.stats?.tokens ?? 0);
  Object.assign(message, { model: chosenModel(), stopped: false, error: null, stats: null, before });
  const messages = open.messages.map(forApi);
  return request(open.messages, { model: message.model, messages, continue_final_message: true, add_generation_prompt: false });
}

/** Fills the last of `messages`, which become the conversation's, by a request. */
async function request(messages, asked) {
  const conversation = open;
  const message = messages.at(-1);
  const old = open.messages;
  const system = systemMessages();
  const body = { ...asked, messages: [...system, ...asked.messages], ...requestSettings() };
  const controller = new AbortController();
  const own = { conversation, message, old, controller };
  running.set(conversation.id, own);
  const first = messages.find(({ role }) => role === "user")?.content ?? "";
  conversation.title ||= [...first.trim().split("\n")[0]].slice(0, 60).join("");
  conversation.system = system[0]?.content;
  keepReplaced(old, messages);
  conversation.messages = messages;
  byId("answer-error").textContent = "";
  tellBegun(conversation.id);
  keep(conversation);
  drawMessages();
  drawList();
  scrollDown();
  announce(t("answering"));
  let kept = Date.now();
  await fill(message, body, controller.signal, () => {
    if (Date.now() - kept > KEEP_EVERY && !isDeleted(conversation)) {
      kept = Date.now();
      keep(conversation);
    }
    if (!isOpen(conversation)) return;
    const follows = isAtEnd();
    views.get(message)?.later();
    if (follows) requestAnimationFrame(scrollDown);
  });
  if (running.get(conversation.id) !== own) return;
  if (isDeleted(conversation)) {
    forget(conversation);
    return;
  }
  const isVain = settle(own);
  drawList();
  if (!isOpen(conversation)) return;
  const follows = isAtEnd();
  drawMessages();
  if (follows) scrollDown();
  if (isVain) byId("answer-error").textContent = message.error ?? "";
  announce(message.error ?? (message.stopped ? t("stat_stopped") : t("answered")));
}

/** Keeps an answer that has ended. Whether it was a retry that brought nothing: that leaves what was there before. */
function settle({ conversation, message, old }) {
  const isVain = isEmpty(message) && Boolean(message.versions) && Boolean(message.error || message.stopped);
  if (isVain) conversation.messages = old;
  running.delete(conversation.id);
  keep(conversation);
  tellEnded(conversation.id);
  return isVain;
}

/** The page goes away, and its requests with it: answers stay as far as they have come. */
function leave() {
  for (const own of [...running.values()]) {
    own.controller.abort();
    own.message.stopped = true;
    if (isDeleted(own.conversation)) forget(own.conversation);
    else settle(own);
  }
}

function keep(conversation) {
  const { id } = conversation;
  byId("full").hidden = saveConversation(conversation);
  if (id !== conversation.id) moveUnsent(id, conversation.id);
  if (id === conversation.id || !running.has(id)) return;
  // It goes on under an id of its own.
  running.set(conversation.id, running.get(id));
  running.delete(id);
  tellEnded(id);
  tellBegun(conversation.id);
}

const isAtEnd = () => byId("log").scrollHeight - byId("log").scrollTop - byId("log").clientHeight < 80;

function scrollDown() {
  byId("log").scrollTop = byId("log").scrollHeight;
}
