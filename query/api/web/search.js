// The search view: the box, the filters and what was found.

import { announce, bdi, h, replace, setTitle, tell } from "./dom.js";
import { indexInfo, isAbort, post, probeBlob } from "./api.js";
import { probeImage } from "./evidence.js";
import { examples } from "./examples.js";
import { searchFilters } from "./filters.js";
import { keptImages } from "./images.js";
import { errorState, loading, noSuchModel, nothing } from "./notices.js";
import { addDetails, answerView } from "./results.js";
import { addImages, searchBox } from "./search_box.js";
import { DEFAULTS, href, read, write } from "./state.js";
import { count, listed, plural } from "./words.js";

const STARTERS = 12; // photographs below the box

let parts = null; // of the view that stands on the page

/** Shows the search that a state asks for. */
export async function show(root, state, signal) {
  if (!parts || !root.contains(parts.heading)) parts = build(root);
  const { heading, box, filters, intro, results } = parts;
  box.set(state);
  filters.set(state);
  const images = keptImages(state.images);
  const asked = state.q.length > 0 || images.length > 0 || Boolean(state.like);
  intro.hidden = asked;
  heading.className = asked ? "unseen" : "";
  root.classList.toggle("asked", asked);
  results.setAttribute("aria-busy", String(asked));
  if (!asked) {
    setTitle("");
    results.replaceChildren();
    if (document.activeElement === document.body && window.matchMedia("(hover: hover)").matches) box.input.focus({ preventScroll: true });
    return;
  }
  setTitle(nameOf(state, images));
  const retry = () => write(read(), false);
  let answer;
  try {
    answer = await loading(
      post("/v1/search", requestOf(state), images.map((image) => image.file), { signal }),
      results,
      { label: "Searching", signal },
    );
  } catch (error) {
    if (isAbort(error) || signal.aborted) return;
    results.setAttribute("aria-busy", "false");
    replace(results, failed(error, state, retry));
    return;
  }
  const info = await indexInfo().catch(() => null);
  if (signal.aborted) return;
  results.setAttribute("aria-busy", "false");
  const found = answer.results.reduce((sum, result) => sum + result.hits.length, 0);
  if (!found) {
    replace(results, nothingFound(state, answer));
    announce("Nothing found");
    return;
  }
  const view = answerView(answer, state, info);
  replace(results, view.element);
  announce(`${plural(found, state.level === "model" ? "model" : "output")} found for ${nameOf(state, images)}`);
  addDetails(view, signal);
}

const UNUSABLE = [400, 404, 413, 415, 422]; // to ask the same again cannot help

