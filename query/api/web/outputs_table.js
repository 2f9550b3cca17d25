// The outputs of a model: what each is labelled and what it was found to recognise. Thousands of them stay quick: all are
// filtered and sorted, a hundred at a time are drawn, and names are fetched for those that are looked at first.

import { announce, bdi, h, pause, replace, unseen } from "./dom.js";
import { get, isAbort, modelPath } from "./api.js";
import { fillWithCode } from "./code.js";
import { icon } from "./icons.js";
import { progressBar } from "./charts.js";
import { href } from "./state.js";
import { count, plural } from "./words.js";

const FIRST = 25; // rows drawn at first: what stands below the table is worth seeing, too
const PAGE = 100; // rows that each wish for more adds
const ASKED_AT_ONCE = 50; // outputs whose names one request asks for: few, so that rows that are looked at next wait little
const NAMES = 3; // of each output
const UNASKED = 2000; // outputs whose names are found without a person's wish
const AGAIN_MS = 2000; // while the vocabulary is prepared

const byText = (a, b) => (a === null) - (b === null) || (a ?? "").localeCompare(b ?? "", "en"); // null comes last
const best = (row) => row.concepts[0] ?? null;
const SORTS = {
  output: ["Position", () => 0],
  label: ["Label, A to Z", (a, b) => byText(a.label, b.label)],
  name: ["Found name, A to Z", (a, b) => byText(best(a)?.name ?? null, best(b)?.name ?? null)],
  sure: ["Surest name first", (a, b) => (best(b)?.score ?? -1e9) - (best(a)?.score ?? -1e9)],
};

const SHOWN = {
  all: ["All outputs", () => true],
  disagree: ["Label disagrees", (row) => row.agrees === false],
  unlabelled: ["No label", (row) => row.label === null],
};

/**
 * The table and what drives it.
 *
 * @param {string} repo the model whose page it is, which links lead to
 * @param {{output: number, label: string|null, agrees: boolean|null, concepts: object[]}[]} outputs
 * @returns {{element: Element, fill(signal: AbortSignal): Promise<void>}} `fill` fetches the found names and ends when
 *   all are there
 */
