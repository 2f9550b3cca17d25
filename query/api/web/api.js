// The service's HTTP API: requests, keys, waiting for a service that is busy or still loading, thumbnails.

import { pause } from "./dom.js";

const KEY = "hubhound-key"; // in sessionStorage: gone with the tab, never sent anywhere but here
const TRIES = 5; // of a busy service, before its answer is shown as it is
const LONGEST_WAIT_S = 30;

/** What went wrong, as the service says it (application/problem+json), or as the browser does. */
export class Problem extends Error {
  constructor({ status = 0, type = "", title = "", detail = "", instance = "", errors = [], near = [] }) {
    super(detail || title);
    this.name = "Problem";
    Object.assign(this, { status, type, title, detail, instance, errors, near });
  }

  /** The last part of its type: `not-ready`, `rate-limited` ... */
  get slug() {
    return this.type.split(":").at(-1);
  }
}

/** Whether an error only says that nobody waits for the answer any more. */
export const isAbort = (error) => error?.name === "AbortError";

/**
 * Tells what the page waits for: events `wait` with detail {kind: "busy"|"loading", text} and `done`; and `key`, whose
 * detail {refused, give(key), cancel()} asks a person for an API key.
 */
export const waits = new EventTarget();

let key = readKey();
let asked = null; // one question for a key at a time, however many requests wait for it
let waiting = 0;

function readKey() {
  try {
    return window.sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function keepKey(value) {
  key = value;
  try {
    if (value) window.sessionStorage.setItem(KEY, value);
    else window.sessionStorage.removeItem(KEY);
  } catch {
    // Without storage the key lasts as long as the page.
  }
}

/** Whether requests carry an API key. */
export const hasKey = () => key !== null;

function askForKey(refused) {
  asked ??= new Promise((resolve) => {
    const end = (value) => {
      asked = null;
      if (value) keepKey(value);
      resolve(Boolean(value));
    };
    waits.dispatchEvent(new CustomEvent("key", { detail: { refused, give: end, cancel: () => end(null) } }));
  });
  return asked;
}

async function problemOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy's page, or nothing.
  }
  const text = (value) => (typeof value === "string" ? value : "");
  return new Problem({
    status: response.status,
    type: text(body.type),
    title: text(body.title) || `The server answered ${response.status}`,
    detail: text(body.detail),
    instance: text(body.instance) || response.headers.get("X-Request-ID") || "",
    errors: Array.isArray(body.errors) ? body.errors : [],
    near: Array.isArray(body.near) ? body.near.filter((one) => typeof one === "string") : [],
  });
}

