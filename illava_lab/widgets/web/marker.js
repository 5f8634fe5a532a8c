import { shape } from "./dom.js";

// Markers of methods (plotly's names), in a box from -1 to 1.
const MARKERS = {
  circle: "M.9 0A.9.9 0 1 1-.9 0 .9.9 0 1 1 .9 0Z",
  square: "M-.8-.8H.8V.8H-.8Z",
  diamond: "M0-1 1 0 0 1-1 0Z",
  "triangle-up": "M0-.9 1 .8H-1Z",
  "triangle-down": "M0 .9 1-.8H-1Z",
  x: "M-.9-.5-.5-.9 0-.4.5-.9.9-.5.4 0 .9.5.5.9 0 .4-.5.9-.9.5-.4 0Z",
  cross: "M-.3-.9H.3V-.3H.9V.3H.3V.9H-.3V.3H-.9V-.3H-.3Z",
  star: "M0-1 .29-.31 1-.25.45.2.6.95 0 .55-.6.95-.45.2-1-.25-.29-.31Z",
  pentagon: "M0-1 .95-.31.59.81H-.59L-.95-.31Z",
  hexagon: "M0-1 .87-.5V.5L0 1-.87.5V-.5Z",
};

const pathOf = (name) => MARKERS[name] ?? MARKERS.circle;

/** The marker of a method as a small picture. */
export function marker(name, color) {
  const path = shape("path", { d: pathOf(name), fill: color });
  return shape("svg", { viewBox: "-1.1 -1.1 2.2 2.2", "aria-hidden": "true" }, path);
}

/** The same within a drawing: around (x, y), from there to its edge `size`. */
export function markerAt(name, color, x, y, size) {
  return shape("path", { d: pathOf(name), fill: color, transform: `translate(${x} ${y}) scale(${size})` });
}
