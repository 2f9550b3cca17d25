// A model's page: what it is, what its outputs recognise, how its blocks conduct on known tasks, and models like it.

import { bdi, h, modelName, outsideHref, replace, setTitle, unseen } from "./dom.js";
import { get, isAbort, modelPath, post } from "./api.js";
import { ago, moment, percent } from "./amounts.js";
import { commands, folded } from "./boxes.js";
import { bars } from "./charts.js";
import { heatmap } from "./heatmap.js";
import { icon } from "./icons.js";
import { errorState, loading, noSuchModel, nothing, skeleton } from "./notices.js";
import { outputsTable } from "./outputs_table.js";
import { href } from "./state.js";
import { count, plural, short, signed } from "./words.js";

const SIMILAR = 5; // models
const PAIRS = 4; // matched outputs of each that are shown
const LARGE = 3000; // outputs from which similar models are only looked for when asked
const TAGS = 12; // shown before the rest is folded
const COPIES = 6; // likewise
const ROUGH = 0.5; // completeness gap from which the steps do not follow the path well

/** Shows the page of a model. */
export async function show(root, state, signal) {
  const repo = state.model;
  setTitle(repo);
  const page = h("div", { class: "model", "data-testid": "model-page" });
  const head = h("header", { class: "model-head" }, h("h1", { tabindex: "-1", class: "model-title" }, modelName(repo)));
  const rest = h("div", { class: "model-rest" });
  page.append(head, rest);
  replace(root, page);
  let answer;
  try {
    const asked = get(`/v1/models/${modelPath(repo)}?names=0`, { signal });
    answer = await loading(asked, rest, { rows: 4, tall: false, label: "Loading the model", signal });
  } catch (error) {
    if (isAbort(error) || signal.aborted) return;
    if (error.slug === "model-not-found" || error.status === 404) {
      replace(rest, nothing("This model is not in the index",
        noSuchModel(repo, error.near ?? [], (near) => href({ view: "model", model: near })),
        h("p", { class: "notice-actions" },
          h("a", { class: "button", href: href({}) }, icon("search"), "Search"),
          h("a", { class: "button", href: href({ view: "index" }) }, "All models"))));
    } else {
      replace(rest, errorState(error, () => show(root, state, signal)));
    }
    return;
  }
  if (signal.aborted) return;
  fillHead(head, repo, answer);
  const outputs = answer.describe?.outputs ?? [];
  const table = outputs.length ? outputsTable(repo, outputs) : null;
  const known = answer.profiles ?? [];
  const results = answer.performance ?? [];
  replace(rest,
    copies(answer),
    jumps([
      answer.model && ["outputs", "Outputs"], ["profiles", "Conductance profiles"],
      results.length && ["performance", "Known performance"], table && ["similar", "Similar models"],
    ]),
    answer.model && section("outputs", "Outputs", table ? table.element
      : h("p", { class: "notice" }, "No output of this model is in the index: all are constant, NaN or infinite over the probes.")),
    section("profiles", "Conductance profiles", profiles(repo, known)),
    results.length > 0 && section("performance", "Known performance", performance(results)),
    table && section("similar", "Similar models", similar(repo, outputs.length, signal)));
  await table?.fill(signal);
}

function section(id, name, ...children) {
  return h("section", { class: "part", "aria-labelledby": `part-${id}` }, h("h2", { id: `part-${id}`, tabindex: "-1" }, name), children);
}

/** Ways past a thousand outputs; buttons, for the address is the state of the page. */
function jumps(parts) {
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const jump = (id) => {
    const heading = document.getElementById(`part-${id}`);
    heading?.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
    heading?.focus({ preventScroll: true });
  };
  return h("nav", { class: "jumps", "aria-label": "Parts of this page" },
    parts.filter(Boolean).map(([id, name]) => h("button", { type: "button", class: "quiet", onclick: () => jump(id) }, name, icon("chevron", 16))));
}

/* What it is ------------------------------------------------------------------------------------------------------- */

