// What was found: a section for each question, a card for each hit, facts and found names as they arrive.

import { bdi, h, modelName, outsideHref, pause, replace, unseen } from "./dom.js";
import { isAbort, post } from "./api.js";
import { opener } from "./boxes.js";
import { codeDisclosure } from "./code.js";
import { evidenceLegend, evidenceStrip, topOf } from "./evidence.js";
import { icon } from "./icons.js";
import { href } from "./state.js";
import { count, duration, listed, plural, short, signed, standing } from "./words.js";

const PAGE = 50; // cards that are drawn at once
const FEW = 12; // matched outputs of a model that are all drawn
const MORE = 20; // that are drawn when more are asked for
const ASKED_AT_ONCE = 200; // outputs that one POST /v1/outputs takes
const NAMES_AGAIN_MS = [700, 1000, 1500, 2000, 3000, 4000]; // while found names are being prepared

/**
 * The view of an answer.
 *
 * @param {object} answer of POST /v1/search
 * @param {object} state
 * @param {object|null} info of GET /v1/index
 * @returns {{element: Element, status: Element, cards: Map<string, object[]>, onMore: Function|null}} `cards`: by
 *   output (org/name#17), what takes its facts and its names, two functions
 */
export function answerView(answer, state, info) {
  const context = { state, background: info?.manifest?.background?.count ?? 0, cards: new Map(), view: null };
  const status = h("span", { class: "names-status", "data-testid": "names-status" });
  const view = { status, cards: context.cards, onMore: null, element: null };
  context.view = view;
  const meanings = explanation(info?.manifest?.background);
  view.element = h("div", null,
    h("div", { class: "answer-line" },
      h("p", { "data-testid": "answer-line" }, h("strong", null, plural(answer.searched, "output")), ` searched ${answer.exact ? "exactly" : "approximately"} in ${duration(answer.seconds)}`),
      opener("What the numbers mean", meanings, { testid: "meanings-button" })),
    meanings,
    h("div", { class: "answer-line second" }, evidenceLegend(), status),
    answer.results.map((result, at) => section(result, at, answer.results.length, context)));
  return view;
}

function explanation(background) {
  const phrases = background?.count ? `${count(background.k)} nearest of ${count(background.count)}` : "nearest";
  return h("dl", { class: "meanings", "data-testid": "meanings" },
      h("dt", null, "Margin"),
      h("dd", null, `How much nearer an output comes to what you asked for than to the ${phrases} unrelated background phrases, in units of the spread of all of them. Larger is better. Below 0 the background is nearer: such a hit is here only because nothing better was left.`),
      h("dt", null, "Bar"),
      h("dd", null, "The margin beside the largest of this question, which fills it: bars of different questions cannot be compared, margins can."),
      h("dt", null, "Standing"),
      h("dd", null, "How many of the background phrases are further from this very output than what you asked for."),
      h("dt", null, "Photographs"),
      h("dd", null, "The probes that the output responds to and that are near to what you asked for: the evidence for the hit."),
      h("dt", null, "Found name"),
      h("dd", null, "The phrase of a large vocabulary that the output's responses fit best, found without looking at its declared label."),
      h("dt", null, "Agrees"),
      h("dd", null, "The responses do not speak against the declared label, however different the found name sounds. “Label disagrees” where the label is far from what the output does and the found name is clearly nearer."));
}

function section(result, at, of, context) {
  const { hits, query } = result;
  const ofModels = context.state.level === "model";
  const margins = ofModels
    ? hits.flatMap((hit) => [hit.margin, ...hit.outputs.map((own) => own.margin ?? 0)])
    : hits.map((hit) => hit.margin);
  const scale = { low: Math.min(0, ...margins), high: Math.max(0, ...margins, 0.001) };
  const top = topOf(ofModels ? hits.flatMap((hit) => hit.outputs.map((own) => own.probes)) : hits.map((hit) => hit.probes));
  const list = h("ol", { class: "hits" });
  const more = h("button", { type: "button", class: "button", onclick: () => draw() });
  let drawn = 0;
  const draw = () => {
    const next = hits.slice(drawn, drawn + PAGE);
    const first = drawn > 0;
    drawn += next.length;
    const cards = next.map((hit) => (ofModels ? modelCard(hit, scale, top, context) : outputCard(hit, scale, top, context)));
    list.append(...cards);
    more.hidden = drawn >= hits.length;
    more.textContent = `Show ${Math.min(PAGE, hits.length - drawn)} more`;
    if (first) {
      cards[0].querySelector("a")?.focus();
      context.view.onMore?.();
    }
  };
  draw();
  const id = `question-${at}`;
  return h("section", { class: "question", "aria-labelledby": id },
    h("h2", { id, class: of === 1 && !query.copy_of ? "unseen" : "question-name" }, questionName(query),
      of > 1 && h("span", { class: "fine" }, `${at + 1} of ${of}`)),
    hits.length ? [list, h("p", null, more)] : h("p", { class: "notice" }, "No output answers to this under these filters."));
}

