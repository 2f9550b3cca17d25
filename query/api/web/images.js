// Images that a person gives: chosen, dropped anywhere on the page, or pasted. They stay in this tab's memory.

import { h, tell } from "./dom.js";
import { icon } from "./icons.js";

const kept = new Map(); // id -> {id, file, name, url}

/** Remembers a file: {id, file, name, url}; `url` is an object URL for an <img>. */
export function keep(file) {
  const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const image = { id, file, name: file.name || "pasted image", url: URL.createObjectURL(file) };
  kept.set(id, image);
  return image;
}

/** The images of some ids; those of a tab or a visit before are gone and left out. */
export const keptImages = (ids) => ids.map((id) => kept.get(id)).filter(Boolean);

let receiver = null;

/** Says who takes the images that are dropped or pasted on the page: a function of File[], or null for nobody. */
export function acceptImages(handler) {
  receiver = handler;
}

const isImage = (file) => file.type.startsWith("image/") || /\.(jpe?g|png|webp|gif|bmp|tiff?)$/i.test(file.name);

/** Hands files to a handler, images only; says so when there are others. */
export function takeFiles(files, handler) {
  const all = [...files];
  const images = all.filter(isImage);
  const others = all.filter((file) => !isImage(file));
  if (others.length === 1) tell(`${others[0].name} is no image and was left out`);
  if (others.length > 1) tell(`${others.length} files are no images and were left out: ${others[0].name} …`);
  if (images.length) handler(images);
  return images.length;
}

/**
 * A button that opens the file chooser, as a label around a file input (so that it works by keyboard and by scripts).
 *
 * @param {(files: File[]) => void} handler
 * @param {{label: Node|string|Array, testid?: string, class?: string}} options `testid` is the input's.
 */
export function imageButton(handler, { label, testid = "image-input", class: look = "button" }) {
  const input = h("input", {
    type: "file", accept: "image/*", multiple: true, class: "file-input", "data-testid": testid,
    onchange: () => {
      takeFiles(input.files, handler);
      input.value = ""; // so that the same file can be chosen again
    },
  });
  return h("label", { class: `file-button ${look}` }, input, h("span", { class: "file-label" }, label));
}

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const veil = h("div", { class: "drop-veil", "aria-hidden": "true", hidden: true },
  h("div", { class: "drop-veil-in" }, icon("image", 34), h("span", null, "Drop images here")));
let inside = 0; // dragenter and dragleave come for every element that is crossed

function hideVeil() {
  inside = 0;
  veil.hidden = true;
}

document.body.append(veil);
document.addEventListener("dragenter", (event) => {
  if (!carriesFiles(event) || !receiver) return;
  inside += 1;
  veil.hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!carriesFiles(event)) return;
  inside -= 1;
  if (inside <= 0) hideVeil();
});
document.addEventListener("dragover", (event) => {
  if (carriesFiles(event)) event.preventDefault(); // or the browser leaves the page for the file
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  hideVeil();
  if (receiver) takeFiles(event.dataTransfer.files, receiver);
});
document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files;
  if (!receiver || !files?.length) return; // a text goes where it always goes
  if (takeFiles(files, receiver)) event.preventDefault();
});
