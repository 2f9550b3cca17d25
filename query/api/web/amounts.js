// Sizes, shares and times in words.

import { h } from "./dom.js";

/** 0.3149 -> "31 %", 0.0042 -> "0.4 %", 0.0001 -> "< 0.1 %". */
export function percent(share) {
  const value = 100 * share;
  if (value !== 0 && Math.abs(value) < 0.1) return "<\u00a00.1\u00a0%";
  if (value > 99 && value < 100) return `${Math.min(value, 99.9).toFixed(1)} %`; // nearly all is not all
  return `${Math.abs(value) < 10 && value % 1 !== 0 ? value.toFixed(1) : Math.round(value)} %`;
}

/** 16592896 -> "16.6 MB"; powers of 1000, as disks are sold. */
export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let scaled = number;
  let unit = 0;
  while (scaled >= 999.5 && unit < units.length - 1) {
    scaled /= 1000;
    unit += 1;
  }
  return `${unit === 0 || scaled >= 100 ? Math.round(scaled) : Number(scaled.toPrecision(3))} ${units[unit]}`;
}

/** A figure with three digits that count: 0.0123456 -> "0.0123", 2.5 -> "2.50", 0 -> "0". */
export function digits(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) return value.toExponential(2);
  return size >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

/** A place in a ranking: 2 -> "2", 2.5 -> "2.5", 3.3333 -> "3.3". */
export const place = (rank) => String(Number(rank.toFixed(1)));

const AGES = [
  [60, 1, "second"],
  [3600, 60, "minute"],
  [86400, 3600, "hour"],
  [30 * 86400, 86400, "day"],
  [365 * 86400, 30 * 86400, "month"],
  [Infinity, 365 * 86400, "year"],
];
const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** How long ago a moment was, in words: "3 hours ago". */
export function ago(iso, now = Date.now()) {
  const seconds = Math.max(0, (now - Date.parse(iso)) / 1000);
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 10) return "just now";
  const [, size, unit] = AGES.find(([limit]) => seconds < limit);
  const number = Math.max(1, Math.floor(seconds / size));
  return `${number} ${unit}${number === 1 ? "" : "s"} ago`;
}

/** A <time>: when, and how long ago that was; null where the moment is not known. */
export function moment(iso) {
  if (!iso || Number.isNaN(Date.parse(iso))) return null;
  return h("time", { datetime: iso, class: "moment" }, `${exact.format(new Date(iso))} (${ago(iso)})`);
}

const SIZES = { k: 1e3, m: 1e6, b: 1e9, g: 1e9 };

/** A number of parameters as people write it: "200M" -> 200000000, "1.5 b" -> 1500000000; NaN for anything else. */
export function parameterCount(text) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*([kmbg])?\s*$/i.exec(text);
  const value = found ? Math.round(Number(found[1]) * (SIZES[found[2]?.toLowerCase()] ?? 1)) : NaN;
  return value >= 1 && value <= Number.MAX_SAFE_INTEGER ? value : NaN;
}
