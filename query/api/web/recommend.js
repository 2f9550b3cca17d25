// The recommend view: a few images of a task, and the models that are predicted to do best on it.

import { announce, bdi, h, pause, replace, setTitle } from "./dom.js";
import { get, indexInfo, isAbort, post, remove } from "./api.js";
import { parameterCount, place } from "./amounts.js";
import { commands } from "./boxes.js";
import { progressBar } from "./charts.js";
import { icon } from "./icons.js";
import { acceptImages, imageButton, keep } from "./images.js";
import { errorState, nothing, skeleton } from "./notices.js";
import { rankingView } from "./ranking.js";
import { read } from "./state.js";
import { plural } from "./words.js";

const POLL_MS = 700;
const SIZES = ["50M", "100M", "200M", "500M", "1B"];

const form = { images: [], k: "10", most: "", explain: true }; // lasts as long as the tab
const last = { job: null, result: null }; // likewise
let parts = null;
let asking = null; // what ends the waiting for an answer

/** Shows the form, and the job that the address names; without one, what was asked last in this tab. */
export async function show(root, state, signal) {
  setTitle("Recommend");
  if (!parts || !root.contains(parts.heading)) parts = build(root);
  asking?.abort();
  signal.addEventListener("abort", () => asking?.abort(), { once: true });
  acceptImages(add);
  drawImages();
  const named = new URLSearchParams(window.location.search).get("job");
  if (named && named !== last.job) Object.assign(last, { job: named, result: null });
  ready(true);
  if (last.result) {
    address(last.job);
    replace(parts.result, rankingView(last.result));
  } else if (last.job) {
    address(last.job);
    await follow(last.job, signal);
  } else {
    parts.result.replaceChildren();
    await introduce(signal);
  }
}

/** Says what recommendations are made from here, or how to come by it. */
async function introduce(signal) {
  const info = await indexInfo().catch(() => null);
  if (!info || signal.aborted || working || last.job || last.result) return;
  const { profiles, profiled_models: models, tasks, performance } = info;
  if (profiles && performance) {
    const known = `${plural(profiles, "profile")} of ${plural(models, "model")} on ${plural(tasks, "task")} and ${plural(performance, "known result")}`;
    replace(parts.result, h("p", { class: "fine", "data-testid": "recommend-basis" }, `Made from ${known}. `,
      "Images that were asked about before cost nothing; others are shown to each model once, which takes seconds a model."));
    return;
  }
  const missing = profiles ? "performance of models on tasks" : "conductance profiles of models on tasks";
  replace(parts.result, nothing("Nothing to recommend from yet",
    h("p", null, `This index knows no ${missing}. Whoever runs the service can add tasks, what is known of models on them, and profiles:`),
    commands([
      "hubhound task add NAME --index INDEX --images FOLDER", "hubhound performance import FILE --index INDEX",
      "hubhound profile MODEL... --index INDEX",
    ].join("\n"))));
}