function questionName(query) {
  if (query.like) return h("span", null, "Like ", bdi(query.like), query.copy_of && h("span", { class: "fine" }, " (a copy of ", bdi(query.copy_of), ")"));
  const images = query.images?.length ? plural(query.images.length, "image") : null;
  const texts = query.texts ?? (query.text ? [query.text] : []);
  return h("span", null, bdi(listed(texts)), images && (texts.length ? ` with ${images}` : images));
}

/** A bar from the section's 0; to the left of it for margins below. */
function marginBar(margin, scale) {
  const span = scale.high - scale.low;
  const zero = (100 * -scale.low) / span;
  const width = (100 * Math.abs(margin)) / span;
  return h("span", { class: `margin-track ${scale.low < 0 ? "has-zero" : ""}`, "aria-hidden": "true", css: { "--zero": `${zero}%` } },
    h("span", { class: `margin-fill ${margin < 0 ? "below" : ""}`, css: { left: `${margin < 0 ? zero - width : zero}%`, width: `${width}%` } }));
}

function standingLine(hit, background) {
  const text = standing(hit.percentile, background);
  return h("p", { class: "percentile", "data-testid": "hit-percentile" }, text);
}

/** The declared label beside the found name; `take` fills the name in when it arrives. */
function saysAndDoes(label) {
  const name = h("dd", { "data-testid": "hit-name" }, h("span", { class: "fine" }, "…"));
  const mark = h("span", { class: "agreement" });
  const element = h("div", { class: "says" }, h("dl", null,
    h("div", null, h("dt", null, "Labelled"), h("dd", { "data-testid": "hit-label" }, label === null || label === undefined ? h("span", { class: "fine" }, "no label") : bdi(label))),
    h("div", null, h("dt", null, "Recognises"), name)), mark);
  return {
    element,
    take(own, names) {
      const best = own?.concepts?.[0];
      if (best) replace(name, bdi(best.name));
      else if (names?.state === "preparing") replace(name, h("span", { class: "fine" }, "being found …"));
      else replace(name, h("span", { class: "fine" }, names?.state === "off" ? "names are off" : "not known"));
      if (own?.agrees === false) {
        replace(mark, h("span", { class: "tag doubt", title: "The declared label and what the output does differ clearly" }, icon("warning", 14), "label disagrees"));
      } else if (own?.agrees === true) {
        replace(mark, h("span", { class: "fine agrees" }, icon("check", 14), "agrees"));
      } else {
        replace(mark);
      }
    },
  };
}

/** Library, licence, size, downloads and the link; `take` fills them in. */
function factsLine() {
  const element = h("ul", { class: "facts", "data-testid": "hit-facts" }, h("li", { class: "fine" }, "\u00a0"));
  const link = h("span", { class: "hub-link" });
  return {
    element,
    link,
    take(facts) {
      if (!facts) return;
      const item = (name, value) => value !== null && value !== undefined && value !== "" && h("li", null, unseen(`${name}: `), h("span", { title: name }, value));
      replace(element,
        item("Library", facts.library && bdi(facts.library)),
        h("li", null, unseen("Licence: "), facts.licence ? h("span", { title: "Licence" }, bdi(facts.licence)) : h("span", { class: "fine" }, "licence not stated")),
        item("Size", typeof facts.parameters === "number" ? `${short(facts.parameters)} parameters` : null),
        item("Downloads", typeof facts.downloads === "number" ? `${short(facts.downloads)} downloads` : null),
        item("Architecture", facts.architecture && bdi(facts.architecture)));
      const url = outsideHref(facts.url);
      replace(link, url && h("a", { class: "quiet", href: url, target: "_blank", rel: "noopener noreferrer", "data-testid": "hit-link" },
        "Open on the Hub", icon("outside", 16), unseen(" (opens a new tab)")));
    },
  };
}

