// Boxes for what is wide, what is long and what is to be typed elsewhere.

import { h } from "./dom.js";

/** A box of its own for what may be wider than the page; can be scrolled by keyboard. */
export function scroller(label, ...children) {
  return h("div", { class: "scroller", tabindex: "0", role: "group", "aria-label": label }, children);
}

/** What is there for those who want to know more: opened by its `words`. */
export function folded(words, ...children) {
  return h("details", { class: "figures" }, h("summary", null, words), children);
}

/**
 * A table whose first column names its rows.
 *
 * @param {string} label for screen readers
 * @param {string[]} columns those that begin with "#" hold figures
 * @param {Array[]} rows cells: strings, numbers, nodes
 */
export function plainTable(label, columns, rows) {
  const look = columns.map((name) => (name.startsWith("#") ? "number" : null));
  return scroller(label, h("table", { class: "plain" },
    h("caption", { class: "unseen" }, label),
    h("thead", null, h("tr", null, columns.map((name, i) => h("th", { scope: "col", class: look[i] }, name.replace("#", ""))))),
    h("tbody", null, rows.map((cells) => h("tr", null,
      cells.map((cell, i) => h(i ? "td" : "th", { scope: i ? null : "row", class: look[i] }, cell)))))));
}

/** Commands to be typed in a shell. */
export function commands(text) {
  return h("pre", { class: "command", tabindex: "0", role: "group", "aria-label": "Commands" }, h("code", null, text));
}
