// Searches to begin with: labels that models of this index declare, or names that were found for their outputs.

import { get, modelPath } from "./api.js";

const MODELS = 4; // that are looked at
const OUTPUTS = 12; // of each
const SINGLE = 4; // examples of one concept
const TOGETHER = 3; // concepts of the example that asks for one model
const LONGEST = 32; // characters of a label that makes a good example

let found = null; // once in the life of the page

/** Examples, [{q: [concept, ...], level?}]; none where nothing has a name. */
export function examples() {
  if (!found) {
    found = gather();
    found.catch(() => { found = null; });
  }
  return found;
}

async function gather() {
  const { models } = await get("/v1/models?limit=100");
  const chosen = spread(models.filter((model) => model.outputs > 0), MODELS);
  for (const names of [0, 1]) { // found names only where there are no labels, for they take longer
    const concepts = await Promise.all(chosen.map((model) => conceptsOf(model, names)));
    const made = mixed(concepts);
    if (made.length) return made;
  }
  return [];
}

async function conceptsOf(model, names) {
  const gone = new Set(model.left_out.map((one) => one.output));
  const all = Array.from({ length: model.outputs + gone.size }, (_, i) => i).filter((output) => !gone.has(output));
  const outputs = spread(all, OUTPUTS).join(",");
  const answer = await get(`/v1/models/${modelPath(model.repo)}?names=${names}&outputs=${outputs}`);
  const own = answer.describe?.outputs ?? [];
  const concepts = [...new Set(own.map((one) => plain(names ? one.concepts[0]?.name : one.label)).filter(Boolean))];
  return concepts.sort((a, b) => isName(a) - isName(b)); // words of the language before names of species and brands
}

const isName = (text) => /\p{Lu}/u.test(text);

/** A label as somebody would ask for it: the first of its synonyms; null where it is no word. */
export function plain(label) {
  if (typeof label !== "string") return null;
  const text = label.split(/[,;|(]/)[0].replaceAll("_", " ").replace(/\s+/g, " ").trim();
  const words = /^\p{L}[\p{L}\p{M} '’-]*$/u.test(text) && !/^(label|class|background|other|none|unknown)\b/i.test(text);
  return words && text.length >= 3 && text.length <= LONGEST ? text : null;
}

/** Some of a list, evenly spread. */
export function spread(list, number) {
  const some = Math.min(number, list.length);
  return Array.from({ length: some }, (_, i) => list[Math.floor(((i + 0.5) * list.length) / some)]);
}

/** One concept of each model in turn, then several of the model that has most words. */
export function mixed(concepts) {
  const single = [];
  const order = concepts.toSorted((a, b) => b.filter((one) => !isName(one)).length - a.filter((one) => !isName(one)).length);
  for (let at = 0; at < OUTPUTS && single.length < SINGLE; at += 1) {
    for (const own of order) if (own[at] && !single.includes(own[at]) && single.length < SINGLE) single.push(own[at]);
  }
  const [most = []] = order;
  const fresh = most.filter((concept) => !single.includes(concept));
  const together = (fresh.length >= TOGETHER ? fresh : most).slice(0, TOGETHER);
  return [
    ...single.map((concept) => ({ q: [concept] })),
    ...(together.length > 1 ? [{ q: together, level: "model" }] : []),
  ];
}
