// Accuracy against cost: a line for each method, a bar for each interval, a ring around the chosen point.

import { shape } from "./dom.js";
import { markerAt } from "./marker.js";

const HEIGHT = 340; // pixels
const EDGE = { left: 46, right: 16, top: 14, bottom: 42 };
const SIZE = 6; // of a marker, from its middle
const REACH = 14; // around a point, within which it is meant

/** Round numbers from below `low` to above `high`, about `count` steps. */
function ticks(low, high, count) {
  const step = [1, 2, 5, 10, 20, 25, 50].find((one) => (high - low) / one <= count) ?? 100;
  const first = Math.floor(low / step);
  return Array.from({ length: Math.ceil(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

/** Draw it. All numbers are percent.
    points: [{ number, name, method, x, y, low, high, hidden }], low and high being ends of the bar, or undefined;
    methods: [{ label, color, marker }]; bare: its accuracy; chosen: number of a point, or -1;
    act: { choose(number), point(number or -1) }. */
export function plot({ points, methods, bare, chosen, width, label }, act) {
  // Axes that hold every point, hidden or not: what is shown and hidden moves nothing else.
  const across = ticks(Math.min(...points.map(({ x }) => x)) - 3, 100, width < 500 ? 5 : 8);
  const least = Math.max(0, Math.min(bare, ...points.map(({ y, low }) => low ?? y)));
  const up = ticks(least, 100, 6);
  const [left, right] = [EDGE.left, width - EDGE.right];
  const [top, bottom] = [EDGE.top, HEIGHT - EDGE.bottom];
  const x = (value) => left + ((value - across[0]) / (103 - across[0])) * (right - left);
  const y = (value) => bottom - ((value - up[0]) / (up.at(-1) - up[0])) * (bottom - top);
  const box = { class: "im-plot", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label };
  const svg = shape("svg", box);
  const line = (x1, y1, x2, y2, name) => svg.append(shape("line", { x1, y1, x2, y2, class: name }));
  const text = (words, at, name) => {
    const made = shape("text", { ...at, class: name });
    made.textContent = words;
    svg.append(made);
  };
  for (const value of up) {
    line(left, y(value), right, y(value), "im-grid");
    text(value, { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, "im-tick");
  }
  for (const value of across.filter((one) => one <= 100)) {
    line(x(value), top, x(value), bottom, "im-grid");
    text(value, { x: x(value), y: bottom + 17, "text-anchor": "middle" }, "im-tick");
  }
  text("Prefill FLOPs, % of the bare model", { x: (left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "im-axis");
  text("Right, %", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "im-axis");
  line(left, y(bare), right, y(bare), "im-bare");
  svg.append(shape("circle", { cx: x(100), cy: y(bare), r: SIZE, class: "im-bare" }));
  for (const [number, { color, marker }] of methods.entries()) {
    const own = points.filter(({ method, hidden }) => method === number && !hidden).sort((a, b) => a.x - b.x);
    const route = own.map((one) => `${x(one.x)} ${y(one.y)}`).join("L");
    if (own.length) svg.append(shape("path", { d: `M${route}`, stroke: color, class: "im-route" }));
    for (const one of own) {
      const [at, high, low] = [x(one.x), y(Math.min(one.high ?? one.y, up.at(-1))), y(Math.max(one.low ?? one.y, up[0]))];
      if (one.low !== undefined) {
        const ends = `M${at} ${high}V${low}M${at - 4} ${high}h8M${at - 4} ${low}h8`;
        svg.append(shape("path", { d: ends, stroke: color, class: "im-interval" }));
      }
      svg.append(markerAt(marker, color, at, y(one.y), SIZE));
      if (one.number === chosen) svg.append(shape("circle", { cx: at, cy: y(one.y), r: 11, class: "im-ring" }));
    }
  }
  follow(svg, points.filter(({ hidden }) => !hidden).map((one) => ({ number: one.number, at: [x(one.x), y(one.y)] })), act);
  return svg;
}

/** The nearest point is pointed at and chosen: markers that lie on each other can both be reached. */
function follow(svg, places, act) {
  const nearest = (event) => {
    const frame = svg.getBoundingClientRect();
    const far = ({ at }) => Math.hypot(at[0] - (event.clientX - frame.left), at[1] - (event.clientY - frame.top));
    const best = places.reduce((a, b) => (a && far(a) <= far(b) ? a : b), null);
    return best && far(best) <= REACH ? best : { number: -1 };
  };
  svg.onpointermove = (event) => {
    const { number, at } = nearest(event);
    svg.style.cursor = number < 0 ? "" : "pointer";
    act.point(number, at);
  };
  svg.onpointerleave = () => act.point(-1);
  svg.onclick = (event) => {
    const { number } = nearest(event);
    if (number >= 0) act.choose(number);
  };
}
