// What the browser keeps: conversations and settings for good, the API key for the session. Nothing of it is sent anywhere else.

const PREFIX = "qwen-burn.";
const CONVERSATION = `${PREFIX}conversation.`;
const SETTING = `${PREFIX}setting.`;
const KEY = `${PREFIX}api-key`;

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

function read(key) {
  try {
    return JSON.parse(local.getItem(key));
  } catch {
    return null;
  }
}

/** False if the browser has no room. */
function write(key, value) {
  try {
    local.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export const setting = (name) => read(SETTING + name);
export const setSetting = (name, value) => write(SETTING + name, value);

export const apiKey = () => session.getItem(KEY) ?? "";
export const setApiKey = (key) => (key ? session.setItem(KEY, key) : session.removeItem(KEY));

const isConversation = (value) => typeof value?.id === "string" && Array.isArray(value.messages);

/** All conversations, the latest first. */
export function conversations() {
  const keys = Array.from({ length: local.length }, (_, i) => local.key(i));
  const all = keys.filter((key) => key.startsWith(CONVERSATION)).map(read).filter(isConversation);
  return all.sort((a, b) => b.updated - a.updated);
}

export const saveConversation = (conversation) => write(CONVERSATION + conversation.id, conversation);
export const deleteConversation = (id) => local.removeItem(CONVERSATION + id);

/** A conversation without messages; it is kept once it has some. */
export function newConversation() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  const id = `${Date.now()}-${[...random].map((part) => part.toString(36)).join("")}`;
  return { id, title: "", created: Date.now(), updated: Date.now(), messages: [] };
}
