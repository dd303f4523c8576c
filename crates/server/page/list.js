// The list of conversations: searched, opened, and taken from files.

import { byId, el } from "./dom.js";
import { read } from "./export.js";
import { date, t } from "./i18n.js";
import { conversations, saveConversation } from "./store.js";

/** What chat.js tells of a conversation, and how it shows one. */
let chat = { isOpen: () => false, isRunning: () => false, show: () => {} };

/** Makes the list work. */
export function startList(of) {
  chat = of;
  byId("search").addEventListener("input", drawList);
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", ({ target }) => take([...target.files]));
  byId("list-toggle").addEventListener("click", () => setList(!byId("chat").classList.contains("with-list")));
}

/** Shows the list, or hides it, where the screen has no room for both. */
export function setList(isShown) {
  byId("chat").classList.toggle("with-list", isShown);
  byId("list-toggle").setAttribute("aria-expanded", String(isShown));
}

/** Keeps conversations that were saved as files, and opens the last one. */
async function take(files) {
  const wrong = [];
  let last = null;
  for (const file of files) {
    const conversation = read(await file.text());
    if (conversation && saveConversation(conversation)) last = conversation;
    else wrong.push(conversation ? t("full") : t("import_wrong", { name: file.name }));
  }
  byId("import-file").value = "";
  byId("import-error").textContent = wrong.join(" ");
  byId("search").value = "";
  if (last) chat.show(last);
  else drawList();
}

/** Whether a conversation has what is searched for, in its title or in a message. */
function isFound({ title, messages }, wanted) {
  return [title, ...messages.map(({ content }) => content)].some((text) => (text ?? "").toLowerCase().includes(wanted));
}

/** Draws the conversations that are searched for, the latest first. */
export function drawList() {
  const all = conversations();
  const wanted = byId("search").value.trim().toLowerCase();
  const items = all.filter((conversation) => isFound(conversation, wanted)).map((conversation) => {
    const title = conversation.title || t("untitled");
    const button = el("button", {
      type: "button",
      "data-id": conversation.id,
      "aria-current": chat.isOpen(conversation) ? "true" : null,
      onclick: () => chat.show(conversation),
    }, el("span", {}, title), el("small", {}, chat.isRunning(conversation) ? t("answering") : date(conversation.updated)));
    return el("li", {}, button);
  });
  // Other tabs have it drawn, too, while somebody is in it.
  const focused = document.activeElement?.dataset.id;
  byId("conversations").replaceChildren(...items);
  if (focused) items.map(({ firstChild }) => firstChild).find(({ dataset }) => dataset.id === focused)?.focus();
  byId("no-conversations").textContent = t(all.length ? "none_found" : "no_conversations");
  byId("no-conversations").hidden = items.length > 0;
}
