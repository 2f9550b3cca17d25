// Conductance by task and block: a table whose cells are coloured, so that it reads as a table without the colours.

import { bdi, h } from "./dom.js";
import { digits, percent } from "./amounts.js";
import { scroller } from "./boxes.js";
import { commonStem } from "./charts.js";
import { plural } from "./words.js";

const STOPS = 3; // pieces of the ramp, as more.css draws it

function colour(cell, share) {
  const at = Math.min(Math.max(share, 0), 1) * STOPS;
  const piece = Math.min(Math.floor(at), STOPS - 1);
  cell.classList.add(`ramp-${piece}`);
  cell.style.setProperty("--mix", `${((at - piece) * 100).toFixed(1)}%`);
  if (share > 0.5) cell.classList.add("ramp-over");
}

/**
 * The heatmap of the profiles of one model whose blocks are the same.
 *
 * Each row is divided by its largest value: between tasks, images and preprocessing change the height of all blocks, and
 * what tells tasks apart is the shape.
 *
 * @param {{task: string, blocks: string[], conductance: number[], images: number, completeness_gap: number}[]} profiles
 */
export function heatmap(profiles) {
  const { blocks } = profiles[0];
  const stem = commonStem(blocks);
  const tip = h("div", { class: "heat-tip", hidden: true, role: "presentation" });
  const cells = profiles.map(() => []);

  const row = (profile, y) => {
    const most = Math.max(...profile.conductance, 0) || 1;
    return h("tr", null,
      h("th", { scope: "row", role: "rowheader" }, bdi(profile.task)),
      profile.conductance.map((value, x) => {
        const share = value / most;
        const cell = h("td", { role: "gridcell", tabindex: x === 0 && y === 0 ? "0" : "-1" },
          h("span", { class: "heat-figure" }, digits(value)),
          h("span", { class: "unseen" }, `, ${percent(share)} of the row's largest`));
        colour(cell, share);
        cells[y].push(cell);
        const show = () => point(cell, profile, x, share);
        cell.addEventListener("pointerenter", show);
        cell.addEventListener("focus", show);
        return cell;
      }));
  };

  const point = (cell, profile, x, share) => {
    tip.replaceChildren(
      h("strong", null, bdi(profile.task)), " · ", bdi(blocks[x], { class: "mono" }), h("br"),
      `conductance ${digits(profile.conductance[x])}, ${percent(share)} of the row's largest`);
    tip.hidden = false;
    const frame = place.getBoundingClientRect();
    const box = cell.getBoundingClientRect();
    const left = box.left + box.width / 2 - frame.left - tip.offsetWidth / 2;
    tip.style.setProperty("left", `${Math.min(Math.max(left, 0), Math.max(frame.width - tip.offsetWidth, 0))}px`);
    tip.style.setProperty("top", `${box.top - frame.top - tip.offsetHeight - 6}px`);
  };
  const hide = () => { tip.hidden = true; };

  const move = (event) => {
    if (event.key === "Escape") return hide();
    const y = cells.findIndex((line) => line.includes(event.target));
    if (y < 0) return undefined;
    const x = cells[y].indexOf(event.target);
    const [ny, nx] = {
      ArrowRight: [y, x + 1], ArrowLeft: [y, x - 1], ArrowDown: [y + 1, x], ArrowUp: [y - 1, x],
      Home: [event.ctrlKey ? 0 : y, 0], End: [event.ctrlKey ? cells.length - 1 : y, blocks.length - 1],
    }[event.key] ?? [-1, -1];
    const next = cells[ny]?.[nx];
    if (!next) return undefined;
    event.preventDefault();
    event.target.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
    return undefined;
  };

  const table = h("table", { class: "heat", role: "grid", "aria-label": "Conductance by task and block", onkeydown: move, onpointerleave: hide },
    h("thead", null, h("tr", null,
      h("th", { scope: "col", role: "columnheader", rowspan: 2 }, "task"),
      h("th", { scope: "colgroup", role: "columnheader", colspan: blocks.length, class: "heat-blocks" }, "block")),
    h("tr", null,
      blocks.map((block) => h("th", { scope: "col", role: "columnheader", title: block, class: "heat-block" }, bdi(block.slice(stem.length)))))),
    h("tbody", null, profiles.map(row)));
  table.addEventListener("focusout", hide);

  const numbers = h("button", {
    type: "button", class: "button", "aria-pressed": "false",
    onclick: () => {
      const on = table.classList.toggle("heat-numbers");
      numbers.setAttribute("aria-pressed", String(on));
    },
  }, "Show the figures");

  const box = scroller("Heatmap of conductance, scrolls sideways", table);
  box.addEventListener("scroll", hide);
  box.removeAttribute("tabindex"); // its cells can be reached
  const place = h("div", { class: "heat-place", "data-testid": "profile-heatmap" },
    h("div", { class: "heat-bar" },
      h("div", { class: "heat-legend" },
        h("span", null, "0"), h("span", { class: "heat-scale", "aria-hidden": "true" }), h("span", null, "the row's largest")),
      numbers),
    box, tip,
    h("p", { class: "fine" },
      `${plural(profiles.length, "task")}, ${plural(blocks.length, "block")} from the input (left) to the answer (right)`,
      stem && [", all below ", bdi(stem.slice(0, -1), { class: "mono" })], ". Each row is divided by its largest value."));
  return place;
}