/** What stands in the place of an answer that was refused. */
function failed(error, state, retry) {
  if (!UNUSABLE.includes(error.status)) return errorState(error, retry);
  const button = (text, change) => h("button", { type: "button", class: "button", onclick: () => { write(change); parts.box.input.focus(); } }, text);
  const ways = [
    state.where.length > 0 && button("Clear the filters", { ...state, where: [] }),
    button("Clear the search", { level: state.level }),
  ];
  if (error.slug !== "model-not-found" || !state.like) return errorState(error, null, ways);
  announce(`${error.title}: ${state.like}`);
  return nothing(error.title,
    noSuchModel(state.like.replace(/#\d+$/, ""), error.near ?? [], (near) => href({ view: "model", model: near })),
    h("p", { class: "notice-actions" }, ways, h("a", { class: "button", href: href({ view: "index" }) }, "All models")));
}

/** The body of POST /v1/search for a state. */
export function requestOf(state) {
  const body = { concepts: state.q, level: state.level, k: state.k, where: state.where, explain: true };
  if (state.like) body.like = state.like;
  if (state.evidence !== DEFAULTS.evidence && state.level === "output" && !state.like) body.evidence = state.evidence;
  if (state.level === "model" && state.require) body.require = state.require;
  return body;
}

function nameOf(state, images) {
  const names = [...state.q];
  if (state.like) names.push(`like ${state.like}`);
  if (images.length) names.push(plural(images.length, "image"));
  return listed(names);
}

function build(root) {
  const heading = h("h1", { tabindex: "-1" }, "Find models by what they recognise");
  const box = searchBox();
  const filters = searchFilters();
  const intro = h("div", { class: "intro", "data-testid": "empty-state" });
  const results = h("section", { class: "results", "aria-label": "Results", "data-testid": "results" });
  const lead = h("p", { class: "lead" },
    "Write what a model should tell apart, or drop a photograph of it. Outputs are compared by their answers to the same photographs, whatever their labels and cards claim.");
  replace(intro, tries(), starters());
  replace(root,
    h("div", { class: "search-head" }, heading, lead),
    box.element,
    h("div", { class: "under-box" }, box.level, filters.toggle, filters.active),
    filters.panel,
    intro,
    results);
  return { heading, box, filters, intro, results };
}

/** Searches to begin with, made of what the models of this index say that they tell apart. */
function tries() {
  const place = h("div", { class: "tries" });
  examples().then((some) => {
    if (some.length === 0) return place.remove();
    return replace(place,
      h("h2", null, "Try"),
      h("ul", { class: "examples" }, some.map((example) => h("li", null,
        h("a", { class: "example", href: href(example) },
          example.q.map((text, i) => [i > 0 && " + ", bdi(text)]),
          example.level === "model" && h("span", { class: "fine" }, "one model for all"))))));
  }, () => place.remove()); // a search tells what is wrong
  return place;
}

/** Some of the photographs that all outputs were shown, to start from; and how much there is to search. */
function starters() {
  const place = h("div", { class: "starters" });
  indexInfo().then((info) => {
    const { count: probes } = info.manifest.probes;
    const some = Math.min(STARTERS, probes);
    const chosen = Array.from({ length: some }, (_, i) => Math.floor(((i + 0.5) * probes) / some));
    replace(place,
      h("h2", null, "Or start from a photograph"),
      h("ul", { class: "starter-list" }, chosen.map((probe) => h("li", null,
        h("button", { type: "button", class: "starter", "data-testid": "starter", "aria-label": `Search by photograph ${probe}`, onclick: () => startFrom(probe) },
          probeImage(probe, ""))))),
      h("p", { class: "fine indexed" },
        `Every one of ${plural(info.outputs, "output")} of ${plural(info.models, "model")} was shown the same ${plural(probes, "photograph")}; these are ${some} of them. `,
        h("a", { href: href({ view: "index" }) }, "What is in the index")));
  }, () => place.remove()); // a search tells what is wrong
  return place;
}

async function startFrom(probe) {
  try {
    const blob = await probeBlob(probe);
    addImages([new File([blob], `photograph ${probe}`, { type: blob.type })]);
  } catch (error) {
    tell(`The photograph cannot be used: ${error.message}`);
  }
}

function nothingFound(state, answer) {
  const button = (text, change) => h("button", { type: "button", class: "button", onclick: () => write({ ...read(), ...change }) }, text);
  if (state.where.length && answer.searched === 0) {
    return nothing("No output passes the filters",
      h("p", null, `${plural(state.where.length, "filter is", "filters are")} set, and no model in the index satisfies ${state.where.length === 1 ? "it" : "all of them"}, so nothing was compared. Models whose facts are not known pass no filter on them.`),
      h("p", { class: "notice-actions" }, button("Clear the filters", { where: [] })));
  }
  if (state.level === "model") {
    return nothing("No model covers the whole list",
      h("p", null, `Every concept needs an output of its own that is nearer to it than the background is. None of the models behind the ${count(answer.searched)} outputs has one for each of the ${count(state.q.length)}.`),
      h("p", null, "Leave out a concept, or look at models that cover some of them."),
      h("p", { class: "notice-actions" },
        state.require !== "any" && button("Show models that cover some", { require: "any" }),
        state.where.length > 0 && button("Clear the filters", { where: [] }),
        button("Search for each on its own", { level: "output", require: null })));
  }
  return nothing("Nothing found",
    h("p", null, state.evidence === "labels"
      ? "No declared label comes near the concept. What outputs do may still fit it."
      : `${plural(answer.searched, "output")} were compared and none answers. Try other words, or an image.`),
    h("p", { class: "notice-actions" },
      state.evidence === "labels" && button("Search by what outputs do", { evidence: "probes" }),
      state.where.length > 0 && button("Clear the filters", { where: [] })));
}
