// Texts that are not sent yet outlive a reload.

import { grow } from "./dom.js";
import { draft, setDraft } from "./store.js";

/** Keeps what stands in a textarea, and puts back what stood there. */
export function keepDraft(area) {
  const kept = draft(area.id);
  if (typeof kept === "string") area.value = kept;
  requestAnimationFrame(() => grow(area));
  area.addEventListener("input", () => {
    grow(area);
    setDraft(area.id, area.value);
  });
}

/** Empties such a textarea. */
export function empty(area) {
  area.value = "";
  grow(area);
  setDraft(area.id, "");
}