function copiesLine(copies) {
  if (!copies?.length) return null;
  const links = copies.map((repo) => h("a", { href: href({ view: "model", model: repo }) }, bdi(repo)));
  const shown = links.slice(0, 2).flatMap((link, at) => (at ? [", ", link] : [link]));
  return h("div", { class: "also fine", "data-testid": "hit-copies" }, "also: ", shown,
    links.length > 2 && " ", links.length > 2 && h("details", { class: "inline" }, h("summary", null, `(+${count(links.length - 2)} more)`),
      links.slice(2).flatMap((link, at) => (at ? [", ", link] : [link]))));
}

function register(context, model, output, take) {
  const id = `${model}#${output}`;
  context.cards.set(id, [...(context.cards.get(id) ?? []), take]);
}

function title(repo) {
  return h("h3", null, h("a", { class: "model-link", href: href({ view: "model", model: repo }), "data-testid": "hit-model" }, modelName(repo)));
}

function moreLike(id, level) {
  return h("a", { class: "quiet", href: href({ like: id, level }), "data-testid": "more-like" }, icon("similar", 16), "More like this", unseen(`: ${id}`));
}

function witnessTags(hit) {
  if (!hit.witnesses) return null;
  const named = { probes: "responses", labels: "label" };
  const verb = hit.witnesses.length === 1 && hit.witnesses[0] === "labels" ? "speaks" : "speak";
  const margin = typeof hit.label_margin === "number" ? ` (label margin ${signed(hit.label_margin)})` : "";
  return h("p", { class: "witnesses fine", "data-testid": "hit-witnesses" },
    hit.witnesses.length ? `${listed(hit.witnesses.map((who) => named[who] ?? who))} ${verb} for it` : "neither responses nor label speak for it", margin);
}

function outputCard(hit, scale, top, context) {
  const id = `${hit.model}#${hit.output}`;
  const names = saysAndDoes(hit.label);
  const facts = factsLine();
  register(context, hit.model, hit.output, { facts: facts.take, names: names.take });
  const code = codeDisclosure(hit.model, hit.output);
  return h("li", { class: "hit card", "data-testid": "hit" },
    h("div", { class: "hit-head" },
      h("span", { class: "rank" }, unseen("Rank "), hit.rank),
      h("div", { class: "hit-who" }, title(hit.model), h("p", { class: "which fine" }, `output ${hit.output}`), copiesLine(hit.copies)),
      h("div", { class: "hit-margin", "data-testid": "hit-margin" },
        h("span", { class: `margin-value ${hit.margin < 0 ? "below" : ""}` }, unseen("Margin "), signed(hit.margin)),
        marginBar(hit.margin, scale), standingLine(hit, context.background), witnessTags(hit))),
    names.element,
    hit.probes?.length > 0 && evidenceStrip(hit.probes, top, { name: id }),
    h("div", { class: "hit-foot" }, facts.element,
      h("div", { class: "actions" }, code.button, moreLike(id, "output"), facts.link)),
    code.panel);
}

function modelCard(hit, scale, top, context) {
  const facts = factsLine();
  const list = matchedList(hit, scale, top, context);
  const known = hit.outputs.find((own) => own.output !== null);
  if (known) register(context, hit.model, known.output, { facts: facts.take });
  const code = codeDisclosure(hit.model, known?.output ?? null);
  const asked = context.state.like ? "output" : "concept";
  return h("li", { class: "hit card", "data-testid": "hit" },
    h("div", { class: "hit-head" },
      h("span", { class: "rank" }, unseen("Rank "), hit.rank),
      h("div", { class: "hit-who" }, title(hit.model),
        h("p", { class: "which fine" }, `covers ${count(hit.covered)} of ${plural(hit.outputs.length, asked)}`), copiesLine(hit.copies)),
      h("div", { class: "hit-margin", "data-testid": "hit-margin" },
        h("span", { class: `margin-value ${hit.margin < 0 ? "below" : ""}` }, unseen("Mean margin "), signed(hit.margin)),
        marginBar(hit.margin, scale), h("p", { class: "percentile" }, `mean over the ${asked}s`))),
    list,
    h("div", { class: "hit-foot" }, facts.element,
      h("div", { class: "actions" }, code.button, moreLike(hit.model, "model"), facts.link)),
    code.panel);
}

