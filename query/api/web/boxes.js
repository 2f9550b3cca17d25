// Boxes for what is wide, what is long and what is to be typed elsewhere.

import { h } from "./dom.js";
import { icon } from "./icons.js";

/** A box of its own for what may be wider than the page; can be scrolled by keyboard. */
export function scroller(label, ...children) {
  return h("div", { class: "scroller", tabindex: "0", role: "group", "aria-label": label }, children);
}

/** What is there for those who want to know more: opened by its `words`. */
export function folded(words, ...children) {
  return h("details", { class: "figures" }, h("summary", null, words), children);
}

let opened = 0; // so far, for the ids of panels

/**
 * A button that opens and closes a panel. The panel stands after what the button stands in, so the button stays where it
 * is and a second press on the same place closes the panel again.
 *
 * @param {Node|string|Array} words
 * @param {Element} panel closed at first
 * @param {{testid?: string, onopen?: () => void}} options `onopen` is called whenever it is opened
 */
export function opener(words, panel, { testid, onopen } = {}) {
  opened += 1;
  panel.id = `panel-${opened}`;
  panel.hidden = true;
  const button = h("button", {
    type: "button", class: "quiet", "data-testid": testid, "aria-expanded": "false", "aria-controls": panel.id,
    onclick: () => {
      panel.hidden = !panel.hidden;
      button.setAttribute("aria-expanded", String(!panel.hidden));
      if (!panel.hidden) onopen?.();
    },
  }, words, icon("chevron", 16));
  return button;
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
