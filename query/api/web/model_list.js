// The models of the index by their ids, filtered by a text, a page at a time.

import { announce, bdi, h, modelName, replace } from "./dom.js";
import { get, isAbort } from "./api.js";
import { errorState, skeleton } from "./notices.js";
import { href } from "./state.js";
import { count, plural, short } from "./words.js";

const FIRST = 20; // models that are shown at first
const PAGE = 100; // that each wish for more adds
const TYPING_MS = 200; // after the last key

/** Builds the list; `signal` ends what it fetches. */
export function modelList(signal) {
  let text = "";
  let timer = 0;
  let shown = 0;
  let next = null; // what to ask after
  let asking = null; // ends the request before
  const list = h("ul", { class: "model-list-rows", "aria-label": "Models" });
  const tally = h("p", { class: "fine model-list-count", role: "status" });
  const trouble = h("div");
  const more = h("button", { type: "button", class: "button", "data-testid": "model-list-more", hidden: true, onclick: () => fetchPage(true) });
  const input = h("input", {
    type: "search", id: "model-filter", "data-testid": "model-filter", autocomplete: "off", spellcheck: "false", maxlength: 300,
    placeholder: "part of an id, such as vit",
    oninput: () => {
      window.clearTimeout(timer);
      timer = window.setTimeout(() => {
        if (input.value.trim() === text) return;
        text = input.value.trim();
        fetchPage(false);
      }, TYPING_MS);
    },
  });

  const fetchPage = async (further) => {
    asking?.abort();
    const own = new AbortController();
    asking = own;
    const query = new URLSearchParams({ limit: String(further ? PAGE : FIRST) });
    if (text) query.set("text", text);
    if (further && next) query.set("after", next);
    list.setAttribute("aria-busy", "true");
    try {
      const answer = await get(`/v1/models?${query}`, { signal: own.signal });
      trouble.replaceChildren();
      const rows = answer.models.map(row);
      if (!further) {
        shown = 0;
        list.replaceChildren();
      }
      list.append(...rows);
      shown += rows.length;
      next = answer.next;
      more.hidden = !next;
      more.textContent = `Show ${count(Math.min(PAGE, answer.total - shown))} more of ${count(answer.total - shown)}`;
      tally.textContent = said(answer.total, text);
      if (further) {
        rows[0]?.querySelector("a")?.focus({ preventScroll: true });
        announce(`${plural(rows.length, "more model")} shown`);
      }
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      replace(trouble, errorState(error, () => fetchPage(further)));
    } finally {
      if (asking === own) list.setAttribute("aria-busy", "false");
    }
  };

  signal.addEventListener("abort", () => {
    window.clearTimeout(timer);
    asking?.abort();
  }, { once: true });
  replace(trouble, skeleton({ rows: 2, tall: false, label: "Loading the models" }));
  fetchPage(false);
  return h("div", { class: "card model-list", "data-testid": "model-list" },
    h("div", { class: "field model-list-filter" }, h("label", { for: "model-filter" }, "Filter by id"), input),
    tally, list, trouble, h("p", { class: "model-list-more" }, more));
}

const said = (total, text) => (total === 0 && text ? "No model's id contains this." : `${plural(total, "model")}${text ? " with this in the id" : ", copies included"}`);

function row(model) {
  const copy = model.copy_of && h("span", null, "a copy of ", bdi(model.copy_of));
  const facts = [
    copy || h("span", null, plural(model.outputs, "output")),
    model.library && bdi(model.library),
    model.licence ? bdi(model.licence) : !copy && "licence not stated",
    typeof model.parameters === "number" && `${short(model.parameters)} parameters`,
    typeof model.downloads === "number" && `${short(model.downloads)} downloads`,
  ].filter(Boolean);
  return h("li", { class: "model-row", "data-testid": "model-row" },
    h("a", { class: "model-link", href: href({ view: "model", model: model.repo }) }, modelName(model.repo)),
    h("ul", { class: "facts" }, facts.map((fact) => h("li", null, fact))));
}
