// Drawings: bars with names, a curve beside the even line, what each block says. Every one of them has its figures as
// text, too: beside the bars, or in a table that opens below.

import { bdi, h, s } from "./dom.js";
import { digits, percent } from "./amounts.js";
import { folded, plainTable } from "./boxes.js";
import { count } from "./words.js";

/**
 * Rows of a name, a bar and a figure, longest as given; a row with `href` is a link as a whole.
 *
 * @param {{name: string, value: number, text?: string, href?: string, title?: string, quiet?: boolean}[]} items
 * @param {{label: string, most?: number}} options `label` names the list for screen readers; `most` is a full bar.
 */
export function bars(items, { label, most = Math.max(...items.map((item) => item.value), 0) }) {
  return h("ul", { class: "tally", "aria-label": label }, items.map((item) => h("li", null, h(
    item.href ? "a" : "div",
    { class: item.quiet ? "tally-row tally-quiet" : "tally-row", href: item.href, title: item.title },
    h("span", { class: "tally-name" }, bdi(item.name)),
    bar(item.value / (most || 1)),
    h("span", { class: "tally-value" }, item.text ?? count(item.value)),
  ))));
}

/** A bar alone, 0 to 1 of its track; decoration, so the figure stands beside it. */
export function bar(share, look = "") {
  const width = `${Math.min(Math.max(share, 0), 1) * 100}%`;
  return h("span", { class: `tally-track ${look}`, "aria-hidden": "true" }, h("span", { class: "tally-fill", css: { width } }));
}

/** A progress bar; `share` null where nobody knows how far it is. */
export function progressBar(share, label) {
  const known = share !== null && Number.isFinite(share);
  const value = known ? Math.min(Math.max(share, 0), 1) : 0;
  return h("div", {
    class: known ? "meter" : "meter meter-unknown", role: "progressbar", "aria-label": label, "aria-valuemin": "0",
    "aria-valuemax": "100", ...(known ? { "aria-valuenow": Math.round(100 * value) } : {}),
  }, h("div", { class: "meter-fill", ...(known ? { css: { width: `${100 * value}%` } } : {}) }));
}

/** Draws anew whenever the width of the place changes, so that letters keep their size. */
function fitted(place, draw) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now < 1 || now === width) return;
    width = now;
    place.replaceChildren(draw(now));
  }).observe(place);
  return place;
}

/**
 * A curve of shares from (0, 0) to (1, 1) beside the even line.
 *
 * @param {[number, number][]} points in the order of x
 * @param {{x: string, y: string, even: string, title: string, mark?: {at: [number, number], text: string},
 *   say: (point: [number, number]) => string, testid?: string}} options `x` and `y` name the axes, `even` the straight
 *   line, `mark` points out one place, `say` puts a point into words for the line below the curve.
 */
