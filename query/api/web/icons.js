// Line icons on a 24 x 24 grid, drawn here so that the page needs no font and no outside file.

import { s } from "./dom.js";

const PATHS = {
  search: ["M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13Z", "m15.5 15.5 5 5"],
  close: ["M6 6l12 12", "M18 6 6 18"],
  image: ["M4 5h16v14H4z", "m4 16 5-5 4 4 2.5-2.5L20 17", "M15.5 9.5h.01"],
  outside: ["M14 4h6v6", "M20 4 10.5 13.5", "M18 14v6H4V6h6"],
  copy: ["M9 9h11v11H9z", "M15 9V4H4v11h5"],
  check: ["m5 12.5 4.5 4.5L19 7.5"],
  similar: ["M4 4h7v7H4z", "M13 13h7v7h-7z", "M13 8h4v4"],
  filter: ["M4 6h16", "M7 12h10", "M10 18h4"],
  sun: ["M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Z", "M12 2.5v2", "M12 19.5v2", "M2.5 12h2", "M19.5 12h2", "m5.3 5.3 1.4 1.4", "m17.3 17.3 1.4 1.4", "m5.3 18.7 1.4-1.4", "m17.3 6.7 1.4-1.4"],
  moon: ["M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5Z"],
  warning: ["M12 4 2.8 20h18.4L12 4Z", "M12 10v4.5", "M12 17.3h.01"],
  chevron: ["m8 10 4 4 4-4"],
  key: ["M8 11a4 4 0 1 0 0 8 4 4 0 0 0 0-8Z", "m11 12 8-8", "m16 7 3 3"],
  retry: ["M19.5 12a7.5 7.5 0 1 1-2.2-5.3L20 9.3", "M20 4v5.3h-5.3"],
};

/** An icon by its name; decoration only, so words go beside it. */
export function icon(name, size = 18) {
  return s(
    "svg",
    { class: `icon icon-${name}`, viewBox: "0 0 24 24", width: size, height: size, "aria-hidden": "true", focusable: "false" },
    PATHS[name].map((d) => s("path", { d })),
  );
}
