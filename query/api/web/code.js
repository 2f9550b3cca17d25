// The code that loads a model and uses one of its outputs, and copying it.

import { announce, bdi, h, replace, unseen } from "./dom.js";
import { get, isAbort, modelPath } from "./api.js";
import { opener } from "./boxes.js";
import { icon } from "./icons.js";
import { errorState } from "./notices.js";

/** Copies a text; where the clipboard is out of reach (plain http), through a selection. Tells whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "unseen", readonly: true, "aria-hidden": "true", tabindex: "-1" }, text);
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    let done = false;
    try {
      done = document.execCommand("copy");
    } catch {
      done = false;
    }
    area.remove();
    if (before instanceof HTMLElement) before.focus();
    return done;
  }
}

function copyButton(text) {
  const face = (name, words) => [icon(name, 16), words];
  const button = h("button", {
    type: "button", class: "button copy", "data-testid": "copy-code",
    onclick: async () => {
      const done = await copyText(text);
      replace(button, done ? face("check", "Copied") : face("warning", "Select and copy by hand"));
      announce(done ? "Copied" : "Copying is not allowed here: select the text and copy it by hand");
      window.setTimeout(() => replace(button, face("copy", "Copy")), 2500);
    },
  }, face("copy", "Copy"));
  return button;
}

/**
 * "Use it": a button, and the panel that it opens, with the code for an output.
 *
 * @param {string} model org/name
 * @param {number|null} output null for the model as a whole
 * @returns {{button: Element, panel: Element}}
 */
export function codeDisclosure(model, output) {
  const panel = h("div", { class: "code" });
  let asked = false;
  const button = opener(h("span", null, "Use it", unseen(`: ${nameOf(model, output)}`)), panel, {
    testid: "hit-code",
    onopen: () => {
      if (asked) return;
      asked = true;
      fillWithCode(panel, model, output);
    },
  });
  return { button, panel };
}

const nameOf = (model, output) => (output === null ? model : `${model}#${output}`);

/** Fetches the code for an output into a place; an error stands there with a button that tries again. */
export async function fillWithCode(place, model, output) {
  replace(place, h("p", { class: "fine", role: "status" }, "Writing the code …"));
  try {
    const query = output === null ? "" : `?output=${output}`;
    const usage = await get(`/v1/models/${modelPath(model)}/usage${query}`);
    replace(place,
      h("div", { class: "code-head" },
        h("span", { class: "fine" }, usage.requirements?.length ? h("code", null, bdi(`pip install ${usage.requirements.join(" ")}`)) : "Python"),
        copyButton(usage.code)),
      h("pre", { tabindex: "0", role: "region", "aria-label": `Code for ${nameOf(model, output)}` }, h("code", { "data-testid": "code-text" }, usage.code)),
      usage.note && h("p", { class: "fine" }, bdi(usage.note)));
  } catch (error) {
    if (isAbort(error)) return;
    replace(place, errorState(error, () => fillWithCode(place, model, output)));
  }
}
