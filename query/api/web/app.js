// The frame of the page: which view is shown, the tabs, the theme, keys that work everywhere.
//
// A view is a module that exports `async function show(root, state, signal)`. It puts its <h1 tabindex="-1"> into `root`
// before it awaits anything, passes `signal` to every request, and throws what it cannot handle. `root` is emptied when
// another view (or another model's page) begins and kept when the same view gets a new state. `show` is done when the
// view stands; what comes later (names, images) it fetches on its own.

import { h, replace, setTitle } from "./dom.js";
import { isAbort } from "./api.js";
import { icon } from "./icons.js";
import { acceptImages } from "./images.js";
import { errorState, watchWaits } from "./notices.js";
import { onChange, read } from "./state.js";

const VIEWS = {
  search: () => import("./search.js"),
  model: () => import("./model.js"),
  recommend: () => import("./recommend.js"),
  index: () => import("./index_view.js"),
};

const root = document.getElementById("view");
const loaded = new Map();
let shown = null; // which view, and of which model
let current = null; // ends what the state before had begun

async function render(state) {
  current?.abort();
  current = new AbortController();
  const { signal } = current;
  const which = `${state.view} ${state.model ?? ""}`;
  const first = shown === null;
  const another = which !== shown;
  markTab(state.view);
  try {
    // A view that is known is drawn at once, so that page and address never differ.
    const view = loaded.get(state.view) ?? await VIEWS[state.view]();
    loaded.set(state.view, view);
    if (signal.aborted) return;
    if (another) {
      shown = which;
      acceptImages(null);
      setTitle("");
      root.replaceChildren();
      root.className = `view view-${state.view}`;
      window.scrollTo(0, 0);
    }
    const done = view.show(root, state, signal);
    if (another && !first) root.querySelector("h1")?.focus({ preventScroll: true });
    await done;
    if (state.scrolled !== null && !signal.aborted) window.scrollTo(0, state.scrolled);
  } catch (error) {
    if (signal.aborted || isAbort(error)) return;
    const heading = root.querySelector("h1") ?? h("h1", { tabindex: "-1" }, "Something went wrong");
    shown = null; // so that the next try begins anew
    replace(root, heading, errorState(error, () => render(read())));
  }
}

function markTab(view) {
  for (const link of document.querySelectorAll(".tabs a")) {
    const own = link.dataset.view === view || (view === "model" && link.dataset.view === "search");
    link.classList.toggle("here", own);
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

const systemDark = window.matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemDark.matches;
}

function watchTheme() {
  const button = document.getElementById("theme-toggle");
  const draw = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    button.title = isDark() ? "Light colours" : "Dark colours";
    replace(button, icon(isDark() ? "sun" : "moon", 20));
  };
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      window.localStorage.setItem("hubhound-theme", theme);
    } catch {
      // Then it lasts as long as the page.
    }
    draw();
  });
  systemDark.addEventListener("change", draw);
  draw();
}

function watchKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target instanceof Element && target.closest("input, textarea, select, [contenteditable], dialog")) return;
    const box = root.querySelector("[data-testid=search-box]");
    if (!box) return;
    event.preventDefault();
    box.focus();
  });
}

watchTheme();
watchWaits();
watchKeys();
onChange(render);
render(read());