function build(root) {
  const heading = h("h1", { tabindex: "-1" }, "Which model for my images?");
  const images = h("ul", { class: "given-images", "aria-label": "Images given" });
  const start = h("button", { type: "submit", class: "button primary", "data-testid": "recommend-start" }, "Rank models");
  const hint = h("p", { class: "fine", id: "recommend-hint" });
  const result = h("div", { class: "recommend-result", "aria-live": "off" });
  const most = h("input", {
    type: "text", id: "recommend-most", list: "recommend-sizes", autocomplete: "off", spellcheck: "false", placeholder: "any", value: form.most,
    "data-testid": "recommend-most", oninput: (event) => { form.most = event.target.value; event.target.setCustomValidity(""); },
  });
  const box = h("form", {
    class: "recommend-form card", novalidate: true, "aria-label": "Recommendation",
    onsubmit: (event) => {
      event.preventDefault();
      begin();
    },
  },
  h("div", { class: "drop-box", "data-testid": "recommend-drop" },
    icon("image", 30),
    h("p", { class: "drop-words" }, h("strong", null, "Drop or paste images of your task here"),
      h("span", { class: "fine" }, "One is enough, a few are better. No labels are needed, and they stay on this service.")),
    imageButton(add, { label: [icon("image"), "Choose images"], testid: "recommend-input" })),
  images,
  h("div", { class: "recommend-controls" },
    h("div", { class: "field" }, h("label", { for: "recommend-k" }, "Models shown"),
      h("select", { id: "recommend-k", "data-testid": "recommend-k", onchange: (event) => { form.k = event.target.value; } },
        ["5", "10", "20", "50", "100"].map((value) => h("option", { value, selected: value === form.k }, value)))),
    h("div", { class: "field" }, h("label", { for: "recommend-most" }, "Parameters at most"), most,
      h("datalist", { id: "recommend-sizes" }, SIZES.map((value) => h("option", { value })))),
    h("label", { class: "check" },
      h("input", { type: "checkbox", checked: form.explain, onchange: (event) => { form.explain = event.target.checked; } }),
      h("span", null, "Say what each block contributes")),
    start),
  hint);
  replace(root,
    h("header", { class: "page-head recommend-head" }, heading,
      h("p", { class: "lead" }, "A model whose blocks respond to your images as they do to a task on which its rank is known will likely rank alike on yours.")),
    box, result);
  return { heading, images, start, hint, result, most };
}

function add(files) {
  form.images.push(...files.map(keep));
  announce(`${plural(files.length, "image")} added`);
  drawImages();
}

function drawImages() {
  replace(parts.images, form.images.map((image) => h("li", { class: "given-image", "data-testid": "image-chip" },
    h("img", { src: image.url, alt: "", width: 96, height: 96 }),
    h("span", { class: "given-name fine" }, bdi(image.name)),
    h("button", {
      type: "button", class: "quiet icon-button", "data-testid": "chip-remove", "aria-label": `Remove ${image.name}`,
      onclick: () => {
        const at = form.images.indexOf(image);
        form.images.splice(at, 1);
        drawImages();
        (parts.images.querySelectorAll("button")[Math.min(at, form.images.length - 1)] ?? parts.start).focus();
      },
    }, icon("close")))));
  parts.images.hidden = form.images.length === 0;
  hintNow();
}

let working = false;

function ready(yes) {
  working = !yes;
  hintNow();
}

function hintNow() {
  const words = working ? "One recommendation is being computed." : form.images.length ? "" : "Give an image first.";
  parts.hint.textContent = words;
  parts.hint.hidden = !words;
  parts.start.disabled = working || form.images.length === 0;
}

/** Asks; what is known at once is shown at once, anything else is a job that the address names. */
async function begin() {
  const most = form.most.trim() ? parameterCount(form.most) : null;
  if (Number.isNaN(most)) {
    parts.most.setCustomValidity("Write a number of parameters such as 200M");
    parts.most.reportValidity();
    return;
  }
  const body = { k: Number(form.k), explain: form.explain };
  if (most !== null) body.max_parameters = most;
  const { signal } = startOver();
  Object.assign(last, { job: null, result: null });
  ready(false);
  replace(parts.result, skeleton({ rows: 2, tall: false, label: "Sending the images" }));
  try {
    const answer = await post("/v1/recommend", body, form.images.map((image) => image.file), { signal, status: true });
    if (answer.status === 202) {
      address(answer.body.id);
      await follow(answer.body.id, signal, answer.body);
    } else {
      address(null);
      finish(answer.body);
    }
  } catch (error) {
    if (isAbort(error)) return;
    ready(true);
    replace(parts.result, errorState(error, begin));
  }
}

/** Ends the waiting for the answer before, if there is any. */
function startOver() {
  asking?.abort();
  asking = new AbortController();
  return asking;
}

/** Writes the job into the address, so that a reload goes on showing it. */
function address(id) {
  last.job = id;
  if (read().view !== "recommend") return;
  window.history.replaceState(window.history.state, "", id ? `/?view=recommend&job=${encodeURIComponent(id)}` : "/?view=recommend");
}

