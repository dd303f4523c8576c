// Other tabs of this browser: which conversations they have answered right now. Their texts come through the store.

const channel = openChannel();
/** Milliseconds in which a tab that is there has said so. */
const SOON = 300;
const others = new Set();

/** A browser that has no such channel, or refuses it, has a page that knows of no other tab. */
function openChannel() {
  try {
    return new BroadcastChannel("qwen-burn");
  } catch {
    return Object.assign(new EventTarget(), { postMessage() {} });
  }
}

/** Whether another tab has this conversation answered. */
export const isElsewhere = (id) => others.has(id);
export const tellBegun = (id) => channel.postMessage({ type: "begun", id });
export const tellEnded = (id) => channel.postMessage({ type: "ended", id });
/** Ends an answer in the tab that asked for it. */
export const stopElsewhere = (id) => channel.postMessage({ type: "stop", id });

/**
 * Listens. `own()` are the ids that are answered here, `stop(id)` ends one, and `changed(id)` is called
 * when another tab begins or ends one; without an id it may be any.
 */
export function startTabs({ own, stop, changed }) {
  const takes = {
    asked: () => own().forEach(tellBegun),
    begun: (id) => others.add(id),
    ended: (id) => others.delete(id),
    stop,
  };
  channel.addEventListener("message", ({ data: { type, id } }) => {
    takes[type]?.(id);
    if (type === "begun" || type === "ended") changed(id);
  });
  const ask = () => channel.postMessage({ type: "asked" });
  // A tab that has crashed has not told of an end.
  addEventListener("focus", () => {
    if (!others.size) return;
    const before = [...others];
    others.clear();
    ask();
    setTimeout(() => before.every(isElsewhere) || changed(), SOON);
  });
  ask();
}
