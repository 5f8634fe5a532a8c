// What is left of FLOPs and of predicted time: a bar for each, made of the parts of the model.

import { element, shape } from "./dom.js";
import { total } from "./designer_rule.js";

const EDGE = { left: 48, right: 56, bottom: 20 };
const ROW = 32; // pixels from one bar to the next
const HIGH = 22; // of a bar
const WRITTEN = 34; // a part as wide as that has its number in it

/** rows: [[name, { part: share of the bare model's }], ...]. */
export function costBars(rows, names, width) {
  const high = rows.length * ROW + EDGE.bottom;
  const x = (share) => EDGE.left + share * (width - EDGE.left - EDGE.right);
  const label = rows.map(([name, parts]) => {
    const each = Object.entries(parts).map(([part, share]) => `${names[part]} ${(100 * share).toFixed(1)}`);
    return `${name}: ${(100 * total(parts)).toFixed(1)} % of the bare model's (${each.join(", ")})`;
  });
  const box = { class: "im-costs", width, height: high, viewBox: `0 0 ${width} ${high}`, role: "img" };
  const svg = shape("svg", { ...box, "aria-label": `${label.join("; ")}.` });
  const text = (words, at, name) => {
    const made = shape("text", { ...at, class: name });
    made.textContent = words;
    svg.append(made);
  };
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(shape("line", { x1: x(share), x2: x(share), y1: 0, y2: high - EDGE.bottom + 3, class: "im-grid" }));
    text(share === 1 ? "100 %" : 100 * share, { x: x(share), y: high - 3, "text-anchor": "middle" }, "im-tick");
  }
  rows.forEach(([name, parts], number) => {
    const y = number * ROW + (ROW - HIGH) / 2;
    const middle = y + HIGH / 2 + 4;
    text(name, { x: EDGE.left - 8, y: middle, "text-anchor": "end" }, "im-tick");
    svg.append(shape("rect", { x: x(0), y, width: x(1) - x(0), height: HIGH, class: "im-all" }));
    let from = 0;
    for (const [part, share] of Object.entries(parts)) {
      const [left, right] = [x(from), x(from + share)];
      svg.append(shape("rect", { x: left, y, width: right - left, height: HIGH, class: `im-part-${part}` }));
      if (right - left >= WRITTEN) text(`${(100 * share).toFixed(0)}`, { x: (left + right) / 2, y: middle, "text-anchor": "middle" }, "im-within");
      from += share;
    }
    text(`${(100 * from).toFixed(0)} %`, { x: width, y: middle, "text-anchor": "end" }, "im-sum");
  });
  return svg;
}

/** What the colors mean. */
export function costLegend(names) {
  const chips = Object.entries({ ...names, bare: "the bare model" }).map(([part, name]) =>
    element("span", {}, element("i", { class: `im-chip im-chip-${part}` }), name),
  );
  return element("p", { class: "im-colors" }, ...chips);
}
