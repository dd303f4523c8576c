// Elements without markup: text only ever becomes text nodes, so that nothing a model says is read as HTML.

/** Makes an element. `on…` properties are listeners, the other ones attributes; null and false leave an attribute out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The element of the document with this id. */
export const byId = (id) => document.getElementById(id);

/** `later()` draws once with the next frame, however often it is called; `now()` draws at once and cancels that. */
export function perFrame(draw) {
  let frame = 0;
  const run = () => {
    frame = 0;
    draw();
  };
  return {
    later: () => { frame ||= requestAnimationFrame(run); },
    now: () => {
      cancelAnimationFrame(frame);
      run();
    },
  };
}

/** Whether the keyboard is nowhere, since `element`, which had it, is gone, hidden or out of use. */
export const isLost = (element) =>
  element !== document.body && !(element?.isConnected && element.checkVisibility() && !element.disabled);

/** Says a sentence to screen readers. */
export function announce(sentence) {
  byId("announcer").textContent = sentence;
}

/** Copies text. The clipboard needs HTTPS or localhost; elsewhere a selection is copied as of old. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "away" });
    area.value = text;
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    return copied;
  }
}

/** Whether a view is seen and no dialog is over it. */
export const isFree = (view) => !byId(view).hidden && !document.querySelector("dialog[open]");

/** Lets a textarea grow with its text, up to the height that its style allows. */
export function grow(area) {
  area.style.height = "auto";
  // In a view that is hidden it has none.
  if (area.scrollHeight) area.style.height = `${area.scrollHeight + 2}px`;
}

/** Enter sends and Shift+Enter breaks the line; an input method's Enter is its own. */
export const sendOnEnter = (send) => (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
};
