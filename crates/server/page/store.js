// What the browser keeps: conversations and settings for good, the API key and what is not sent yet for the session. Nothing of it is sent anywhere else.

const PREFIX = "qwen-burn.";
const CONVERSATION = `${PREFIX}conversation.`;
const SETTING = `${PREFIX}setting.`;
const KEY = `${PREFIX}api-key`;
const DRAFT = `${PREFIX}draft.`;

/** A storage that lasts as long as the page, for browsers that keep nothing. */
class Memory {
  #items = new Map();
  get length() { return this.#items.size; }
  key(i) { return [...this.#items.keys()][i] ?? null; }
  getItem(key) { return this.#items.get(key) ?? null; }
  setItem(key, value) { this.#items.set(key, value); }
  removeItem(key) { this.#items.delete(key); }
}

/** Browsers with storage turned off throw at the mere mention of it. */
function open(name) {
  try {
    const storage = window[name];
    storage.setItem(`${PREFIX}probe`, "");
    storage.removeItem(`${PREFIX}probe`);
    return storage;
  } catch {
    return new Memory();
  }
}

const local = open("localStorage");
const session = open("sessionStorage");

function read(key, storage = local) {
  try {
    return JSON.parse(storage.getItem(key));
  } catch {
    return null;
  }
}

/** False if the browser has no room. */
function write(key, value, storage = local) {
  try {
    storage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Settings for which the browser has no room; they last as long as the page. */
const unkept = new Map();
let tellUnkept = () => {};
/** Calls `tell(isSo)` after each change of a setting: whether there are some that the browser does not keep. */
export const onUnkept = (tell) => { tellUnkept = tell; };

export const setting = (name) => (unkept.has(name) ? unkept.get(name) : read(SETTING + name));

export function setSetting(name, value) {
  unkept.delete(name);
  if (!write(SETTING + name, value)) unkept.set(name, value);
  tellUnkept(unkept.size > 0);
}

/** A key for which the browser has no room. */
let unkeptKey = "";
export const apiKey = () => unkeptKey || (session.getItem(KEY) ?? "");

export function setApiKey(key) {
  unkeptKey = "";
  session.removeItem(KEY);
  try {
    if (key) session.setItem(KEY, key);
  } catch {
    unkeptKey = key;
  }
}

/** What was written in a form and not sent; it outlives a reload of the tab. An empty text or list is forgotten. */
export const draft = (name) => read(DRAFT + name, session);
export const setDraft = (name, value) => (value.length ? write(DRAFT + name, value, session) : session.removeItem(DRAFT + name));

const isConversation = (value) => typeof value?.id === "string" && Array.isArray(value.messages);

/** All conversations, the latest first. */
export function conversations() {
  const keys = Array.from({ length: local.length }, (_, i) => local.key(i));
  const all = keys.filter((key) => key.startsWith(CONVERSATION)).map((key) => read(key)).filter(isConversation);
  return all.sort((a, b) => b.updated - a.updated);
}

/** What is kept of a conversation; null if it is not kept. */
export function storedConversation(id) {
  const found = read(CONVERSATION + id);
  return isConversation(found) ? found : null;
}

/** Whether a conversation that was kept is no longer: another tab has deleted it. */
export const isDeleted = ({ id, updated }) => updated > 0 && !storedConversation(id);

/**
 * Keeps a conversation; false if the browser has no room. `updated` says which version this copy comes from. If another tab has kept
 * another one since, both stay: this one goes on under an id of its own.
 */
export function saveConversation(conversation) {
  const { id, title, updated: before } = conversation;
  const stored = storedConversation(conversation.id);
  if (stored && stored.updated !== before) Object.assign(conversation, { id: newId(), title: `${title} (2)` });
  conversation.updated = Math.max(Date.now(), before + 1);
  if (write(CONVERSATION + conversation.id, conversation)) return true;
  Object.assign(conversation, { id, title, updated: before });
  return false;
}

export const deleteConversation = (id) => local.removeItem(CONVERSATION + id);

/** Calls `changed(id)` when another tab has kept or deleted a conversation; without an id it may be any. */
export const onStoredConversation = (changed) => onStored(CONVERSATION, changed);
/** Calls `changed(name)` when another tab has changed a setting; without a name it may be any. */
export const onStoredSetting = (changed) => onStored(SETTING, (name) => {
  unkept.delete(name);
  changed(name);
});

function onStored(prefix, changed) {
  addEventListener("storage", ({ key }) => {
    if (key === null || key.startsWith(prefix)) changed(key?.slice(prefix.length));
  });
}

function newId() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return `${Date.now()}-${[...random].map((part) => part.toString(36)).join("")}`;
}

/** A conversation without messages; it is kept once it has some, and `updated` is 0 until then. */
export const newConversation = () => ({ id: newId(), title: "", created: Date.now(), updated: 0, messages: [] });
