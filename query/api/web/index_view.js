// The index view: what is indexed, how evenly it answers, and how it was filled.

import { bdi, h, pause, replace, setTitle } from "./dom.js";
import { indexInfo, isAbort } from "./api.js";
import { bytes, moment, percent } from "./amounts.js";
import { commands, folded, plainTable } from "./boxes.js";
import { bars, shareCurve } from "./charts.js";
import { modelList } from "./model_list.js";
import { errorState, loading, nothing, skeleton } from "./notices.js";
import { href } from "./state.js";
import { count, plural } from "./words.js";

const AGAIN_MS = 2500; // while the hubness is computed
const MOST_BARS = 12; // of one chart; the rest is added up
const UNKNOWN = "unknown"; // stands for a library or licence that no card names

const PARTS = {
  store: "Store", snapshots: "Snapshots", responses: "Responses", probes: "Probes", background: "Background phrases", tasks: "Tasks",
  "conductance.sqlite": "Profiles of images",
};
const STATES = {
  stored: "stored, copies included", listed: "waiting", fetching: "being fetched", probing: "being probed", gone: "gone from the source",
};

/** Shows the index. */
export async function show(root, state, signal) {
  setTitle("Index");
  const rest = h("div");
  const page = h("div", { class: "index-view", "data-testid": "index-view" },
    h("header", { class: "page-head" }, h("h1", { tabindex: "-1" }, "The index")), rest);
  replace(root, page);
  let info;
  try {
    info = await loading(indexInfo(true), rest, { rows: 3, tall: false, label: "Loading the index", signal });
  } catch (error) {
    if (isAbort(error) || signal.aborted) return;
    replace(rest, errorState(error, () => show(root, state, signal)));
    return;
  }
  if (signal.aborted) return;
  const hubness = h("div");
  replace(rest, tiles(info), info.outputs ? null : h("div", { class: "part" }, empty()),
    info.models > 0 && h("div", { class: "two" },
      part("libraries", "By library", counted(info.libraries, "library", info.models)),
      part("licences", "By licence", counted(info.licences, "licence", info.models))),
    info.models > 0 && part("models", "Models", modelList(signal)),
    info.outputs > 0 && part("hubness", "How evenly it answers", hubness),
    (info.outputs > 0 || info.crawl) && part("crawl", "Last crawl", crawl(info.crawl)),
    part("made", "Made with", madeWith(info)),
    Object.values(info.bytes).some((size) => size > 0) && part("disk", "On disk", disk(info)));
  if (info.outputs > 0) await fillHubness(hubness, info, signal);
}

function part(id, name, ...children) {
  return h("section", { class: "part", "aria-labelledby": `part-${id}` }, h("h2", { id: `part-${id}` }, name), children);
}

function tiles(info) {
  const profiled = info.profiles ? `of ${plural(info.profiled_models, "model")} on ${plural(info.tasks, "task")}` : null;
  const all = [
    [info.models, "model", "models"], [info.copies, "copy of these", "copies of these"], [info.outputs, "output", "outputs"],
    [info.manifest.probes.count, "probe image", "probe images"], [info.profiles, "profile", "profiles", profiled],
    [info.performance, "known result", "known results"],
  ];
  return h("dl", { class: "tiles" }, all.map(([number, one, many, more]) => h("div", { class: "tile" },
    h("dt", null, number === 1 ? one : many, more && h("span", { class: "fine" }, ` ${more}`)), h("dd", null, count(number)))));
}

function empty() {
  return nothing("The index is empty",
    h("p", null, "Models are added one by one, or by a crawl that goes through a hub:"),
    commands("hubhound index add --index INDEX ORG/NAME\nhubhound crawl --index INDEX --source hub --once"));
}

/** Bars that lead to a search with that filter. */
function counted(counts, key, models) {
  const named = Object.entries(counts).filter(([name]) => name !== UNKNOWN).sort(([a, m], [b, n]) => n - m || a.localeCompare(b, "en"));
  const few = named.length > MOST_BARS ? named.slice(0, MOST_BARS - 1) : named;
  const folded = named.slice(few.length);
  const items = few.map(([name, number]) => ({
    name, value: number, title: percent(number / models),
    href: /[*?]/.test(name) ? null : href({ where: [`${key}=${name}`] }), // a star would make a pattern of it
  }));
  if (folded.length) items.push({ name: `${count(folded.length)} others`, value: folded.reduce((sum, [, number]) => sum + number, 0), quiet: true });
  if (counts[UNKNOWN]) items.push({ name: "not stated", value: counts[UNKNOWN], quiet: true });
  return h("div", { class: "card" }, bars(items, { label: `Models by ${key}` }),
    h("p", { class: "fine" }, "Models. A bar leads to a search among them."));
}

async function fillHubness(place, info, signal) {
  replace(place, skeleton({ rows: 1, tall: false, label: "Computing the hubness" }));
  let { hubness } = info;
  try {
    while (!hubness) {
      await pause(AGAIN_MS, signal);
      ({ hubness } = await indexInfo(true));
      if (signal.aborted) return;
    }
    replace(place, hubnessCard(hubness));
  } catch (error) {
    if (isAbort(error) || signal.aborted) return;
    replace(place, errorState(error, () => fillHubness(place, info, signal)));
  }
}

