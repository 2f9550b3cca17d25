// Conditions on models and outputs, and how it is searched.

import { bdi, h, replace } from "./dom.js";
import { indexInfo } from "./api.js";
import { icon } from "./icons.js";
import { read, write } from "./state.js";
import { count } from "./words.js";

const SIZES = [["5M", "5 M"], ["10M", "10 M"], ["25M", "25 M"], ["50M", "50 M"], ["100M", "100 M"], ["300M", "300 M"]];
const DOWNLOADS = [["100", "100"], ["1000", "1,000"], ["10000", "10,000"], ["100000", "100,000"], ["1000000", "1,000,000"]];
const LABELS = [["yes", "with a declared label"], ["no", "without a label"]];
const EVIDENCE = [
  ["probes", "What outputs do", "How they respond to the probe photographs. Finds unlabelled and mislabelled outputs, too."],
  ["labels", "What labels say", "How near their declared labels are to the concept."],
  ["both", "Both", "The responses, and a bonus where the label speaks for it."],
];
const KS = [5, 10, 20, 50, 100];
const NAMES = {
  library: "library", licence: "licence", architecture: "architecture", model: "model",
  "max-parameters": "at most", "min-downloads": "downloads at least", label: "label",
};

const keyOf = (condition) => condition.slice(0, condition.indexOf("=")).trim().toLowerCase();
const valueOf = (condition) => condition.slice(condition.indexOf("=") + 1).trim();
const valuesOf = (state, key) => state.where.filter((one) => keyOf(one) === key).map(valueOf);

function setValues(key, values) {
  const state = read();
  write({ ...state, where: [...state.where.filter((one) => keyOf(one) !== key), ...values.map((value) => `${key}=${value}`)] });
}

function toggleValue(key, value, on) {
  const others = valuesOf(read(), key).filter((own) => own.toLowerCase() !== value.toLowerCase());
  setValues(key, on ? [...others, value] : others);
}

function inWords(condition) {
  const key = keyOf(condition);
  const value = valueOf(condition);
  if (key === "max-parameters") return `at most ${value} parameters`;
  if (key === "min-downloads") return `at least ${value} downloads`;
  if (key === "label") return value.toLowerCase() === "yes" ? "with a label" : "without a label";
  return `${NAMES[key] ?? key}: ${value}`;
}

/** Builds the filters: {toggle, active, panel, set(state)}; the three stand in different places of the page. */
export function searchFilters() {
  const number = h("span", { class: "filter-count" });
  const panel = h("div", { class: "filters-panel card", id: "filters-panel", "data-testid": "filters-panel", hidden: true });
  const toggle = h("button", {
    type: "button", class: "quiet", "data-testid": "filters", "aria-expanded": "false", "aria-controls": "filters-panel",
    onclick: () => {
      panel.hidden = !panel.hidden;
      toggle.setAttribute("aria-expanded", String(!panel.hidden));
    },
  }, icon("filter"), "Filters", number, icon("chevron", 16));
  const active = h("ul", { class: "chips active-filters", "aria-label": "Filters in use" });
  const controls = [
    pills("library", "Library", (info) => info.libraries),
    pills("licence", "Licence", (info) => info.licences),
    text("architecture", "Architecture", "resnet*, *vit*"),
    choice("max-parameters", "Parameters at most", "any number", SIZES),
    choice("min-downloads", "Downloads at least", "any number", DOWNLOADS),
    choice("label", "Declared label", "with or without", LABELS),
  ];
  const evidence = radios("evidence", "What speaks for a hit", EVIDENCE);
  const ks = h("select", { id: "k", "data-testid": "hits-per-question", onchange: () => write({ ...read(), k: Number(ks.value) }) });
  const any = h("input", { type: "checkbox", "data-testid": "require-any", onchange: () => write({ ...read(), require: any.checked ? "any" : null }) });
  const requireRow = h("label", { class: "check" }, any, h("span", null, "Show models that cover only some of the concepts, too"));
  const advanced = h("details", { class: "advanced", "data-testid": "advanced" },
    h("summary", { class: "quiet" }, "Advanced", icon("chevron", 16)),
    h("div", { class: "advanced-in" }, evidence.element,
      h("div", { class: "field" }, h("label", { for: "k" }, "Hits for each question"), ks), requireRow));
  replace(panel, h("div", { class: "filter-grid" }, controls.map((control) => control.element)), advanced);
  indexInfo().then((info) => {
    for (const control of controls) control.know?.(info);
    for (const control of controls) control.set(read());
  }, () => {}); // the search itself tells what is wrong
  return {
    toggle,
    active,
    panel,
    set(state) {
      for (const control of controls) control.set(state);
      evidence.set(state);
      for (const k of [...new Set([...KS, state.k])].sort((a, b) => a - b)) {
        if (![...ks.options].some((option) => option.value === String(k))) ks.append(h("option", { value: String(k) }, String(k)));
      }
      ks.value = String(state.k);
      any.checked = state.require === "any";
      requireRow.hidden = state.level !== "model";
      number.textContent = state.where.length ? String(state.where.length) : "";
      number.hidden = !state.where.length;
      replace(active, state.where.map((condition) => h("li", { class: "chip", "data-testid": "active-filter" },
        h("span", null, bdi(inWords(condition))),
        h("button", {
          type: "button", class: "chip-remove", "aria-label": `Remove the filter ${inWords(condition)}`,
          onclick: () => {
            const now = read();
            write({ ...now, where: now.where.filter((one) => one !== condition) });
            toggle.focus();
          },
        }, icon("close", 14)))));
      active.hidden = !state.where.length;
    },
  };
}

