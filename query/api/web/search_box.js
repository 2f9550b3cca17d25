// The box: a chip for each concept, for each image and for the output that others shall be like.

import { announce, bdi, h, replace, unseen } from "./dom.js";
import { icon } from "./icons.js";
import { acceptImages, imageButton, keep, keptImages } from "./images.js";
import { read, write } from "./state.js";
import { plural } from "./words.js";

const LEVELS = [
  ["output", "Outputs", "each concept is searched for on its own"],
  ["model", "One model for all", "models that cover every concept of the list"],
];

const words = (text) => text.trim().replace(/\s+/g, " ");

/** At the level of models a whole model is what others shall be like, at that of outputs one of its outputs. */
function likeAt(like, level) {
  if (!like) return null;
  if (level === "model") return like.replace(/#\d+$/, "");
  return like.includes("#") ? like : null;
}

/** Adds what was typed; a question about an output or a model is another question and goes. */
function addTexts(texts) {
  const state = read();
  const fresh = texts.map(words).filter((text) => text && !state.q.includes(text));
  if (!fresh.length) return false;
  write({ ...state, q: [...state.q, ...new Set(fresh)], like: null });
  return true;
}

/** Adds images to the question. */
export function addImages(files) {
  const state = read();
  const images = files.map(keep);
  announce(`${plural(images.length, "image")} added`);
  write({ ...state, images: [...state.images, ...images.map((image) => image.id)], like: null });
}

/** Builds the box: {element, input, set(state)}. */
export function searchBox() {
  const chips = h("ul", { class: "chips", "aria-label": "Searched for" });
  const input = h("input", {
    type: "text", id: "search-box", class: "box-input", "data-testid": "search-box", autocomplete: "off", spellcheck: "false",
    autocapitalize: "none", enterkeyhint: "search", "aria-describedby": "box-help", maxlength: 4000,
    onkeydown: (event) => onKey(event, input, chips),
    onpaste: (event) => onPaste(event),
  });
  const note = h("p", { class: "fine box-note", hidden: true });
  const radios = LEVELS.map(([value]) => h("input", {
    type: "radio", name: "level", value, "data-testid": `level-${value}`, "aria-describedby": `level-${value}-help`,
    onchange: () => {
      const state = read();
      write({ ...state, level: value, like: likeAt(state.like, value), evidence: "probes", require: null });
    },
  }));
  const element = h("form", {
    class: "box", role: "search", "aria-label": "Models",
    onsubmit: (event) => {
      event.preventDefault();
      submit(input);
    },
  },
  h("label", { for: "search-box", class: "unseen" }, "What the model should recognise"),
  h("div", {
    class: "box-in", "data-testid": "drop-zone",
    onclick: (event) => { if (event.target === event.currentTarget || event.target === chips) input.focus(); },
  },
  h("div", { class: "box-write" }, chips, input),
  h("div", { class: "box-buttons" },
    imageButton(addImages, { label: [icon("image", 20), h("span", null, unseen("Add "), "Images")], class: "quiet" }),
    h("button", { type: "submit", class: "button primary", "data-testid": "search-button" }, icon("search"), "Search"))),
  h("p", { class: "unseen", id: "box-help" }, "Enter or a comma ends a concept. Backspace in the empty box removes the last one. Images can be pasted or dropped."),
  note);
  const level = h("fieldset", { class: "level" },
    h("legend", { class: "unseen" }, "What is found"),
    LEVELS.map(([value, name, help], i) => h("label", { title: help }, radios[i], h("span", null, name),
      h("span", { class: "unseen", id: `level-${value}-help` }, help))));
  acceptImages(addImages);
  return {
    element,
    level,
    input,
    set(state) {
      const images = keptImages(state.images);
      const focused = chips.contains(document.activeElement) ? [...chips.children].indexOf(document.activeElement.closest("li")) : -1;
      replace(chips,
        state.like && chip(bdi(state.like), `like ${state.like}`, () => write({ ...read(), like: null }), { before: [icon("similar", 16), h("span", { class: "chip-kind" }, "like")] }),
        images.map((image) => imageChip(image)),
        state.q.map((text, at) => textChip(text, at, input)));
      chips.hidden = chips.childElementCount === 0;
      input.placeholder = chips.hidden ? "what a model should recognise …" : "";
      for (const radio of radios) radio.checked = radio.value === state.level;
      const lost = state.images.length - images.length;
      note.hidden = !state.images.length;
      note.textContent = lost
        ? `${plural(lost, "image")} of this search ${lost === 1 ? "is" : "are"} gone: images stay in the tab they were dropped in until it is reloaded. Drop them again.`
        : "Images go to this server only, and for this search only. A link to this page cannot carry them.";
      if (focused >= 0) (chips.children[Math.min(focused, chips.childElementCount - 1)]?.querySelector(".chip-remove") ?? input).focus();
    },
  };
}

function submit(input) {
  const texts = input.value.split(",");
  input.value = "";
  if (addTexts(texts)) return;
  const state = read();
  if (state.q.length || state.like || state.images.length) {
    write(state, false); // the same question again
  } else {
    input.focus();
    announce("Write what the model should recognise, then press Enter");
  }
}

function onKey(event, input, chips) {
  if (event.isComposing) return;
  if (event.key === ",") {
    event.preventDefault();
    const text = input.value;
    input.value = "";
    addTexts([text]);
  } else if (event.key === "Backspace" && input.value === "" && chips.lastElementChild) {
    event.preventDefault();
    const last = chips.lastElementChild.dataset.name;
    chips.lastElementChild.querySelector(".chip-remove").click();
    input.focus();
    announce(`${last} removed`);
  }
}

/** Several lines, or a list with commas, are several concepts at once. */
function onPaste(event) {
  const text = event.clipboardData?.getData("text/plain") ?? "";
  if (!/[\n,]/.test(text.trim())) return;
  event.preventDefault();
  addTexts(text.split(/[\n,]/));
}

function chip(content, name, onremove, { before = null, look = "" } = {}) {
  return h("li", { class: `chip ${look}`, "data-testid": "chip", "data-name": name },
    before, content,
    h("button", { type: "button", class: "chip-remove", "data-testid": "chip-remove", "aria-label": `Remove ${name}`, onclick: onremove }, icon("close", 14)));
}

function textChip(text, at, input) {
  const edit = h("button", {
    type: "button", class: "chip-text", title: "Change this concept",
    onclick: () => {
      const state = read();
      input.value = text;
      write({ ...state, q: state.q.filter((_, i) => i !== at) }, false);
      input.focus();
    },
  }, bdi(text));
  return chip(edit, text, () => {
    const state = read();
    write({ ...state, q: state.q.filter((_, i) => i !== at) });
  });
}

function imageChip(image) {
  const picture = h("img", { src: image.url, alt: "", width: 32, height: 32 });
  picture.addEventListener("error", () => picture.classList.add("unreadable"));
  const item = chip(h("span", { class: "chip-file" }, bdi(image.name)), image.name, () => {
    const state = read();
    write({ ...state, images: state.images.filter((id) => id !== image.id) });
  }, { before: picture, look: "chip-image" });
  item.dataset.testid = "image-chip";
  return item;
}
