// A message of a conversation: how an answer is filled from a stream, and how it looks.

import { chat } from "./api.js";
import { el, perFrame } from "./dom.js";
import { number, t } from "./i18n.js";
import { codeBlock, markdown } from "./markdown.js";

export const answerOf = (model) => ({ role: "assistant", model, content: "", reasoning: "", tool_calls: [], stats: null });

/** What the API takes of a message. Reasoning is not sent back: templates leave it out. */
export function forApi(message) {
  const { role, content, tool_calls, tool_call_id } = message;
  if (role === "tool") return { role, content, tool_call_id };
  if (!tool_calls?.length) return { role, content };
  return { role, content: content || null, tool_calls };
}

/** Fills `answer` from a stream, and says so at each change. Never throws: what went wrong becomes part of the answer. */
export async function fill(answer, body, signal, changed) {
  try {
    const result = await chat(body, signal, (delta, soFar) => {
      answer.content += delta.content ?? "";
      answer.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
      for (const call of delta.tool_calls ?? []) addCall(answer.tool_calls, call);
      answer.stats = stats(soFar);
      changed();
    });
    answer.stats = stats(result);
    if (!result.finish) answer.error = t("broken_off");
  } catch (error) {
    if (signal.aborted) answer.stopped = true;
    else answer.error = error.status || !(error instanceof TypeError) ? error.message : t("unreachable");
  }
  changed();
}

function addCall(calls, { index, id, function: part }) {
  calls[index] ??= { id: id ?? "", type: "function", function: { name: "", arguments: "" } };
  calls[index].function.name += part?.name ?? "";
  calls[index].function.arguments += part?.arguments ?? "";
}

function stats({ usage, ttft, seconds, finish }) {
  const tokens = usage?.completion_tokens ?? null;
  // The first token's time is the prompt's.
  const rate = tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  return { tokens, prompt: usage?.prompt_tokens ?? null, ttft, rate, finish };
}

/** What stands under an answer: `12 tokens · 34.5 tokens/s · first token after 0.12 s`. `before` are tokens that it had before it went on. */
export function statsText({ stats: known, before = 0, stopped, edited, model }) {
  const parts = [];
  if (model) parts.push(model);
  const tokens = before + (known?.tokens ?? 0);
  if (tokens) parts.push(t("stat_tokens", { tokens: number(tokens) }));
  if (known?.rate) parts.push(t("stat_rate", { rate: number(known.rate, 1) }));
  if (known?.ttft !== null && known?.ttft !== undefined) parts.push(t("stat_ttft", { seconds: number(known.ttft, 2) }));
  if (known?.finish === "length") parts.push(t("stat_length"));
  if (stopped) parts.push(t("stat_stopped"));
  if (edited) parts.push(t("stat_edited"));
  return parts.join(" · ");
}

/** Gives `parent` the children of `source`, from the first one that differs, so that a selection in the others survives. */
function patch(parent, source) {
  const [fresh, old] = [[...source.childNodes], [...parent.childNodes]];
  let same = 0;
  while (same < Math.min(fresh.length, old.length) && old[same].isEqualNode(fresh[same])) same += 1;
  old.slice(same).forEach((node) => node.remove());
  parent.append(...fresh.slice(same));
}

/** A button below a message. */
export const action = (key, onclick) => el("button", { type: "button", class: "small", "data-do": key, onclick }, t(key));

/**
 * The element of a message. `update(isRunning)` draws it at once, `later()` with the next frame; `act(actions)` gives it these buttons.
 */
export function messageView(message) {
  const reasoning = el("div", { class: "text" });
  const summary = el("summary", {}, t("reasoning"));
  const thoughts = el("details", { class: "reasoning", hidden: true }, summary, reasoning);
  const body = el("div", { class: "text" });
  const calls = el("div", { class: "calls" });
  const error = el("p", { class: "error", role: "alert", hidden: true });
  const info = el("span", { class: "stats" });
  const foot = el("footer", {}, info);
  const who = t(`role_${message.role}`);
  const head = el("h3", {}, who);
  const element = el("article", { class: `message ${message.role}`, "aria-label": who }, head, thoughts, body, calls, error, foot);
  let isRunning = false;

  const draw = () => {
    thoughts.hidden = !message.reasoning?.trim();
    if (!thoughts.hidden) patch(reasoning, markdown(message.reasoning.trim()));
    summary.textContent = isRunning && !message.content ? t("reasoning_now") : t("reasoning");
    patch(body, message.role === "assistant" ? markdown(message.content) : el("div", {}, message.content));
    body.classList.toggle("waiting", isRunning && !message.content && !message.reasoning);
    patch(calls, el("div", {}, ...(message.tool_calls ?? []).map(callView)));
    error.textContent = message.error ?? "";
    error.hidden = !message.error;
    info.textContent = message.role === "assistant" ? statsText(message) : "";
    element.setAttribute("aria-busy", String(isRunning));
    element.classList.toggle("running", isRunning);
  };
  const frames = perFrame(draw);
  const update = (running) => {
    isRunning = running;
    frames.now();
  };
  update(false);
  return { element, update, later: frames.later, act: (actions) => foot.replaceChildren(info, ...actions) };
}

/** A call with its arguments; broken JSON is shown as it is. */
function callView({ function: { name, arguments: text } }) {
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // Still being written, or not JSON.
  }
  return el("section", { class: "call" }, el("h4", {}, t("tool_call", { name })), codeBlock(shown, "json"));
}