/** Values that the index has, as boxes to tick; any of them will do. */
function pills(key, name, valuesIn) {
  const list = h("div", { class: "pills" });
  const element = h("fieldset", { class: "field wide", "data-testid": `filter-${key}`, hidden: true }, h("legend", { class: "legend" }, name), list);
  let known = [];
  const draw = (state) => {
    const chosen = valuesOf(state, key);
    const own = new Set(chosen.map((value) => value.toLowerCase()));
    const extra = chosen.filter((value) => !known.some(([name_]) => name_.toLowerCase() === value.toLowerCase()));
    const focused = list.contains(document.activeElement) ? document.activeElement.value : null;
    replace(list, [...known, ...extra.map((value) => [value, null])].map(([value, models]) => {
      const box = h("input", {
        type: "checkbox", value, checked: own.has(value.toLowerCase()), "data-testid": `filter-${key}-${value}`,
        onchange: () => toggleValue(key, value, box.checked),
      });
      return h("label", { class: "pill" }, box, bdi(value), models !== null && h("span", { class: "pill-count" }, count(models)));
    }));
    if (focused !== null) [...list.querySelectorAll("input")].find((box) => box.value === focused)?.focus();
    element.hidden = !list.childElementCount;
  };
  return {
    element,
    know(info) {
      known = Object.entries(valuesIn(info) ?? {})
        .filter(([value]) => value && value !== "null" && value !== "unknown")
        .sort((a, b) => b[1] - a[1])
        .slice(0, 16);
    },
    set: draw,
  };
}

function text(key, name, placeholder) {
  const input = h("input", {
    type: "text", id: `filter-${key}`, "data-testid": `filter-${key}`, placeholder, autocomplete: "off", spellcheck: "false", maxlength: 200,
    onchange: () => setValues(key, input.value.split(",").map((value) => value.trim()).filter(Boolean)),
    onkeydown: (event) => { if (event.key === "Enter") input.blur(); },
  });
  return {
    element: h("div", { class: "field" }, h("label", { for: input.id }, name), input),
    set(state) {
      if (document.activeElement !== input) input.value = valuesOf(state, key).join(", ");
    },
  };
}

function choice(key, name, none, options) {
  const select = h("select", {
    id: `filter-${key}`, "data-testid": `filter-${key}`,
    onchange: () => setValues(key, select.value ? [select.value] : []),
  }, h("option", { value: "" }, none), options.map(([value, words]) => h("option", { value }, words)));
  return {
    element: h("div", { class: "field" }, h("label", { for: select.id }, name), select),
    set(state) {
      const value = valuesOf(state, key)[0] ?? "";
      if (![...select.options].some((option) => option.value === value)) select.append(h("option", { value }, value));
      select.value = value;
    },
  };
}

function radios(key, name, options) {
  const inputs = options.map(([value]) => h("input", {
    type: "radio", name: key, value, "data-testid": `${key}-${value}`, onchange: () => write({ ...read(), [key]: value }),
  }));
  const why = h("p", { class: "fine", hidden: true }, "Labels are compared when single outputs are searched for by words or images.");
  return {
    element: h("fieldset", { class: "field wide" }, h("legend", { class: "legend" }, name),
      options.map(([, words, help], i) => h("label", { class: "check" }, inputs[i], h("span", null, words, h("span", { class: "fine check-help" }, help)))), why),
    set(state) {
      const fixed = state.level === "model" || Boolean(state.like);
      why.hidden = !fixed;
      for (const input of inputs) {
        input.checked = input.value === (fixed ? "probes" : state[key]);
        input.disabled = fixed;
      }
    },
  };
}
