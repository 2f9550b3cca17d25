// A recommendation: the models by predicted rank, and the source tasks that decided.

import { bdi, h, modelName, unseen } from "./dom.js";
import { percent, place } from "./amounts.js";
import { commands, folded } from "./boxes.js";
import { bar, blockChart } from "./charts.js";
import { icon } from "./icons.js";
import { href } from "./state.js";
import { count, duration, plural, short } from "./words.js";

const SOURCES = 4; // source tasks of a model that are shown before the rest is folded
const NAMED = 5; // models left out for one reason, likewise
const ROUGH = 0.5; // completeness gap from which the steps do not follow the path well

/** The view of a Recommendation. */
export function rankingView(found) {
  const heaviest = Math.max(...found.ranking.flatMap((one) => one.sources.map((source) => source.weight)), 0) || 1;
  return h("section", { class: "ranking-part", "aria-labelledby": "ranking-title" },
    h("h2", { id: "ranking-title" }, "Ranking"),
    h("p", { class: "lead" }, summary(found)),
    hints(found),
    found.ranking.length
      ? h("ol", { class: "ranking", "data-testid": "ranking" }, found.ranking.map((one) => card(one, heaviest)))
      : h("div", { class: "notice", "data-testid": "empty-state" }, h("h3", null, "No model can be ranked"),
        h("p", null, "A model is ranked by tasks on which it has a profile and its performance is known. What is missing is said below.")),
    leftOut(found.left_out ?? []));
}

function summary(found) {
  const shown = found.ranking.length < found.candidates ? `, the best ${count(found.ranking.length)} are shown` : "";
  const computed = found.profiled ? `${plural(found.profiled, "profile")} had to be computed` : "all profiles were remembered";
  const images = plural(found.target.images.length, "image");
  return `${plural(found.candidates, "model")} ranked for ${images}${found.profiled ? "" : ` in ${duration(found.seconds)}`}${shown}; ${computed}.`;
}

/** What a careful reader should know. */
function hints(found) {
  const { ranking } = found;
  const said = [];
  const counts = ranking.map((one) => one.sources.length);
  if (ranking.length && counts.every((number) => number === 1)) {
    said.push("There is only one source task: it decides alone, whatever its weight.");
  } else if (new Set(counts).size > 1) {
    const most = Math.max(...counts);
    const fewest = ranking.reduce((a, b) => (b.sources.length < a.sources.length ? b : a));
    const how = `by ${fewest.sources.length} of ${most}: profile all on all tasks and import what is known of them there.`;
    said.push(["Models are judged by different source tasks, ", bdi(fewest.model), ` ${how}`]);
  }
  const rough = ranking.filter((one) => (one.completeness_gap ?? 0) > ROUGH);
  if (rough.length) {
    const gap = percent(rough[0].completeness_gap);
    said.push([`The completeness gap of ${plural(rough.length, "model")} is above ${percent(ROUGH)} (`, bdi(rough[0].model),
      `: ${gap}): profiles with more --n-steps follow the path better.`]);
  }
  if (!said.length) return null;
  return h("ul", { class: "hints", "data-testid": "recommend-hints" },
    said.map((words) => h("li", null, icon("warning", 16), h("span", null, words))));
}

function card(one, heaviest) {
  return h("li", { class: "card ranked", "data-testid": "ranked" },
    h("div", { class: "ranked-head" },
      h("span", { class: "ranked-rank" }, unseen("Rank "), one.rank),
      h("h3", null, h("a", { class: "model-link", href: href({ view: "model", model: one.model }) }, modelName(one.model))),
      h("p", { class: "ranked-facts" },
        h("span", null, "predicted rank ", h("strong", null, one.predicted_rank.toFixed(1))),
        typeof one.parameters === "number" && h("span", null, `${short(one.parameters)} parameters`),
        typeof one.completeness_gap === "number" && h("span", { class: one.completeness_gap > ROUGH ? "rough" : "fine" },
          `completeness gap ${percent(one.completeness_gap)}`))),
    h("div", { class: "sources" }, sources(one, heaviest),
      h("div", { class: "why-more" }, moreSources(one, heaviest), one.blocks?.length > 0 && whyBlocks(one))));
}

function whyBlocks({ blocks, model }) {
  return folded("What each block contributed",
    h("p", { class: "fine" }, "Importance is a block's share in the divergence; deviation is how far the images' conductance is from the source tasks'."),
    blockChart(blocks, model));
}

function sources(one, heaviest) {
  return [
    h("p", { class: "sources-title" }, "Why: its known rank on the tasks that your images resemble"),
    h("ul", { class: "source-list" }, one.sources.slice(0, SOURCES).map((source) => sourceRow(source, heaviest))),
  ];
}

function moreSources(one, heaviest) {
  const rest = one.sources.slice(SOURCES);
  if (!rest.length) return null;
  const weight = rest.reduce((sum, source) => sum + source.weight, 0);
  return folded(`${plural(rest.length, "more source task")}, ${percent(weight)} of the weight`,
    h("ul", { class: "source-list" }, rest.map((source) => sourceRow(source, heaviest))));
}

function sourceRow(source, heaviest) {
  return h("li", { class: "source", "data-testid": "source-bar" },
    h("span", { class: "source-task" }, bdi(source.task)),
    bar(source.weight / heaviest),
    h("span", { class: "source-weight" }, percent(source.weight), unseen(" of the weight")),
    h("span", { class: "source-more fine" }, `rank ${place(source.rank)} of ${count(source.of)}`,
      h("span", { title: "Directional conductance divergence from your images; 0 is alike" }, ` · divergence ${source.divergence.toFixed(3)}`)));
}

function leftOut(models) {
  if (!models.length) return null;
  const reasons = new Map();
  for (const one of models) reasons.set(one.reason, [...(reasons.get(one.reason) ?? []), one]);
  return h("section", { class: "left-out", "data-testid": "left-out", "aria-labelledby": "left-out-title" },
    h("h2", { id: "left-out-title" }, "Not ranked"),
    h("ul", { class: "left-out-list" }, [...reasons].map(([reason, same]) => {
      const names = same.map((one) => one.model);
      const command = same.length > 1 ? (same[0].command ?? "").replace(same[0].model, "MODEL...") : same[0].command;
      return h("li", { class: "card" },
        h("h3", null, bdi(reason), h("span", { class: "fine" }, ` · ${plural(same.length, "model")}`)),
        h("p", { class: "left-out-names" }, list(names.slice(0, NAMED))),
        names.length > NAMED && folded(`${count(names.length - NAMED)} more`, h("p", { class: "left-out-names" }, list(names.slice(NAMED)))),
        command && [h("p", { class: "fine" }, "What would change that:"), commands(bdi(command))]);
    })));
}

const list = (names) => names.map((name, i) => [i > 0 && ", ", bdi(name)]);