async function send(path, options) {
  const sent = key;
  const headers = { Accept: "application/json", ...options.headers };
  if (sent) headers.Authorization = `Bearer ${sent}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error", cache: options.cache ?? "default" });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Problem({
      type: "urn:hubhound:problem:unreachable",
      title: "The server cannot be reached",
      detail: "It may have been stopped, or the network is down. Check that hubhound serve is running, then try again.",
    });
  }
  return { response, sent };
}

function retryAfter(response, otherwise) {
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return Math.min(Math.max(Number.isFinite(seconds) ? seconds : otherwise, 0.2), LONGEST_WAIT_S);
}

function say(kind, text) {
  waits.dispatchEvent(new CustomEvent("wait", { detail: { kind, text } }));
}

async function whyNotReady(signal) {
  try {
    const { response } = await send("/readyz", { signal, cache: "no-store" });
    const answer = await response.json();
    return answer.ready ? "" : String(answer.why ?? "");
  } catch (error) {
    if (isAbort(error)) throw error;
    return "";
  }
}

/** Sends a request until it is answered: asks for a key, waits while the service is busy or loading. */
async function answered(path, options) {
  const { signal } = options;
  let counted = false;
  const wait = async (kind, text, seconds) => {
    if (!counted) {
      counted = true;
      waiting += 1;
    }
    say(kind, text);
    await pause(1000 * seconds, signal);
  };
  try {
    for (let busy = 0; ;) {
      const { response, sent } = await send(path, options);
      if (response.ok || response.status === 304) return response;
      const problem = await problemOf(response);
      if (response.status === 401) {
        if (sent !== key && key !== null) continue; // another request was given a key meanwhile
        if (await askForKey(sent !== null)) continue;
        throw problem;
      }
      if (problem.slug === "not-ready") {
        const why = (await whyNotReady(signal)) || problem.detail;
        await wait("loading", why ? `The service is starting: ${why}` : "The service is starting", 1);
        continue;
      }
      if ((problem.slug === "busy" || response.status === 429) && busy < TRIES) {
        busy += 1;
        const seconds = retryAfter(response, 2 ** busy / 2);
        const what = response.status === 429 ? "Too many requests with this key" : "The service is busy";
        for (let left = seconds; left > 0; left -= 1) {
          await wait("busy", `${what}: trying again in ${Math.ceil(left)} s (${busy} of ${TRIES})`, Math.min(1, left));
        }
        continue;
      }
      throw problem;
    }
  } finally {
    if (counted) {
      waiting -= 1;
      if (waiting === 0) waits.dispatchEvent(new CustomEvent("done"));
    }
  }
}

async function parsed(response) {
  if (response.status === 204) return null;
  try {
    return await response.json();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Problem({ status: response.status, title: "The server's answer was cut off", detail: "Try again." });
  }
}

/** GET: the parsed JSON. Throws Problem; an AbortError when the signal says so. */
export async function get(path, { signal } = {}) {
  return parsed(await answered(path, { signal }));
}

/**
 * POST: the parsed JSON of the answer.
 *
 * @param {string} path
 * @param {object} body the JSON
 * @param {File[]} images uploaded with it (multipart), if there are any
 * @param {{signal?: AbortSignal, status?: boolean}} options with `status` the answer is {status, location, body}, which
 *   tells a job (202) from a result (200).
 */
export async function post(path, body, images = [], { signal, status = false } = {}) {
  let options;
  if (images.length) {
    const form = new FormData();
    form.append("request", new Blob([JSON.stringify(body)], { type: "application/json" }));
    for (const image of images) form.append("images", image, image.name || "pasted.png");
    options = { method: "POST", body: form };
  } else {
    options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  }
  const response = await answered(path, { ...options, signal });
  const json = await parsed(response);
  return status ? { status: response.status, location: response.headers.get("Location"), body: json } : json;
}

/** DELETE: the parsed JSON. */
export async function remove(path, { signal } = {}) {
  return parsed(await answered(path, { method: "DELETE", signal }));
}

let facts = null;

/** What GET /v1/index says, asked for once; `fresh` asks again. */
export function indexInfo(fresh = false) {
  if (!facts || fresh) {
    facts = get("/v1/index");
    facts.catch(() => { facts = null; });
  }
  return facts;
}

/** A model's id as a path: each part encoded, slashes kept. */
export const modelPath = (repo) => String(repo).split("/").map(encodeURIComponent).join("/");

/** GET: the bytes of an image, a Blob. */
async function getBlob(path, { signal } = {}) {
  return (await answered(path, { signal, headers: { Accept: "image/*" } })).blob();
}

async function probePath(probe, size) {
  let set = "";
  try {
    set = (await indexInfo()).manifest.probes.fingerprint.slice(0, 12);
  } catch {
    // The image is worth more than its place in the cache.
  }
  return `/v1/probes/${probe}/image?size=${size}${set && `&set=${set}`}`;
}

/** The image of a probe, a Blob of at most `size` pixels. */
export async function probeBlob(probe, size = 512) {
  return getBlob(await probePath(probe, size));
}

const THUMBNAILS = 400; // kept object URLs
const thumbnails = new Map();

/**
 * The address of a probe's thumbnail for an <img>.
 *
 * An <img> cannot send a key: with one, the image is fetched and an object URL stands for it. The probe set's
 * fingerprint goes along, for browsers keep these images for ever and another index may answer here tomorrow.
 */
export async function thumbnail(probe, { size = 192 } = {}) {
  const path = await probePath(probe, size);
  if (!hasKey()) return path;
  let url = thumbnails.get(path);
  if (url) {
    thumbnails.delete(path); // to the end: the one used longest ago stands first
  } else {
    url = getBlob(path).then((blob) => URL.createObjectURL(blob));
    url.catch(() => thumbnails.delete(path));
  }
  thumbnails.set(path, url);
  if (thumbnails.size > THUMBNAILS) {
    const [oldest, gone] = thumbnails.entries().next().value;
    thumbnails.delete(oldest);
    gone.then((address) => URL.revokeObjectURL(address), () => {});
  }
  return url;
}
