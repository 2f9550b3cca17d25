// What the page shows, as its address says it: a search can be shared by copying the link.

export const DEFAULTS = Object.freeze({
  view: "search", // search | model | recommend | index
  q: [], // concepts
  like: null, // org/name#17, or org/name at the level of models
  level: "output", // output: each concept a question of its own; model: one model for all
  where: [], // KEY=VALUE, as the API takes them
  k: 10,
  evidence: "probes", // probes | labels | both
  require: null, // "any": models that cover some of the concepts, too
  model: null, // org/name of the model's page
  images: [], // ids of images.js; they live in this tab's memory and history only, a link cannot carry them
  scrolled: null, // how far down the page stood when it was left, for Back; in the history only
});

const MOST = { concepts: 100, where: 20, k: 1000 };
const listeners = new Set();

const one = (value, allowed, otherwise) => (allowed.includes(value) ? value : otherwise);

/** The state that an address stands for; what makes no sense in it is left out. */
export function parse(search, kept = {}) {
  const params = new URLSearchParams(search);
  const model = params.get("model");
  const k = Number.parseInt(params.get("k") ?? "", 10);
  return {
    view: model ? "model" : one(params.get("view"), ["search", "recommend", "index"], "search"),
    q: params.getAll("q").map((text) => text.trim()).filter(Boolean).slice(0, MOST.concepts),
    like: params.get("like") || null,
    level: one(params.get("level"), ["output", "model"], DEFAULTS.level),
    where: params.getAll("where").filter((text) => text.includes("=")).slice(0, MOST.where),
    k: Number.isFinite(k) && k >= 1 ? Math.min(k, MOST.k) : DEFAULTS.k,
    evidence: one(params.get("evidence"), ["probes", "labels", "both"], DEFAULTS.evidence),
    require: one(params.get("require"), ["any"], null),
    model: model || null,
    images: Array.isArray(kept?.images) ? kept.images.filter((id) => typeof id === "string") : [],
    scrolled: typeof kept?.scrolled === "number" ? kept.scrolled : null,
  };
}

/** The address (path and query string) of a state; what is not given is as by default. */
export function href(partial) {
  const state = { ...DEFAULTS, ...partial };
  const params = new URLSearchParams();
  if (state.model && (state.view === "model" || !partial.view)) {
    params.set("model", state.model);
  } else if (state.view !== "search") {
    params.set("view", state.view);
  } else {
    for (const text of state.q) params.append("q", text);
    if (state.like) params.set("like", state.like);
    if (state.level !== DEFAULTS.level) params.set("level", state.level);
    for (const condition of state.where) params.append("where", condition);
    if (state.k !== DEFAULTS.k) params.set("k", String(state.k));
    if (state.evidence !== DEFAULTS.evidence) params.set("evidence", state.evidence);
    if (state.require) params.set("require", state.require);
  }
  // Slashes and colons are allowed in a query string, and the links are for people.
  const query = params.toString().replaceAll("%2F", "/").replaceAll("%3A", ":");
  return query ? `/?${query}` : "/";
}

/** The state now. */
export function read() {
  return parse(window.location.search, window.history.state);
}

/**
 * Goes to a state and tells those who listen.
 *
 * @param {object} partial what is not given is as by default (`{...read(), k: 20}` keeps the rest).
 * @param {boolean} push whether Back leads to the state before.
 */
export function write(partial, push = true) {
  const state = { ...DEFAULTS, ...partial };
  const kept = { images: state.images };
  if (push) go(kept, href(partial));
  else window.history.replaceState(kept, "", href(partial));
  for (const listener of listeners) listener(read());
}

/** A new entry of the history; the one that is left remembers how far down the page stood. */
function go(kept, address) {
  window.history.replaceState({ ...window.history.state, scrolled: window.scrollY }, "");
  window.history.pushState(kept, "", address);
}

/** Calls a function with the state whenever it changes, by write or by Back and Forward. */
export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

window.addEventListener("popstate", () => {
  for (const listener of listeners) listener(read());
});

// A link within the page changes the state instead of loading everything again.
document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
  if (!link || link.target || link.origin !== window.location.origin || link.pathname !== "/") return;
  event.preventDefault();
  if (link.hash) {
    // A place on this page: going there must not make an entry of the history that has lost the images.
    const place = document.getElementById(link.hash.slice(1));
    place?.scrollIntoView();
    place?.focus({ preventScroll: true });
    return;
  }
  go({ images: [] }, link.href);
  for (const listener of listeners) listener(read());
});
