// Markdown to elements: paragraphs, headings, lists, quotes, tables, code, emphasis and links. HTML in it stays text, pictures
// become links, since the page loads nothing from elsewhere.

import { copy, el } from "./dom.js";
import { t } from "./i18n.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
/** A fence in any quote or list. */
const DEEP_FENCE = /^[\s>]*(?:(?:[-*+]|\d{1,9}[.)])\s+)*(`{3,}|~{3,})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+|$)/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
/** What makes a heading of the paragraph above it. */
const UNDERLINE = /^ {0,3}(={2,}|-{2,})\s*$/;
const INDENTED = /^ {4}/;
/** Where links such as `[text][name]` lead. */
const DEFINITION = /^ {0,3}\[([^[\]^][^[\]]{0,99})\]:\s*<?([^\s<>]+)>?(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*$/;
/** Where a formula of several lines begins, and what ends each kind. */
const FORMULA = /^ {0,3}(\\\[|\$\$)/;
const FORMULA_ENDS = { "\\[": "\\]", "$$": "$$" };
/** Quotes and lists inside one another; deeper ones stay text. */
const MAX_DEPTH = 12;
/** Columns from one tab stop to the next. */
const TAB = 4;

/** Targets of the text that is being read, by name. */
let targets = new Map();
const nameOf = (label) => label.trim().replace(/\s+/g, " ").toLowerCase();

/** A fragment with the text's blocks. */
export function markdown(text, depth = 0) {
  const fragment = document.createDocumentFragment();
  const lines = withoutTabs(text.replace(/\r\n?/g, "\n").split("\n"));
  if (!depth) {
    const found = lines.map((line) => DEFINITION.exec(line)).filter((match) => match);
    // The first one counts.
    targets = new Map(found.reverse().map(([, label, target]) => [nameOf(label), target]));
  }
  let i = 0;
  while (i < lines.length) {
    if (!lines[i].trim()) {
      i += 1;
      continue;
    }
    const [block, next] = readBlock(lines, i, depth);
    fragment.append(block);
    i = next;
  }
  return fragment;
}

/** Lines with spaces for tabs. Those of code keep what stands to the right of their fence's column: a Makefile needs its tabs. */
function withoutTabs(lines) {
  let fence = null;
  let column = 0;
  return lines.map((line) => {
    if (fence === null) {
      const shown = withSpaces(line);
      fence = DEEP_FENCE.exec(shown)?.[1] ?? null;
      column = shown.search(/[`~]/);
      return shown;
    }
    if (isEndOf(fence, line.replace(/^[\s>]*/, ""))) fence = null;
    return line.replace(/^[\s>]*/, (indent) => withSpaces(indent, column));
  });
}

/** A line with spaces for the tabs that begin before column `end`. */
function withSpaces(line, end = Infinity) {
  let added = 0;
  return line.replace(/\t/g, (tab, i) => {
    const column = i + added;
    if (column >= end) return tab;
    const width = TAB - (column % TAB);
    added += width - 1;
    return " ".repeat(width);
  });
}

/** Whether a line ends the code that such a fence has begun. */
function isEndOf(fence, line) {
  const mark = line.trim();
  return mark.length >= fence.length && mark === fence[0].repeat(mark.length);
}

/** The block that begins at line `i`, and the line after it. */
function readBlock(lines, i, depth) {
  const fence = FENCE.exec(lines[i]);
  if (fence) return readCode(lines, i, fence);
  const isDefinition = DEFINITION.exec(lines[i]);
  if (isDefinition && targets.has(nameOf(isDefinition[1]))) return [document.createDocumentFragment(), i + 1];
  if (INDENTED.test(lines[i]) && !ITEM.test(lines[i])) return readIndented(lines, i);
  const heading = HEADING.exec(lines[i]);
  // The page's own headings are h1 and h2.
  if (heading) return [el(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])), i + 1];
  if (RULE.test(lines[i])) return [el("hr"), i + 1];
  if (QUOTE.test(lines[i]) && depth < MAX_DEPTH) return readQuote(lines, i, depth);
  if (ITEM.test(lines[i]) && depth < MAX_DEPTH) return readList(lines, i, depth);
  if (isTable(lines, i)) return readTable(lines, i);
  const formula = formulaEnd(lines, i);
  if (formula) return [el("p", { class: "formula" }, lines.slice(i, formula).join("\n")), formula];
  let end = i + 1;
  const isUnderline = () => UNDERLINE.test(lines[end] ?? "");
  while (end < lines.length && lines[end].trim() && !isUnderline() && !beginsBlock(lines, end)) end += 1;
  const content = inline(lines.slice(i, end).map((line) => line.trimStart()).join("\n"));
  if (isUnderline()) return [el(lines[end].includes("=") ? "h3" : "h4", {}, content), end + 1];
  return [el("p", {}, content), end];
}