/** Shows how a job gets on until it ends. */
async function follow(id, signal, first = null) {
  const panel = progressPanel(id);
  ready(false);
  let shown = false;
  try {
    for (let job = first; ; job = null) {
      job ??= await get(`/v1/jobs/${encodeURIComponent(id)}`, { signal });
      if (signal.aborted) return;
      if (job.state === "done") return finish(job.result);
      if (job.state === "failed") throw Object.assign(new Error(job.problem?.detail ?? "The job failed"), problemOf(job.problem));
      if (job.state === "cancelled") {
        ready(true);
        address(null);
        replace(parts.result, h("p", { class: "notice", "data-testid": "recommend-cancelled" },
          "Cancelled. Nothing that was computed is lost: profiles of images are remembered."));
        announce("Cancelled");
        return undefined;
      }
      if (!shown) replace(parts.result, panel.element);
      shown = true;
      panel.tell(job);
      await pause(POLL_MS, signal);
    }
  } catch (error) {
    if (isAbort(error) || signal.aborted) return undefined;
    ready(true);
    if (error.slug === "job-not-found") {
      address(null);
      replace(parts.result, h("div", { class: "notice", "data-testid": "empty-state" }, h("h2", null, "This recommendation is gone"),
        h("p", null, "Results are kept for an hour and end with the service. Give the images again: what was computed for them is remembered.")));
      return undefined;
    }
    const again = form.images.length ? begin : () => follow(id, signal);
    replace(parts.result, errorState(error, error.ended && !form.images.length ? null : again));
    return undefined;
  }
}

/** A job's problem as what errorState shows. */
function problemOf(problem) {
  const { title = "The job failed", detail = "", instance = "", type = "" } = problem ?? {};
  return { name: "Problem", title, detail, instance, errors: [], ended: true, slug: String(type).split(":").at(-1) };
}

function finish(result) {
  last.result = result;
  ready(true);
  replace(parts.result, rankingView(result));
  announce(`${plural(result.ranking.length, "model")} ranked`);
}

function progressPanel(id) {
  const title = h("h2", null, "Waiting for its turn");
  const steps = h("div", { class: "progress-steps" });
  const element = h("section", { class: "card progress-panel", "data-testid": "recommend-progress", "aria-label": "Progress" }, title, steps,
    h("div", { class: "progress-actions" },
      h("button", {
        type: "button", class: "button", "data-testid": "recommend-cancel",
        onclick: async (event) => {
          const button = event.currentTarget;
          button.disabled = true;
          button.textContent = "Cancelling …";
          await remove(`/v1/jobs/${encodeURIComponent(id)}`).catch(() => {}); // it has ended: the next look shows how
        },
      }, icon("close"), "Cancel"),
      h("span", { class: "fine" }, "You can leave this page: its address leads back to the result.")));
  let said = "";
  return {
    element,
    tell(job) {
      const now = job.progress;
      if (!now) {
        title.textContent = job.state === "queued" ? "Waiting for its turn" : "Preparing";
        replace(steps, progressBar(null, "Waiting"));
        return;
      }
      const share = now.total > 0 ? Math.min(now.done / now.total, 1) : null;
      const overall = now.models > 0 ? Math.min((now.model_number - 1 + (share ?? 0)) / now.models, 1) : null;
      title.textContent = "Showing the images to models";
      replace(steps,
        h("div", { class: "progress-line" }, h("span", null, `Model ${now.model_number} of ${now.models}`), progressBar(overall, "All models")),
        h("div", { class: "progress-line" },
          h("span", null, bdi(now.model), h("span", { class: "fine" }, " ", bdi(now.what), share !== null && `, ${place(now.done)} of ${plural(now.total, "image")}`)),
          progressBar(share, `This model: ${now.what}`)));
      const words = `Model ${now.model_number} of ${now.models}`;
      if (words !== said) announce(words);
      said = words;
    },
  };
}
