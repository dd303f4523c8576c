// Versions of a conversation's end. What an edited question or a retry replaces stays within reach: the first message of an end has
// `versions`, `{ at, ends }`. Each of `ends` is a list of messages; the one that is shown, number `at`, is null there.

/** Whether an answer has nothing in it. */
export const isEmpty = ({ content, reasoning, tool_calls: calls }) => !content && !reasoning && !calls?.length;

/** Makes what `messages` replace of `old` an earlier version, unless it is an answer with nothing in it. */
export function keepReplaced(old, messages) {
  const i = messages.findIndex((message, at) => message !== old[at]);
  if (i < 0 || i >= old.length) return;
  const { versions, ...first } = old[i];
  const { at, ends } = versions ?? { at: 0, ends: [null] };
  const isLost = i === old.length - 1 && first.role === "assistant" && isEmpty(first);
  const kept = isLost ? ends.toSpliced(at, 1) : ends.with(at, [first, ...old.slice(i + 1)]);
  if (kept.length) messages[i].versions = { at: kept.length, ends: [...kept, null] };
}

/** `messages` with another version of the end that begins at message `i`. */
export function withVersion(messages, i, next) {
  const { versions: { at, ends }, ...first } = messages[i];
  const [chosen, ...rest] = ends[next];
  const kept = ends.with(at, [first, ...messages.slice(i + 1)]).with(next, null);
  return [...messages.slice(0, i), { ...chosen, versions: { at: next, ends: kept } }, ...rest];
}

/** Whether a file has versions that can be shown; `isMessage` tells messages. */
export function areVersions(versions, isMessage) {
  const { at, ends } = versions ?? {};
  const isEnd = (end, i) => (i === at ? end === null : Array.isArray(end) && end.length > 0 && end.every(isMessage));
  return Array.isArray(ends) && Number.isInteger(at) && at in ends && ends.every(isEnd);
}