/** The matched outputs; of a long list (a whole model that others are like) the best first, and more when asked for. */
function matchedList(hit, scale, top, context) {
  const long = hit.outputs.length > FEW;
  const order = long ? hit.outputs.toSorted((a, b) => (b.margin ?? -Infinity) - (a.margin ?? -Infinity)) : hit.outputs;
  const list = h("ul", { class: "matched", "aria-label": `Matched outputs of ${hit.model}` });
  const more = h("button", { type: "button", class: "button", onclick: () => draw(MORE) });
  let drawn = 0;
  const draw = (number) => {
    const rows = order.slice(drawn, drawn + number).map((own) => matchedRow(own, hit, scale, top, context));
    list.append(...rows);
    if (drawn) {
      rows[0].querySelector("button")?.focus();
      context.view.onMore?.();
    }
    drawn += rows.length;
    more.hidden = drawn >= order.length;
    more.textContent = `Show ${Math.min(MORE, order.length - drawn)} more of ${count(order.length)}`;
  };
  draw(long ? 3 : order.length);
  return h("div", { class: "matched-all" }, long && h("p", { class: "fine" }, `The nearest of ${plural(order.length, "matched output")}:`), list, more);
}

function matchedRow(own, hit, scale, top, context) {
  if (own.output === null) {
    return h("li", { class: "matched-row" }, h("p", { class: "matched-concept" }, bdi(own.concept)),
      h("p", { class: "fine" }, "nothing in this model recognises it"));
  }
  const names = saysAndDoes(own.label);
  register(context, hit.model, own.output, { names: names.take });
  return h("li", { class: "matched-row" },
    h("div", { class: "matched-head" },
      h("p", { class: "matched-concept" }, bdi(own.concept), h("span", { class: "fine" }, ` output ${own.output}`)),
      h("div", { class: "matched-margin" }, h("span", { class: `margin-value ${own.margin < 0 ? "below" : ""}` }, unseen("Margin "), signed(own.margin)), marginBar(own.margin, scale))),
    names.element,
    own.probes?.length > 0 && evidenceStrip(own.probes, top, { name: `${hit.model}#${own.output}`, most: 10 }));
}

/** Fetches facts of all drawn hits, then their found names, which may take long; asks again while they are prepared. */
export async function addDetails(view, signal) {
  const known = { facts: new Set(), names: new Set() };
  const ask = async (kind, names) => {
    const wanted = [...view.cards].filter(([id, takes]) => !known[kind].has(id) && takes.some((take) => take[kind])).map(([id]) => id);
    let preparing = null;
    for (let at = 0; at < wanted.length; at += ASKED_AT_ONCE) {
      const answer = await post("/v1/outputs", { outputs: wanted.slice(at, at + ASKED_AT_ONCE), names }, [], { signal });
      const waits = kind === "names" && answer.names?.state === "preparing";
      if (waits) preparing = answer.names;
      for (const own of answer.outputs) {
        const id = `${own.model}#${own.output}`;
        for (const take of view.cards.get(id) ?? []) {
          if (kind === "facts") take.facts?.(own.facts);
          else take.names?.(own, answer.names);
        }
        if (!waits || own.concepts?.length) known[kind].add(id);
      }
    }
    return preparing;
  };
  const askAll = async () => {
    await ask("facts", 0);
    for (let tries = 0; ; tries += 1) {
      const preparing = await ask("names", 1);
      view.status.textContent = preparing ? namesStatus(preparing) : "";
      if (!preparing) return;
      await pause(NAMES_AGAIN_MS[Math.min(tries, NAMES_AGAIN_MS.length - 1)], signal);
    }
  };
  const begin = async () => {
    try {
      await askAll();
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      view.status.textContent = `Facts and names could not be fetched: ${error.detail || error.message}`;
      for (const [id, takes] of view.cards) if (!known.names.has(id)) for (const take of takes) take.names?.(null, null);
    }
  };
  view.onMore = begin;
  await begin();
}

function namesStatus(names) {
  const how = names.total > 0 ? ` (${count(names.done)} of ${count(names.total)} phrases)` : "";
  return `Finding names for the outputs${how}`;
}