export function outputsTable(repo, outputs) {
  const rows = outputs.map((own) => ({ ...own, concepts: own.concepts ?? [], named: false, element: null }));
  const known = new Map(rows.map((row) => [row.output, row]));
  const chosen = { text: "", shown: "all", sort: "output" };
  let matching = rows;
  let drawn = 0;
  let state = null; // of the names
  const waiting = { wake: null }; // what goes on when more rows want names

  const body = h("tbody");
  const more = h("button", { type: "button", class: "button", onclick: () => drawMore(true) });
  const tally = h("p", { class: "fine outputs-count", role: "status" });
  const progress = h("div", { class: "names-progress", "data-testid": "names-progress" });
  const empty = h("p", { class: "notice", hidden: true });

  const update = () => {
    const wanted = chosen.text.toLowerCase().split(/\s+/).filter(Boolean);
    const passes = SHOWN[chosen.shown][1];
    matching = rows.filter((row) => passes(row) && (!wanted.length || holds(row, wanted)));
    matching.sort((a, b) => SORTS[chosen.sort][1](a, b) || a.output - b.output);
    drawn = 0;
    body.replaceChildren();
    drawMore(false);
    empty.hidden = matching.length > 0;
    empty.textContent = whyNone();
    tellCount();
  };

  const whyNone = () => {
    const all = rows.every((row) => row.named);
    if (chosen.text || chosen.shown !== "disagree") return `No output fits.${all ? "" : " Names that are not found yet are not searched."}`;
    return all ? "No label disagrees with what its output does." : "No disagreement is known yet: the found names are not all there.";
  };

  const tellCount = () => {
    const parts = [`${matching.length === rows.length ? "" : `${count(matching.length)} of `}${plural(rows.length, "output")}`];
    const compared = rows.filter((row) => row.agrees !== null).length;
    const wrong = rows.filter((row) => row.agrees === false).length;
    const verb = wrong === 1 ? "disagrees" : "disagree";
    if (compared) parts.push(`${count(wrong)} of ${plural(compared, "compared label")} ${verb} with what the output does`);
    tally.textContent = parts.join(" · ");
  };

  const drawMore = (follow) => {
    const next = matching.slice(drawn, drawn + (drawn ? PAGE : FIRST));
    drawn += next.length;
    const made = next.map((row) => (row.element = rowElement(repo, row, state)));
    body.append(...made);
    more.hidden = drawn >= matching.length;
    more.textContent = `Show ${Math.min(PAGE, matching.length - drawn)} more of ${count(matching.length - drawn)}`;
    if (follow) made[0]?.querySelector("a")?.focus({ preventScroll: true });
    if (next.some((row) => !row.named)) waiting.wake?.(false);
  };

  const refresh = () => {
    for (const row of matching.slice(0, drawn)) {
      const cell = row.element?.querySelector(".found");
      if (cell) replace(cell, foundNames(row, state));
    }
    tellCount();
  };

  const controls = h("div", { class: "outputs-controls" },
    h("div", { class: "field outputs-filter" }, h("label", { for: "outputs-filter" }, "Filter"),
      h("input", {
        type: "search", id: "outputs-filter", "data-testid": "outputs-filter", autocomplete: "off", spellcheck: "false",
        placeholder: "label, found name or position",
        oninput: (event) => {
          chosen.text = event.target.value;
          later(update);
        },
      })),
    choice("Show", "outputs-shown", SHOWN, (value) => { chosen.shown = value; update(); }),
    choice("Sort by", "outputs-sort", SORTS, (value) => { chosen.sort = value; update(); }));

  const element = h("div", { class: "outputs", "data-testid": "model-outputs" },
    rows.length > 1 && controls, progress, tally,
    h("table", { class: "outputs-table" },
      h("caption", { class: "unseen" }, "Outputs of the model"),
      h("thead", null, h("tr", null,
        h("th", { scope: "col", class: "number" }, "Output"), h("th", { scope: "col" }, "Labelled"), h("th", { scope: "col" }, "Recognises"),
        h("th", { scope: "col" }, unseen("What to do with it")))),
      body),
    empty, h("p", null, more));
  update();

  const take = (answer) => {
    state = answer.names ?? state;
    for (const own of answer.describe.outputs) {
      const row = known.get(own.output);
      if (!row || state?.state === "preparing") continue;
      Object.assign(row, { agrees: own.agrees, concepts: own.concepts ?? [], named: true, words: undefined });
    }
    refresh();
  };

  return {
    element,
    async fill(signal) {
      try {
        await fetchNames({ repo, rows, visible: () => matching.slice(0, Math.max(drawn, FIRST)), take, progress, waiting, signal });
        if (chosen.text || chosen.shown !== "all" || ["name", "sure"].includes(chosen.sort)) update();
        else refresh();
        if (state?.state === "ready") announce("Found names are there");
      } catch (error) {
        if (isAbort(error)) return;
        state = { state: "failed", done: 0, total: 0 };
        refresh();
        replace(progress, h("p", { class: "names-note" }, icon("warning", 16),
          h("span", null, "The found names could not be fetched: ", bdi(error.detail || error.message))));
      }
    },
  };
}

/** Whether all words occur in what is known of an output. */
function holds(row, words) {
  row.words ??= `${row.output} ${row.label ?? ""} ${row.concepts.map((one) => one.name).join(" ")}`.toLowerCase();
  return words.every((word) => row.words.includes(word));
}

/** Asks for names in parts, those on the screen first; waits while the vocabulary is prepared. */
async function fetchNames({ repo, rows, visible, take, progress, waiting, signal }) {
  let all = rows.length <= UNASKED;
  for (;;) {
    const missing = visible().filter((row) => !row.named);
    const part = (missing.length || !all ? missing : rows.filter((row) => !row.named)).slice(0, ASKED_AT_ONCE);
    if (!part.length) {
      const left = rows.filter((row) => !row.named).length;
      if (all || !left) break;
      all = await wish(progress, left, waiting, signal);
      continue;
    }
    const wanted = part.map((row) => row.output).join(",");
    const answer = await get(`/v1/models/${modelPath(repo)}?names=${NAMES}&outputs=${wanted}`, { signal });
    const names = answer.names ?? { state: "off" };
    take(answer);
    if (names.state === "preparing") {
      replace(progress, preparing(names));
      await pause(AGAIN_MS, signal);
      continue;
    }
    if (names.state === "off" || names.state === "failed") {
      replace(progress, h("p", { class: "names-note" }, names.state === "off"
        ? "This service finds no names (it was started with --names no): only declared labels are shown."
        : ["Names cannot be found: ", bdi(names.why ?? "the service could not embed its vocabulary")]));
      return;
    }
    for (const row of part) row.named = true; // asked for and not answered: there is nothing to wait for
    const left = rows.filter((row) => !row.named).length;
    if (left > 0 && all) replace(progress, naming(rows.length - left, rows.length));
  }
  progress.replaceChildren();
}

