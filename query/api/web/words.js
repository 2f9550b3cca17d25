// Numbers and standings in words.

const whole = new Intl.NumberFormat("en-GB");

/** 5968 -> "5,968". */
export const count = (number) => whole.format(number);

/** 1, "output" -> "1 output"; 2 -> "2 outputs". */
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** 88591464 -> "88.6 M", 1260 -> "1.3 k". */
export function short(number) {
  if (number >= 1e13) return number.toExponential(1).replace("e+", " \u00d7 10^"); // a card may say anything
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= size) {
      const scaled = number / size;
      return `${scaled >= 100 ? Math.round(scaled) : Number(scaled.toPrecision(3))} ${unit}`;
    }
  }
  return String(number);
}

/** 0.0083 -> "8 ms", 0.0004 -> "0.4 ms", 2.31 -> "2.3 s". */
export function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  const ms = seconds * 1000;
  return ms >= 1 ? `${Math.round(ms)} ms` : `${Math.max(ms, 0.1).toFixed(1)} ms`;
}

/** A margin or a standardised value: 9.566 -> "9.57", -0.2 -> "−0.20" with a true minus. */
export function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}

/**
 * Where a margin stands among the background: 0.2 of 500 -> "nearer than all 500 background phrases".
 *
 * The percentile is 100 (1 + phrases at least as near) / (1 + phrases), so the phrases it beats can be counted.
 */
export function standing(percentile, background) {
  if (!(background > 0)) return `top ${Number(percentile.toPrecision(2))} % of the background`;
  const beats = background - Math.max(0, Math.round((percentile * (background + 1)) / 100) - 1);
  if (beats >= background) return `nearer than all ${count(background)} background phrases`;
  if (beats <= 0) return `nearer than none of the ${count(background)} background phrases`;
  return `nearer than ${count(beats)} of the ${count(background)} background phrases`;
}

/** ["a", "b", "c"] -> "a, b and c". */
export function listed(texts) {
  return texts.length < 2 ? texts.join("") : `${texts.slice(0, -1).join(", ")} and ${texts.at(-1)}`;
}
