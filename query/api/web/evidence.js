// The evidence: the photographs on which an output and a concept agree most.

import { bdi, h, replace } from "./dom.js";
import { thumbnail } from "./api.js";
import { icon } from "./icons.js";
import { signed } from "./words.js";

const AGAIN_MS = [1500, 4000]; // a thumbnail may be refused while the service is busy
const LARGE = 512; // pixels of the enlarged photograph

const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    nearby.unobserve(entry.target);
    load(entry.target, Number(entry.target.dataset.probe), 192);
  }
}, { rootMargin: "300px" });

async function load(image, probe, size) {
  try {
    image.src = await thumbnail(probe, { size });
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}

/**
 * The photograph of a probe in a square frame, fetched when it comes near the screen.
 *
 * @param {number} probe
 * @param {string} alt
 */
export function probeImage(probe, alt) {
  const image = h("img", { class: "probe-image", alt, width: 192, height: 192, "data-probe": probe, decoding: "async" });
  image.addEventListener("load", () => image.classList.add("loaded"));
  let failed = 0;
  image.addEventListener("error", () => {
    if (failed < AGAIN_MS.length && image.isConnected) {
      window.setTimeout(() => load(image, probe, 192), AGAIN_MS[failed]);
      failed += 1;
    } else {
      image.parentElement?.classList.add("missing");
    }
  });
  nearby.observe(image);
  return h("span", { class: "probe-frame" }, image);
}

/** Two bars from 0: what the output answers and how near the photograph is to what was asked for, on the scale of the section. */
function pair(probe, top, words = false) {
  const bar = (value, look, name) => h("span", { class: `bar ${look} ${value < 0 ? "below" : ""}` },
    words && h("span", { class: "bar-name" }, name),
    h("span", { class: "bar-track" }, h("span", { class: "bar-fill", css: { width: `${Math.min(100, (100 * Math.abs(value)) / top)}%` } })),
    words && h("span", { class: "bar-value" }, signed(value)));
  return h("span", { class: words ? "pair pair-words" : "pair", "aria-hidden": words ? null : "true" },
    bar(probe.response, "of-output", "Output"), bar(probe.concept, "of-concept", "Asked for"));
}

const inWords = (probe) => `${probe.file}: output ${signed(probe.response, 1)}, asked for ${signed(probe.concept, 1)}`;

/** The largest value that bars of some hits have to show. */
export function topOf(lists) {
  let top = 1;
  for (const probes of lists) for (const probe of probes ?? []) top = Math.max(top, Math.abs(probe.response), Math.abs(probe.concept));
  return top;
}

/**
 * The strip of photographs behind a hit.
 *
 * @param {Array} probes {probe, file, response, concept}, best first
 * @param {number} top of `topOf`
 * @param {{name: string, most?: number}} options `name` says whose evidence it is
 */
export function evidenceStrip(probes, top, { name, most = 10 }) {
  const shown = probes.slice(0, most);
  return h("ul", { class: "evidence", "data-testid": "evidence", "aria-label": `Photographs that speak for ${name}` },
    shown.map((probe, at) => h("li", null,
      h("button", {
        type: "button", class: "probe", "data-testid": "probe-thumb", "aria-label": `Enlarge ${inWords(probe)}`, title: inWords(probe),
        onclick: () => enlarge(shown, at, top, name),
      }, probeImage(probe.probe, probe.file), pair(probe, top)))));
}

/** What the two bars mean; stands once above the hits. */
export function evidenceLegend() {
  return h("p", { class: "legend-line fine" },
    h("span", { class: "legend-item" }, h("span", { class: "key of-output" }), "output's response"),
    h("span", { class: "legend-item" }, h("span", { class: "key of-concept" }), "nearness to what you asked for"));
}

/** A dialog with one photograph at a time; arrow keys go on, Escape closes, the focus returns to where it was. */
function enlarge(probes, start, top, name) {
  let at = start;
  const before = document.activeElement;
  const image = h("img", { class: "lightbox-image", width: LARGE, height: LARGE });
  const frame = h("div", { class: "lightbox-frame" }, image);
  const words = h("div", { class: "lightbox-words", "aria-live": "polite" });
  const step = (by) => {
    at = (at + by + probes.length) % probes.length;
    draw();
  };
  const turn = (by, text, look) => h("button", { type: "button", class: `button icon-button ${look}`, "aria-label": text, onclick: () => step(by), disabled: probes.length < 2 }, icon("chevron", 20));
  const dialog = h("dialog", {
    class: "dialog lightbox", "aria-label": `Photographs that speak for ${name}`, "data-testid": "lightbox",
    onclick: (event) => { if (event.target === dialog) dialog.close(); },
    onkeydown: (event) => {
      if (event.key === "ArrowRight") step(1);
      if (event.key === "ArrowLeft") step(-1);
    },
    onclose: () => {
      dialog.remove();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    },
  },
  h("div", { class: "lightbox-in" }, frame, words,
    h("div", { class: "lightbox-buttons" }, turn(-1, "Photograph before", "turn-left"), turn(1, "Next photograph", "turn-right"),
      h("button", { type: "button", class: "button", "data-testid": "lightbox-close", onclick: () => dialog.close() }, icon("close"), "Close"))));
  function draw() {
    const probe = probes[at];
    image.alt = probe.file;
    frame.classList.remove("missing");
    image.classList.remove("loaded");
    load(image, probe.probe, LARGE);
    replace(words,
      h("p", { class: "lightbox-name" }, h("span", { class: "fine" }, `${at + 1} of ${probes.length} · photograph ${probe.probe}`), bdi(probe.file)),
      pair(probe, top, true),
      h("p", { class: "fine" }, "In standard deviations from the mean over all photographs. A photograph speaks for a hit when both are high."));
  }
  image.addEventListener("load", () => image.classList.add("loaded"));
  image.addEventListener("error", () => frame.classList.add("missing"));
  draw();
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("[data-testid=lightbox-close]").focus();
}
