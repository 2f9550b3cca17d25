// Elements are made here and nowhere else. Strings become text nodes, so nothing a stranger wrote is read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** The address of a link if it is http, https or of this server; null for everything else (javascript:, data: ...). */
export function safeHref(value) {
  if (typeof value !== "string") return null;
  try {
    const url = new URL(value, window.location.href);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}

/** The address of a page outside, only if it is written out with http:// or https://; null otherwise. */
export function outsideHref(value) {
  return typeof value === "string" && /^https?:\/\//i.test(value) ? safeHref(value) : null;
}

function fill(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === true) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/**
 * Makes an HTML element.
 *
 * @param {string} tag
 * @param {object|null} props `class`, `on...` (a function), `href` (dropped unless safe), `css` (an object of CSS
 *   properties, set through the CSSOM as the content policy wants it), properties such as `value`, `checked`,
 *   `disabled`, `open`, and any attribute. null, undefined and false leave a prop out.
 * @param {...(Node|string|number|Array|null|false)} children strings become text nodes.
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) {
      if (typeof value !== "function") throw new TypeError(`${name} takes a function`);
      element.addEventListener(name.slice(2), value);
    } else if (name === "css") {
      for (const [property, setting] of Object.entries(value)) element.style.setProperty(property, setting);
    } else if (name === "href") {
      const href = safeHref(value);
      if (href !== null) element.setAttribute("href", href);
    } else if (name === "value" || name === "checked" || name === "open" || name === "indeterminate") {
      element[name] = value;
    } else if (name === "style" || name === "srcdoc") {
      throw new TypeError(`${name} is not set by hand`);
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  return fill(element, children);
}

/** Makes an SVG element; props are attributes, strings become text nodes. */
export function s(tag, props, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) {
      if (typeof value !== "function") throw new TypeError(`${name} takes a function`);
      element.addEventListener(name.slice(2), value);
    } else if (name === "href" || name === "style") {
      throw new TypeError(`${name} is not set on drawings`);
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  return fill(element, children);
}

/** What a stranger wrote (a label, an id, a file's name), kept from turning the direction of the text around it. */
export function bdi(text, props) {
  return h("bdi", props ?? null, text ?? "");
}

/** A model's id as text: the owner quiet, the name strong. Long ones break after / - _ and dots. */
export function modelName(repo) {
  const slash = String(repo).lastIndexOf("/");
  const owner = slash < 0 ? "" : String(repo).slice(0, slash + 1);
  return h("bdi", { class: "model-name" }, owner && h("span", { class: "owner" }, owner), h("span", { class: "name" }, String(repo).slice(slash + 1)));
}

/** Puts children in the place of all that an element holds. */
export function replace(element, ...children) {
  element.replaceChildren();
  return fill(element, children);
}

/** Words for screen readers only. */
export function unseen(...children) {
  return h("span", { class: "unseen" }, ...children);
}

/** Says something to screen readers without moving the focus. */
export function announce(text) {
  const region = document.getElementById("announcements");
  if (!region) return;
  region.textContent = "";
  // A region that is emptied and filled in one go is not read out again when the words are the same.
  window.setTimeout(() => { region.textContent = text; }, 60);
}

let toast = null;

/** Says something to everybody: a line at the foot of the page for some seconds, and to screen readers. */
export function tell(text) {
  toast?.remove();
  const line = h("p", { class: "waiting toast", "data-testid": "toast", "aria-hidden": "true" }, bdi(text));
  toast = line;
  document.body.append(line);
  window.setTimeout(() => line.remove(), 7000);
  announce(text);
}

/** Sets the title of the page; with nothing, its plain one. */
export function setTitle(text) {
  document.title = text ? `${text} · hubhound` : "hubhound: find models by what they recognise";
}

/** Resolves after some milliseconds; rejects with an AbortError when the signal says so. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      window.clearTimeout(timer);
      reject(new DOMException("no longer wanted", "AbortError"));
    };
    const timer = window.setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