function fillHead(head, repo, { model, facts, copy_of: original, profiles: known = [] }) {
  const url = outsideHref(facts?.url);
  const about = { ...model, ...facts };
  const size = Array.isArray(about.input_size) ? `${about.input_size[0]} × ${about.input_size[1]} pixels` : null;
  const parameters = about.parameters ?? known.find((one) => typeof one.parameters === "number")?.parameters;
  const number = (value) => (typeof value === "number" ? count(value) : null);
  const rows = [
    ["Library", about.library && bdi(about.library)],
    ["Architecture", about.architecture && broken(about.architecture)],
    ["Parameters", typeof parameters === "number" ? h("span", { title: count(parameters) }, short(parameters)) : null],
    ["Input", size],
    ["Outputs", number(model?.outputs)],
    ["Licence", about.licence ? bdi(about.licence) : model && "not stated"],
    ["Downloads", number(about.downloads)],
    ["Likes", number(about.likes)],
    ["Revision", model?.revision && h("code", { title: model.revision }, bdi(model.revision.slice(0, 12)))],
    ["Indexed", moment(model?.indexed_at)],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false);
  const parts = [
    h("div", { class: "model-actions" },
      model && h("a", { class: "button", href: href({ like: repo, level: "model" }) }, icon("similar"), "More like this model"),
      url && h("a", { class: "button", href: url, target: "_blank", rel: "noopener noreferrer", "data-testid": "hub-link" },
        "On the Hub", icon("outside"), unseen(" (opens a new tab)"))),
    original && h("p", { class: "copy-note" }, icon("copy"),
      h("span", null, "A copy of ", modelLink(original), ": the weights are the same, so its outputs are shown.")),
    h("dl", { class: "model-facts" }, rows.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)))),
    tagList(about.tags ?? []),
    leftOut(model?.left_out ?? []),
    !model && h("p", { class: "lead" }, "No classifier of the index: it has conductance profiles, for recommendations, and no outputs to search."),
  ];
  head.append(...parts.filter(Boolean));
}

/** A name without spaces that may go on in the next line where a word of it begins. */
const broken = (name) => h("bdi", null, name.split(/(?<=[a-z0-9])(?=[A-Z])|(?<=[_.-])/).map((part, i) => [i > 0 && h("wbr"), part]));

const modelLink = (repo) => h("a", { href: href({ view: "model", model: repo }) }, bdi(repo));

function tagList(tags) {
  if (!tags.length) return null;
  const item = (tag) => h("li", { class: "tag" }, bdi(tag));
  const list = h("ul", { class: "model-tags", "aria-label": "Tags" }, tags.slice(0, TAGS).map(item));
  if (tags.length > TAGS) {
    const unfold = () => {
      list.lastElementChild.remove();
      list.append(...tags.slice(TAGS).map(item));
    };
    list.append(h("li", null, h("button", { type: "button", class: "quiet tag-more", onclick: unfold }, `${count(tags.length - TAGS)} more`)));
  }
  return list;
}

function leftOut(outputs) {
  if (!outputs.length) return null;
  const named = `${outputs.slice(0, 8).map((one) => one.output).join(", ")}${outputs.length > 8 ? " …" : ""}`;
  return h("p", { class: "fine" }, `${plural(outputs.length, "output")} left out: constant, NaN or infinite over the probes (${named}).`);
}

function copies({ copies: repos = [], copy_of: original, model }) {
  const others = [...new Set(repos)].filter((repo) => repo !== model?.repo && repo !== original);
  if (!others.length) return null;
  const links = others.map((repo) => h("li", null, modelLink(repo)));
  return h("section", { class: "part copies", "data-testid": "copies", "aria-labelledby": "part-copies" },
    h("h2", { id: "part-copies" }, "Published again"),
    h("p", { class: "lead" }, "The same model, weight for weight, is also published as"),
    h("ul", { class: "copy-list" }, links.slice(0, COPIES)),
    links.length > COPIES && folded(`${count(links.length - COPIES)} more`, h("ul", { class: "copy-list" }, links.slice(COPIES))));
}

/* What is known of its blocks -------------------------------------------------------------------------------------- */

function profiles(repo, known) {
  if (!known.length) {
    return h("div", { class: "notice", "data-testid": "no-profiles" },
      h("p", null, "It has no conductance profile yet: how much each block takes part in its answers, task by task. ",
        "Profiles are what recommendations are made from."),
      h("p", null, "With the images of a task, whoever runs this service can make one:"),
      commands(`hubhound task add NAME --index INDEX --images FOLDER\nhubhound profile ${shellWord(repo)} --index INDEX`));
  }
  const groups = new Map();
  for (const profile of [...known].sort((a, b) => a.task.localeCompare(b.task, "en"))) {
    const key = profile.blocks.join("\n");
    groups.set(key, [...(groups.get(key) ?? []), profile]);
  }
  const gap = Math.max(...known.map((profile) => profile.completeness_gap));
  const images = known.map((profile) => profile.images);
  const range = Math.min(...images) === Math.max(...images) ? plural(images[0], "image") : `${Math.min(...images)} to ${Math.max(...images)} images`;
  return [
    h("p", { class: "lead" }, `How much each block takes part in the model's answer, as the mean over ${range} of each task.`),
    [...groups.values()].map(heatmap),
    h("p", { class: "fine" }, `Completeness gap at most ${percent(gap)}`,
      gap > ROUGH && `: above ${percent(ROUGH)} the steps do not follow the path well; profiles with more --n-steps would`,
      `. Profiled ${ago(newest(known))}.`),
  ];
}