function hubnessCard({ k, concepts, outputs, half, curve }) {
  const share = half / outputs;
  const number = (x) => Math.round(x * outputs);
  const said = ([x, y]) => `${plural(number(x), "output")} (${percent(x)}), found most often: ${percent(y)} of the answers.`;
  const finding = `Half of all answers come from ${count(half)} of ${plural(outputs, "output")}`;
  const wanted = [0.01, 0.05, 0.1, 0.25, 0.5, 1];
  const near = wanted.map((at) => curve.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best)));
  return h("div", { class: "card hubness" },
    h("div", null,
      h("p", { class: "finding" }, h("strong", null, finding), ` (${percent(share)}).`),
      h("p", { class: "fine" }, `Asked for ${plural(concepts, "background phrase")}, ${plural(k, "answer")} each. `,
        "If every output were found equally often, the curve would be the even line; the higher it rises above it, the more a few outputs answer everything.")),
    shareCurve(curve, {
      x: "share of the outputs, found most often first", y: "share of the answers", even: "even", testid: "hubness-curve", say: said,
      title: `Share of the answers by share of the outputs, a curve above the even line. ${finding}.`,
      mark: { at: [share, 0.5], text: `half: ${count(half)} outputs` },
    }),
    folded("As a table", plainTable("Hubness", ["#outputs", "#share", "#of the answers"],
      [...new Set(near)].map(([x, y]) => [count(number(x)), percent(x), percent(y)]))));
}

function crawl(last) {
  if (!last) {
    return h("div", { class: "notice", "data-testid": "no-crawl" },
      h("p", null, "Nothing was ever crawled into this index: its models were added by hand. ",
        "A crawl lists a hub, a file or a folder, runs what it finds and goes on where it stopped:"),
      commands("hubhound crawl --index INDEX --source hub --once"));
  }
  const states = Object.entries(last.models).filter(([, number]) => number > 0).sort(([, a], [, b]) => b - a);
  return h("div", { class: "card crawl" },
    h("p", { class: "crawl-state" },
      h("span", { class: last.running ? "tag good" : "tag" }, last.running ? `running: ${last.phase ?? "crawling"}` : "not running"),
      last.began && h("span", null, "begun ", moment(last.began)),
      h("span", null, `${plural(last.stored, "model")} stored`)),
    h("div", { class: "two tight" },
      h("div", null, h("h3", null, "Models by state"),
        bars(states.map(([state, number]) => ({ name: STATES[state] ?? state, value: number })), { label: "Models by state" })),
      h("div", null, h("h3", null, "Why models are missing"), missing(last.failures))),
    last.sources.length > 0 && plainTable("Sources of the crawl", ["source", "complete up to", "last full pass", "now"], last.sources.map((one) => [
      bdi(one.source), one.watermark ? (moment(one.watermark) ?? bdi(one.watermark)) : "–", moment(one.last_full) ?? "–", passing(one.unfinished),
    ])));
}

function passing(pass) {
  return pass ? `${pass.kind === "full" ? "full pass" : "following"}, ${plural(pass.entries, "entry", "entries")} seen` : "–";
}

function missing(failures) {
  if (!failures.length) return h("p", { class: "fine" }, "None failed and none was refused.");
  const named = { failed: "", listed: " (tried again)", refused: " (refused)" };
  const sorted = [...failures].sort((a, b) => b.count - a.count).slice(0, MOST_BARS);
  return bars(sorted.map((one) => ({ name: `${one.reason}${named[one.state] ?? ""}`, value: one.count })), { label: "Why models are missing" });
}

function madeWith(info) {
  const { manifest } = info;
  const { state: names, done, total, why } = info.names ?? {};
  const found = {
    ready: () => `ready, ${plural(total, "phrase")}`,
    preparing: () => (total ? `${count(done)} of ${plural(total, "phrase")} prepared` : "not prepared yet"),
    off: () => "off",
    failed: () => ["not to be had: ", bdi(why ?? "")],
  }[names]?.();
  const rows = [
    ["Encoder", [bdi(manifest.encoder.spec), `, ${plural(manifest.encoder.dimension, "dimension")}`]],
    ["Prompts", manifest.encoder.templates.map((one, i) => [i > 0 && h("span", { class: "fine" }, " · "), h("q", null, bdi(one))])],
    ["Probes", [count(manifest.probes.count), " from ", bdi(manifest.probes.source)]],
    ["Kept probes", `${plural(manifest.top_r, "probe")} of each output`],
    ["Method", [bdi(manifest.method), `, ${manifest.normalisation} normalisation`]],
    ["Background", [
      plural(manifest.background.count, "phrase"), " from ", bdi(manifest.background.source), `, nearest ${count(manifest.background.k)}`,
    ]],
    ["Generation", count(info.generation)],
    ["Left out", info.left_out ? `${plural(info.left_out, "output")}: constant, NaN or infinite` : "no output"],
    ["Found names", found],
    ["Created", moment(manifest.created_at)],
  ].filter(([, value]) => value);
  return h("dl", { class: "model-facts wide card" }, rows.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

function disk(info) {
  const parts = Object.entries(info.bytes).filter(([, size]) => size > 0).sort(([, a], [, b]) => b - a);
  const all = parts.reduce((sum, [, size]) => sum + size, 0);
  const each = Object.values(info.bytes_per_output).reduce((sum, size) => sum + size, 0);
  return h("div", { class: "card" },
    bars(parts.map(([name, size]) => ({ name: PARTS[name] ?? name, value: size, text: bytes(size) })), { label: "Sizes on disk" }),
    h("p", { class: "fine" }, `${bytes(all)} in all`, each > 0 && `; a search reads at most ${bytes(each)} for each output`, "."));
}
