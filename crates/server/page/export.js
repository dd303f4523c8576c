// Files of a conversation.

import { el } from "./dom.js";
import { date, t } from "./i18n.js";
import { statsText } from "./message.js";
import { newConversation } from "./store.js";
import { areVersions } from "./versions.js";

const ROLES = ["user", "assistant", "tool"];

/** Lets the browser save a conversation as `json` or `md`. */
export function save(conversation, format) {
  const isJson = format === "json";
  const text = isJson ? `${JSON.stringify(conversation, null, 2)}\n` : asMarkdown(conversation);
  const url = URL.createObjectURL(new Blob([text], { type: isJson ? "application/json" : "text/markdown" }));
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40);
  const link = el("a", { href: url, download: `${name || "chat"}.${format}` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A conversation that was saved as JSON, under a new id; null if the text is none. */
export function read(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    return null;
  }
  const isText = (value) => typeof value === "string";
  const isCall = (call) => isText(call?.function?.name) && isText(call.function.arguments);
  const isMessage = (message) => ROLES.includes(message?.role) && isText(message.content)
    && (message.tool_calls ?? []).every?.(isCall) && (message.reasoning === undefined || isText(message.reasoning))
    && (message.versions === undefined || areVersions(message.versions, isMessage));
  if (!Array.isArray(found?.messages) || !found.messages.length || !found.messages.every(isMessage)) return null;
  const title = isText(found.title) ? found.title : "";
  const created = Number.isFinite(found.created) ? found.created : Date.now();
  return { ...newConversation(), created, title, system: isText(found.system) ? found.system : undefined, messages: found.messages };
}

/** The messages under headings; thoughts and calls in blocks. */
function asMarkdown(conversation) {
  const parts = [`# ${conversation.title}`, `*${date(conversation.created)}*`];
  if (conversation.system) parts.push(`## ${t("role_system")}`, conversation.system);
  for (const message of conversation.messages) {
    parts.push(`## ${t(`role_${message.role}`)}`);
    const thoughts = message.reasoning?.trim();
    if (thoughts) parts.push(`> **${t("reasoning")}**`, thoughts.replace(/^/gm, "> "));
    if (message.content) parts.push(message.content);
    for (const call of message.tool_calls ?? []) {
      parts.push(`**${t("tool_call", { name: call.function.name })}**`, fenced(call.function.arguments));
    }
    if (message.error) parts.push(`**${message.error}**`);
    if (message.role === "assistant") parts.push(`*${statsText(message)}*`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** In a fence that is longer than any in the text. */
function fenced(text) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([marks]) => marks.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}json\n${text}\n${fence}`;
}