const newest = (known) => known.map((profile) => profile.profiled_at).sort().at(-1);

/** A name as one word of a shell: quoted unless it is plain. */
function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

function performance(known) {
  const sorted = [...known].sort((a, b) => b.value - a.value);
  const sources = [...new Set(sorted.map((one) => one.source).filter(Boolean))];
  const named = (one) => (one.metric && one.metric !== "acc1" ? `${one.task} (${one.metric})` : one.task);
  return h("div", { class: "card" },
    bars(sorted.map((one) => ({ name: named(one), value: one.value, text: percent(one.value) })), { label: "Performance by task", most: 1 }),
    h("p", { class: "fine" }, "Top-1 accuracy unless it says otherwise",
      sources.length > 0 && ["; source: ", sources.map((source, i) => [i > 0 && ", ", bdi(source)])], "."));
}

/* Models like it --------------------------------------------------------------------------------------------------- */

function similar(repo, outputs, signal) {
  const place = h("div", { class: "similar", "data-testid": "similar-models" });
  const begin = async () => {
    replace(place, skeleton({ rows: 3, tall: false, label: "Looking for similar models" }));
    try {
      const answer = await post("/v1/search", { like: repo, level: "model", k: SIMILAR }, [], { signal });
      if (signal.aborted) return;
      const hits = answer.results[0]?.hits ?? [];
      replace(place, hits.length
        ? [h("p", { class: "lead" }, "Models whose outputs do what this one's do, each output by one of its own."),
          h("ol", { class: "similar-list" }, hits.map(similarCard))]
        : h("p", { class: "notice" }, "No other model of the index has outputs that do the same."));
    } catch (error) {
      if (isAbort(error)) return;
      replace(place, errorState(error, begin));
    }
  };
  if (outputs > LARGE) {
    replace(place, h("p", null, `Each of its ${count(outputs)} outputs is looked for in every other model, which may take a while.`),
      h("button", { type: "button", class: "button", onclick: begin }, icon("similar"), "Find similar models"));
    return place;
  }
  replace(place, skeleton({ rows: 3, tall: false, label: "Looking for similar models" }));
  const near = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    near.disconnect();
    begin();
  }, { rootMargin: "400px" });
  near.observe(place);
  signal.addEventListener("abort", () => near.disconnect(), { once: true });
  return place;
}

function similarCard(hit) {
  const matched = hit.outputs.filter((own) => own.output !== null).sort((a, b) => b.margin - a.margin);
  const alike = matched.filter((own) => own.label === own.concept);
  const others = matched.filter((own) => own.label !== own.concept); // which say more than a label twice
  const shown = [...others, ...alike].slice(0, PAIRS);
  return h("li", { class: "card similar-card" },
    h("h3", null, h("a", { class: "model-link", href: href({ view: "model", model: hit.model }) }, modelName(hit.model))),
    h("p", { class: "similar-cover" }, covers(hit.covered, hit.outputs.length), h("span", { class: "fine" }, `mean margin ${signed(hit.margin)}`)),
    alike.length > 0 && h("p", { class: "fine" },
      others.length ? `${count(alike.length)} of them by one with the same label.` : "All by one with the same label."),
    h("ul", { class: "similar-pairs", "aria-label": `Best matched outputs${others.length ? " whose labels differ" : ""}` }, shown.map(pair)));
}

function pair({ concept, label, output }) {
  return h("li", null, h("span", { class: "pair-from" }, bdi(concept)),
    label !== concept && h("span", { class: "pair-to" }, h("span", { "aria-hidden": "true" }, "→ "), unseen("by "),
      label === null ? `output ${output}` : bdi(label)));
}

function covers(covered, of) {
  return h("strong", null, covered === of ? `covers all ${plural(of, "output")}` : `covers ${count(covered)} of ${plural(of, "output")}`);
}