/** Code without a fence. */
function readIndented(lines, i) {
  let end = i;
  for (let next = i; next < lines.length && (INDENTED.test(lines[next]) || !lines[next].trim()); next += 1) {
    if (lines[next].trim()) end = next + 1;
  }
  return [codeBlock(lines.slice(i, end).map((line) => line.slice(4)).join("\n"), ""), end];
}

const isTable = (lines, i) =>
  lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("-") && DIVIDER.test(lines[i + 1])
  && cells(lines[i]).length === cells(lines[i + 1]).length;

const beginsBlock = (lines, i) =>
  [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(lines[i])) || isTable(lines, i) || formulaEnd(lines, i) > 0;

/** The line after a formula that begins at line `i`, and stands alone; 0 without one. It may have no blank line. */
function formulaEnd(lines, i) {
  const [start, mark] = FORMULA.exec(lines[i]) ?? [];
  if (!mark) return 0;
  let rest = lines[i].slice(start.length);
  for (let end = i + 1; ; end += 1) {
    const parts = rest.split(FORMULA_ENDS[mark]);
    if (parts.length > 1) return /^[\s.,;:]*$/.test(parts.at(-1)) ? end : 0;
    if (!lines[end]?.trim()) return 0;
    rest = lines[end];
  }
}

/** Code up to its fence, or to the end while the answer is still being written. */
function readCode(lines, i, [, indent, fence, language]) {
  let end = i + 1;
  while (end < lines.length && !isEndOf(fence, lines[end])) end += 1;
  const own = lines.slice(i + 1, end).map((line) => (line.startsWith(indent) ? line.slice(indent.length) : line));
  return [codeBlock(own.join("\n"), language), end + 1];
}

/** A button that copies a text, and says for a moment whether it could. */
export function copyButton(text) {
  const button = el("button", { type: "button", class: "small" }, t("copy"));
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text)) ? t("copied") : t("not_copied");
    setTimeout(() => { button.textContent = t("copy"); }, 1500);
  });
  return button;
}

/** Code with its language and a button that copies it. */
export function codeBlock(code, language) {
  const head = el("figcaption", {}, el("span", {}, language || t("code")), copyButton(code));
  return el("figure", { class: "code" }, head, el("pre", { tabindex: "0" }, el("code", {}, code)));
}

function readQuote(lines, i, depth) {
  let end = i;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const own = lines.slice(i, end).map((line) => line.replace(QUOTE, ""));
  return [el("blockquote", {}, markdown(own.join("\n"), depth + 1)), end];
}

/** Items with the same kind of mark; lines that are indented below an item belong to it. */
function readList(lines, i, depth) {
  const [, indent, mark] = ITEM.exec(lines[i]);
  const isOrdered = /\d/.test(mark);
  const start = isOrdered && parseInt(mark, 10) !== 1 ? parseInt(mark, 10) : null;
  const list = el(isOrdered ? "ol" : "ul", { start });
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== isOrdered || RULE.test(lines[i])) break;
    const isWide = item[3].length <= TAB && item[0].length < lines[i].length;
    const width = item[1].length + item[2].length + (isWide ? item[3].length : 1);
    const own = [lines[i].slice(item[0].length)];
    i += 1;
    while (i < lines.length) {
      let next = i;
      while (next < lines.length && !lines[next].trim()) next += 1;
      if (next === lines.length) break;
      const spaces = lines[next].search(/\S/);
      const isIndented = spaces >= Math.min(width, item[1].length + 2);
      if (!isIndented && (next > i || !lines[i - 1].trim() || beginsBlock(lines, i))) break;
      for (; i < next; i += 1) own.push("");
      own.push(lines[i].slice(Math.min(width, spaces)));
      i += 1;
    }
    list.append(el("li", {}, tight(own.join("\n"), depth)));
    while (i < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1] ?? "")) i += 1;
  }
  return [list, i];
}