export function shareCurve(points, { x, y, even, title, mark, say, testid }) {
  const readout = h("p", { class: "fine curve-readout", "aria-hidden": "true" }, "Point at the curve to read it.");
  const place = fitted(h("div", { class: "curve-place" }), (width) => {
    const height = Math.round(Math.min(Math.max(width * 0.56, 230), 340));
    const [left, top, right, bottom] = [52, 12, width - 14, height - 46];
    const at = ([a, b]) => [left + a * (right - left), bottom - b * (bottom - top)];
    const path = (some) => some.map((point, i) => `${i ? "L" : "M"}${at(point).map((v) => v.toFixed(1)).join(" ")}`).join("");
    const ticks = width < 420 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
    const dot = s("circle", { class: "curve-dot", r: 5, visibility: "hidden" });
    const follow = (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      const wanted = ((event.clientX - box.left) * (width / box.width) - left) / (right - left);
      const nearest = points.reduce((best, point) => (Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted) ? point : best));
      const [cx, cy] = at(nearest);
      dot.setAttribute("cx", cx);
      dot.setAttribute("cy", cy);
      dot.setAttribute("visibility", "visible");
      readout.textContent = say(nearest);
    };
    const [evenX, evenY] = at([0.74, 0.74]);
    return s("svg", {
      class: "curve", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title,
      onpointermove: follow, onpointerdown: follow,
    },
    ticks.map((tick) => {
      const [tx, ty] = at([tick, tick]);
      return [
        s("line", { class: "curve-grid", x1: left, x2: right, y1: ty, y2: ty }),
        s("line", { class: "curve-grid", x1: tx, x2: tx, y1: top, y2: bottom }),
        s("text", { class: "curve-tick", x: left - 8, y: ty + 4, "text-anchor": "end" }, `${100 * tick} %`),
        s("text", { class: "curve-tick", x: tx, y: bottom + 18, "text-anchor": tick === 1 ? "end" : "middle" }, `${100 * tick} %`),
      ];
    }),
    s("text", { class: "curve-axis", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, x),
    s("text", { class: "curve-axis", transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, y),
    s("path", { class: "curve-under", d: `${path(points)}L${at([1, 0]).join(" ")}L${at([0, 0]).join(" ")}Z` }),
    s("path", { class: "curve-even", d: path([[0, 0], [1, 1]]) }),
    s("text", {
      class: "curve-even-name", "text-anchor": "middle",
      transform: `translate(${evenX} ${evenY + 18}) rotate(${(-Math.atan2(bottom - top, right - left) * 180) / Math.PI})`,
    }, even),
    s("path", { class: "curve-line", d: path(points) }),
    mark && marked(mark, at, bottom, right),
    dot);
  });
  return h("figure", { class: "curve-figure", "data-testid": testid }, place, readout);
}

function marked({ at: point, text }, at, bottom, right) {
  const [x, y] = at(point);
  const beside = x + 10 + text.length * 6.6 < right;
  return [
    s("path", { class: "curve-mark", d: `M${x} ${bottom}L${x} ${y}` }),
    s("circle", { class: "curve-mark-dot", cx: x, cy: y, r: 4.5 }),
    s("text", { class: "curve-mark-name", x: beside ? x + 10 : x - 10, y: y + 20, "text-anchor": beside ? "start" : "end" }, text),
  ];
}

/**
 * What each block contributed: importance upwards, deviation downwards, from the input to the answer.
 *
 * @param {{block: string, importance: number, deviation: number, conductance: number}[]} blocks
 * @param {string} model whose they are
 */
export function blockChart(blocks, model) {
  const important = Math.max(...blocks.map((block) => block.importance), 0) || 1;
  const deviant = Math.max(...blocks.map((block) => block.deviation), 0) || 1;
  const stem = commonStem(blocks.map((block) => block.block));
  const place = fitted(h("div", { class: "blocks-place" }), (width) => {
    const [half, middle] = [72, 92];
    const step = (width - 2) / blocks.length;
    const thick = Math.max(Math.min(step * 0.72, 34), 1);
    const names = blocks.map((block) => block.block.slice(stem.length));
    const named = names.every((name) => name.length * 7 < step);
    const height = named ? 202 : 186;
    return s("svg", { class: "blocks", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" },
      blocks.map((block, i) => {
        const x = 1 + step * i + (step - thick) / 2;
        const up = (block.importance / important) * half;
        const down = (block.deviation / deviant) * half;
        return s("g", null,
          s("title", null, `${block.block}: importance ${percent(block.importance)}, deviation ${block.deviation.toFixed(3)}`),
          s("rect", { class: "blocks-hit", x: 1 + step * i, y: 0, width: step, height }),
          s("rect", { class: "blocks-up", x, y: middle - 1 - up, width: thick, height: up, rx: 1.5 }),
          s("rect", { class: "blocks-down", x, y: middle + 1, width: thick, height: down, rx: 1.5 }),
          named && s("text", { class: "curve-tick", x: x + thick / 2, y: 180, "text-anchor": "middle" }, names[i]));
      }),
      s("line", { class: "blocks-axis", x1: 0, x2: width, y1: middle, y2: middle }),
      s("text", { class: "curve-tick", x: 0, y: 12 }, `importance, up to ${percent(important)}`),
      s("text", { class: "curve-tick", x: 0, y: height - 3 }, `deviation, up to ${deviant.toFixed(2)}`),
      s("text", { class: "curve-tick", x: width, y: height - 3, "text-anchor": "end" }, "input → answer"));
  });
  return h("figure", { class: "blocks-figure" }, place, folded("As a table", plainTable(
    `What each block of ${model} contributed`, ["block", "#importance", "#deviation", "#conductance"],
    blocks.map((block) => [
      bdi(block.block, { class: "mono" }), percent(block.importance), block.deviation.toFixed(3), digits(block.conductance),
    ]),
  )));
}

/** What names have in common up to a dot, which need not be said for each: "visual.blocks.0", "visual.blocks.1". */
export function commonStem(names) {
  if (names.length < 2) return "";
  let stem = names[0].slice(0, names[0].lastIndexOf(".") + 1);
  while (stem && !names.every((name) => name.startsWith(stem) && name.length > stem.length)) {
    stem = stem.slice(0, stem.slice(0, -1).lastIndexOf(".") + 1);
  }
  return stem;
}