/** Waits until a person wants all names (true), or has more rows drawn (false). */
function wish(progress, left, waiting, signal) {
  return new Promise((resolve, reject) => {
    waiting.wake = (all) => {
      waiting.wake = null;
      progress.replaceChildren();
      resolve(all);
    };
    signal.addEventListener("abort", () => reject(new DOMException("no longer wanted", "AbortError")), { once: true });
    replace(progress, h("p", { class: "names-note" },
      h("span", null, `Found names are fetched for the rows that are shown; ${plural(left, "output")} to go.`),
      h("button", { type: "button", class: "button", onclick: () => waiting.wake?.(true) }, "Find all names")));
  });
}

function preparing({ done, total }) {
  const words = `Preparing the vocabulary for found names${total ? `: ${count(done)} of ${count(total)} phrases` : ""}`;
  return [h("p", { class: "fine" }, words), progressBar(total ? done / total : null, "Preparing the vocabulary")];
}

function naming(done, total) {
  return [h("p", { class: "fine" }, `Finding names: ${count(done)} of ${plural(total, "output")}`), progressBar(done / total, "Finding names")];
}

function rowElement(repo, row, state) {
  const id = `${repo}#${row.output}`;
  return h("tr", { "data-output": row.output },
    h("th", { scope: "row", class: "number" }, row.output),
    h("td", { class: "labelled", "data-name": "Labelled" }, row.label === null ? h("span", { class: "fine" }, "no label") : bdi(row.label)),
    h("td", { class: "found", "data-name": "Recognises" }, foundNames(row, state)),
    h("td", { class: "row-actions" },
      h("a", { class: "quiet", href: href({ like: id }), "data-testid": "more-like" },
        icon("similar", 16), "More like this", unseen(` output, ${id}`)),
      useButton(repo, row.output)));
}

/** Opens a row below its own with the code for an output. */
function useButton(repo, output) {
  let opened = null;
  const button = h("button", {
    type: "button", class: "quiet use-output", "data-testid": "use-output", "aria-expanded": "false",
    onclick: () => {
      if (opened) {
        opened.remove();
        opened = null;
      } else {
        const code = h("div", { class: "code" });
        opened = h("tr", { class: "use-row" }, h("td", { colspan: 4 }, code));
        button.closest("tr").after(opened);
        fillWithCode(code, repo, output);
      }
      button.setAttribute("aria-expanded", String(opened !== null));
    },
  }, "Use it", unseen(`: output ${output}`), icon("chevron", 16));
  return button;
}

function foundNames(row, state) {
  if (!row.concepts.length) {
    const waits = !row.named && (!state || state.state === "preparing" || state.state === "ready");
    return h("span", { class: waits ? "fine waits" : "fine" }, waits ? "…" : "not known");
  }
  return [
    h("span", { class: "names" }, row.concepts.map((one, i) => [
      i > 0 && h("span", { class: "fine", "aria-hidden": "true" }, " · "), i > 0 && unseen(", "),
      h("span", { class: i ? "name-more" : "name-best", title: `score ${one.score.toFixed(1)}, margin ${one.margin.toFixed(2)}` }, bdi(one.name)),
    ])),
    row.agrees === false && h("span", { class: "tag doubt", title: "The declared label and what the output does differ clearly" },
      icon("warning", 14), "label disagrees"),
  ];
}

function choice(name, id, options, take) {
  return h("div", { class: "field" }, h("label", { for: id }, name),
    h("select", { id, "data-testid": id, onchange: (event) => take(event.target.value) },
      Object.entries(options).map(([value, [words]]) => h("option", { value }, words))));
}

let timer = 0;

/** Runs the last of several calls that come in quick succession. */
function later(run) {
  window.clearTimeout(timer);
  timer = window.setTimeout(run, 80);
}
