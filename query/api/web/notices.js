// What stands in the place of content: loading, errors, nothing found; the banner of what is waited for; the key form.

import { announce, bdi, h, pause, replace } from "./dom.js";
import { waits } from "./api.js";
import { icon } from "./icons.js";

const QUIET_MS = 150; // an answer that comes sooner needs no skeleton

/**
 * Awaits a promise; when it takes longer than a moment, `place` shows a skeleton until it settles.
 *
 * @param {Promise} promise
 * @param {Element} place its content is replaced
 * @param {{rows?: number, tall?: boolean, label?: string, signal?: AbortSignal}} options
 */
export async function loading(promise, place, { rows = 3, tall = true, label = "Loading", signal } = {}) {
  let settled = false;
  const settle = () => { settled = true; };
  promise.then(settle, settle);
  pause(QUIET_MS, signal).then(() => {
    if (!settled) replace(place, skeleton({ rows, tall, label }));
  }, () => {});
  return promise;
}

/** Grey shapes where content will be. */
export function skeleton({ rows = 3, tall = true, label = "Loading" } = {}) {
  const row = () => h("div", { class: "ghost-row" },
    h("div", { class: "ghost ghost-line ghost-half" }),
    h("div", { class: "ghost ghost-line" }),
    tall && h("div", { class: "ghost-strip" }, Array.from({ length: 6 }, () => h("div", { class: "ghost ghost-thumb" }))));
  return h("div", { class: "loading", "data-testid": "loading-state", role: "status" },
    h("span", { class: "unseen" }, label),
    h("div", { "aria-hidden": "true" }, Array.from({ length: rows }, row)));
}

/**
 * An error in words, with its request id and a button that tries again (left out without `retry`).
 *
 * @param {Error} error
 * @param {(() => void)|null} retry
 * @param {Node[]} ways other buttons and links, where trying again cannot help
 */
export function errorState(error, retry, ways = []) {
  const fromService = error?.name === "Problem";
  const title = fromService && error.title ? error.title : "The page ran into an error";
  const detail = fromService ? error.detail : String(error?.message ?? error);
  const fields = fromService ? error.errors.filter((one) => one && typeof one === "object") : [];
  announce(`${title}. ${detail}`);
  return h("div", { class: "notice bad", "data-testid": "error-state", role: "group", "aria-label": "Error" },
    h("div", { class: "notice-head" }, icon("warning", 22), h("h2", null, title)),
    detail && h("p", null, bdi(detail)),
    fields.length > 0 && h("ul", null, fields.map((one) => h("li", null, bdi(`${one.where ?? ""}: ${one.message ?? ""}`)))),
    (retry || ways.length > 0) && h("p", { class: "notice-actions" },
      retry && h("button", { type: "button", class: "button", onclick: retry }, icon("retry"), "Try again"), ways),
    fromService && error.instance && h("p", { class: "fine" }, "Request ", h("code", null, bdi(error.instance))));
}

/**
 * A model that the index has not got, in words for people, and those that are called nearly the same.
 *
 * @param {string} repo
 * @param {string[]} near of the problem
 * @param {(repo: string) => string} address where a link to one of those leads
 */
export function noSuchModel(repo, near, address) {
  return [
    h("p", null, "There is no model ", bdi(repo, { class: "mono" }), " here."),
    near.length > 0 && h("p", null, "Did you mean ",
      near.map((one, i) => [i > 0 && (i < near.length - 1 ? ", " : " or "), h("a", { href: address(one) }, bdi(one))]), "?"),
  ];
}

/** Nothing to show, and what to do about it. */
export function nothing(title, ...children) {
  return h("div", { class: "notice", "data-testid": "empty-state" }, h("h2", null, title), children);
}

/** Shows the banner of what is waited for, and asks for a key when the service wants one. */
export function watchWaits() {
  const banner = document.getElementById("waiting");
  waits.addEventListener("wait", (event) => {
    banner.hidden = false;
    replace(banner, h("span", { class: "spinner", "aria-hidden": "true" }), h("span", null, bdi(event.detail.text)));
  });
  waits.addEventListener("done", () => {
    banner.hidden = true;
    banner.replaceChildren();
  });
  waits.addEventListener("key", (event) => askForKey(event.detail));
}

function askForKey({ refused, give, cancel }) {
  const before = document.activeElement;
  const input = h("input", {
    type: "password", id: "key-input", "data-testid": "key-input", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": "key-help", ...(refused ? { "aria-invalid": "true" } : {}),
  });
  let given = null;
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "key-title" },
    h("form", {
      "data-testid": "key-form",
      onsubmit: (event) => {
        event.preventDefault();
        given = input.value.trim() || null;
        if (given) dialog.close();
      },
    },
    h("h2", { id: "key-title" }, icon("key", 22), "This service needs an API key"),
    refused && h("p", { class: "warned", role: "alert" }, "The key was not accepted. Check it and enter it again."),
    h("label", { for: "key-input" }, "API key"),
    input,
    h("p", { class: "fine", id: "key-help" }, "Kept in this tab until it is closed, and sent to this server only. Whoever runs the service gives keys out."),
    h("p", { class: "notice-actions" },
      h("button", { type: "submit", class: "button primary" }, "Use this key"),
      h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel"))));
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before instanceof HTMLElement && before.isConnected) before.focus();
    if (given) give(given);
    else cancel();
  });
  document.body.append(dialog);
  dialog.showModal();
  input.focus();
}