/** An item's blocks; a lone paragraph needs no element of its own. */
function tight(text, depth) {
  const blocks = markdown(text, depth + 1);
  const first = blocks.firstElementChild;
  if (first?.tagName === "P") first.replaceWith(...first.childNodes);
  return blocks;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function readTable(lines, i) {
  const sides = cells(lines[i + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null);
  const row = (line, tag) => {
    const own = cells(line);
    return el("tr", {}, ...sides.map((side, column) => el(tag, { class: side }, inline(own[column] ?? ""))));
  };
  const body = el("tbody");
  let end = i + 2;
  while (end < lines.length && lines[end].includes("|")) {
    body.append(row(lines[end], "td"));
    end += 1;
  }
  const table = el("table", {}, el("thead", {}, row(lines[i], "th")), body);
  return [el("div", { class: "table", tabindex: "0" }, table), end];
}

/** What may stand in a line, the first that matches wins. */
const INLINE = new RegExp(
  [
    /(\\\(.{1,1000}?\\\)|\\\[.{1,1000}?\\\]|\$\$(?!\s*\$).{1,1000}?\$\$|(?<![\w$])\$(?=[^\s$])(?!\d[\d.,]*\s)(?:\\.|[^$`\\\n]){1,500}(?<=[^\s])\$(?![\w{($]))/, // 1: a formula, but no prices, no variables and no jQuery
    /\\([!-/:-@[-`{-~])/, // 2: an escaped sign
    /(?<!`)(`+)(?!`)(.{1,1000}?)(?<!`)\3(?!`)/, // 3, 4: code
    /!?\[([^[\]]{0,500})\]\(\s*<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+(?:"[^"]{0,500}"|'[^']{0,500}'|\([^()]{0,500}\)))?\s*\)/, // 5, 6: a link
    /\b(https?:\/\/[^\s<>"'`）」，。]*[^\s<>"'`.,;:!?）」，。*_)\]])/, // 7: an address
    /\*\*(?=\S)(.{1,1000}?)(?<=\S)\*\*(?!\*)/, // 8: strong
    /(?<!\w)__(?=\S)(.{1,1000}?)(?<=\S)__(?!\w)/, // 9
    /\*(?=[^\s*])(.{1,1000}?)(?<=[^\s*])\*(?!\*)/, // 10: emphasis
    /(?<!\w)_(?=[^\s_])(.{1,1000}?)(?<=[^\s_])_(?!\w)/, // 11
    /~~(?=\S)(.{1,1000}?)(?<=\S)~~/, // 12: struck out
    /( {2,}|\\)\n/, // 13: a line's end
    /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/, // 14: an address in brackets
    /&(#\d{1,7}|#[xX][\da-fA-F]{1,6}|[a-zA-Z]{2,8}\d{0,2});/, // 15: a sign by its name
    /!?\[([^[\]]{1,500})\](?:\[([^[\]]{0,100})\])?/, // 16, 17: a link whose target stands elsewhere
  ].map((pattern) => pattern.source).join("|"),
  "su",
);

/** A fragment with the text's spans. */
function inline(text, depth = 0) {
  const fragment = document.createDocumentFragment();
  while (text) {
    const match = depth < MAX_DEPTH ? INLINE.exec(text) : null;
    if (!match) break;
    const shown = span(match, depth + 1);
    // A bracket that begins nothing, and what is in it may be something.
    const length = shown === null ? 1 : match[0].length;
    fragment.append(text.slice(0, match.index), shown ?? match[0][0]);
    text = text.slice(match.index + length);
  }
  fragment.append(text);
  return fragment;
}

function span(match, depth) {
  const [whole, formula, escaped, , code, label, target, address] = match;
  const strong = match[8] ?? match[9];
  const emphasis = match[10] ?? match[11];
  if (formula !== undefined) return formula;
  if (escaped !== undefined) return escaped;
  if (code !== undefined) return el("code", {}, code.replace(/^ (.+) $/s, "$1"));
  if (label !== undefined) return link(target, inline(label || target, depth), whole);
  if (address !== undefined) return link(address, address, whole);
  if (strong !== undefined) return el("strong", {}, inline(strong, depth));
  if (emphasis !== undefined) return el("em", {}, inline(emphasis, depth));
  if (match[12] !== undefined) return el("del", {}, inline(match[12], depth));
  if (match[13] !== undefined) return el("br");
  if (match[14] !== undefined) return link(match[14], match[14].replace(/^mailto:/, ""), whole);
  if (match[15] !== undefined) return signOf(match[15]) ?? whole;
  const found = targets.get(nameOf(match[17] || match[16]));
  return found === undefined ? null : link(found, inline(match[16], depth), whole);
}

/** Signs that have a name in HTML. */
const SIGNS = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", hellip: "…", mdash: "—", ndash: "–",
  lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«", raquo: "»", times: "×", divide: "÷", deg: "°", plusmn: "±", middot: "·",
  bull: "•", larr: "←", rarr: "→", uarr: "↑", darr: "↓", harr: "↔", le: "≤", ge: "≥", ne: "≠", infin: "∞", euro: "€", pound: "£",
  yen: "¥", cent: "¢", sect: "§", para: "¶", frac12: "½", sup2: "²", sup3: "³", micro: "µ", alpha: "α", beta: "β", pi: "π",
};

/** The sign of a name or number; undefined without one. */
function signOf(name) {
  if (!name.startsWith("#")) return Object.hasOwn(SIGNS, name) ? SIGNS[name] : undefined;
  const code = /^#x/i.test(name) ? parseInt(name.slice(2), 16) : parseInt(name.slice(1), 10);
  const isSign = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  return isSign ? String.fromCodePoint(code) : undefined;
}

/** A link to the web or to a mailbox; other targets, such as scripts, stay text. */
function link(target, content, whole) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(target)) return whole;
  return el("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, content);
}
