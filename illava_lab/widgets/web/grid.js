// Panels of one grid of patches beside each other: what is pointed at in one of them lights up in all, with words.

import { css, mixed, viewColors } from "./color.js";
import { element } from "./dom.js";
import { cellsOf, cleared } from "./map.js";
import { drawPhoto } from "./photo.js";

const PICKED = [["#000", 5], ["#ff40ff", 2.5]]; // frames of the picked patch: one is seen on any ground
const WAY = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

const stopsOf = (text) => text.match(/.{6}/g).map((one) => [0, 2, 4].map((at) => parseInt(one.slice(at, at + 2), 16)));
const SCALES = {
  viridis: stopsOf("4401544828783e498931688e26828e1f9e8935b7796ece58b5de2bfde725"),
  RdBu_r: stopsOf("0530612166ac4393c392c5ded1e5f0f7f7f7fddbc7f4a582d6604db2182b67001f"),
};

/** The colour of a value. `scale`: { colors (a name), limits: [low, high], name }. */
function scaleColor({ colors: name, limits: [low, high] }, value) {
  const stops = SCALES[name];
  const share = high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0;
  const at = Math.min(stops.length - 2, Math.floor(share * (stops.length - 1)));
  return css(mixed(stops[at], stops[at + 1], share * (stops.length - 1) - at));
}

/** A photograph in its own colours. */
export function drawPicture(canvas, { cells, picture, theme }) {
  const pen = cleared(canvas, cells.width, cells.height);
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = theme.empty;
  pen.fillRect(0, 0, cells.width, cells.height);
  if (picture?.complete && picture.naturalWidth) pen.drawImage(picture, 0, 0, cells.width, cells.height);
}

/** A cell for each of `values` that is a number, over what is there or (`alone`) over nothing. */
export function drawValues(canvas, { cells }, values, scale, alone = false) {
  const pen = alone ? cleared(canvas, cells.width, cells.height) : canvas.getContext("2d");
  values.forEach((value, patch) => {
    if (value === null || value === undefined) return;
    const [x, y] = cells.box(patch);
    pen.fillStyle = scaleColor(scale, value);
    pen.fillRect(x + 0.25, y + 0.25, cells.side - 0.5, cells.side - 0.5);
  });
}

/** The photograph in grey below groups of patches, as `groupsOf` gives them. */
export function drawGroups(canvas, { view, width, theme }, groups, picture) {
  const run = { ...view, states: [groups] };
  drawPhoto(canvas, { run, at: 0, view: 0, width, theme, picture, active: null });
}

/** Groups of patches, or tokens, as they are drawn. `owner`: patch -> its group, -1 for none; `anchor`: group -> the patch
    in whose place it stands. */
export function groupsOf(owner, anchor) {
  const token = new Int32Array(owner.length).fill(-1);
  const members = Array.from(anchor, () => []);
  anchor.forEach((patch, number) => (token[patch] = number));
  owner.forEach((number, patch) => number >= 0 && members[number].push(patch));
  return { owner, anchor, token, members };
}

/** A value at the end of a scale, in two digits; next to nothing is nothing. */
const short = (value, reach) => (Math.abs(value) < reach / 1000 ? "0" : String(Number(value.toPrecision(2))));

class Panel {
  constructor(first) {
    this.caption = element("figcaption", {});
    this.below = element("canvas", { "aria-hidden": "true" });
    this.above = element("canvas", first ? { class: "im-over", tabindex: 0, role: "application" } : { class: "im-over", role: "img" });
    if (first) this.above.setAttribute("aria-roledescription", "grid of patches");
    this.note = element("p", { class: "im-note" });
    this.foot = element("div", { class: "im-foot" });
    const cells = element("div", { class: "im-cells" }, this.below, this.above, this.note);
    this.node = element("figure", {}, this.caption, cells, this.foot);
    this.cells = cells;
  }

  /** `shown`: as in `Panels.show`. */
  fill(shown) {
    this.shown = shown;
    const { title, note = "", scale, foot = "" } = shown;
    this.caption.textContent = title;
    const keys = this.above.tabIndex === 0 ? ". Arrow keys pick another patch" : "";
    this.above.setAttribute("aria-label", `${title}${note ? `: ${note}` : ""}${keys}`);
    this.note.textContent = note;
    this.note.hidden = !note;
    this.foot.replaceChildren(...(scale ? legendOf(scale) : [element("span", { text: foot })]));
  }
}

/** The colours of a scale with the values at its ends. */
function legendOf(scale) {
  const bar = element("i", {});
  bar.style.background = `linear-gradient(90deg, ${SCALES[scale.colors].map((one) => css(one)).join(", ")})`;
  const reach = scale.limits[1] - scale.limits[0];
  const [low, high] = scale.limits.map((value) => element("span", { text: short(value, reach) }));
  return [element("div", { class: "im-scale" }, low, bar, high), element("span", { text: scale.name })];
}

/** All panels of a figure.
    act: { pick(patch), lit(number, patch) -> the patches that light up together, or null, tell(number, patch) -> words } */
export class Panels {
  constructor(root, count, { grid, window }, act) {
    Object.assign(this, { root, act, pictures: new Map(), at: null });
    this.view = { views: [{ grid, window }], first: [0], colors: viewColors({ grid, window }) };
    this.panels = Array.from({ length: count }, (_, number) => new Panel(number === 0));
    this.tip = element("div", { class: "im-tip", "aria-hidden": "true", hidden: true });
    this.node = element("div", { class: "im-grids" }, ...this.panels.map(({ node }) => node), this.tip);
    this.node.style.setProperty("--panels", count);
    this.panels.forEach((panel, number) => this.listen(panel, number));
  }

  listen({ above, cells }, number) {
    const patch = ({ clientX, clientY }) => {
      const box = above.getBoundingClientRect();
      return cellsOf(this.view, 0, cells.clientWidth).hit(clientX - box.left, clientY - box.top);
    };
    above.onpointermove = (event) => {
      if (event.pointerType !== "touch") this.point(number, patch(event));
    };
    above.onpointerleave = () => this.point(number, -1);
    above.onclick = (event) => {
      if (patch(event) >= 0) this.act.pick(patch(event));
    };
    above.onkeydown = (event) => {
      if (number > 0 || !WAY[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const [rows, columns] = this.view.views[0].grid;
      const [row, column] = [Math.floor(this.picked / columns) + WAY[event.key][0], (this.picked % columns) + WAY[event.key][1]];
      if (row >= 0 && column >= 0 && row < rows && column < columns) this.act.pick(row * columns + column);
    };
  }

  /** Show other panels: each { title, draw(canvas, { cells, width, theme, view }), frames, scale, foot, note }. `picked`:
      the patch that arrow keys start from. What was pointed at is another thing now: nothing is. */
  show(shown, picked) {
    this.picked = picked;
    shown.forEach((one, number) => this.panels[number].fill(one));
    this.point(0, -1);
    this.draw();
  }

  /** A picture by its address; drawn when it is there. */
  picture(address) {
    if (!this.pictures.has(address)) {
      const image = new Image();
      image.onload = () => this.draw();
      image.src = address;
      this.pictures.set(address, image);
    }
    return this.pictures.get(address);
  }

  /** Colours and width are those of the page now. */
  draw() {
    const style = getComputedStyle(this.root);
    const names = ["surface", "empty", "fallen", "shade", "thin", "frame"];
    this.theme = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--im-${name}`).trim()]));
    for (const panel of this.panels) {
      const width = panel.cells.clientWidth;
      if (!width || !panel.shown) continue;
      const cells = cellsOf(this.view, 0, width);
      panel.shown.draw(panel.below, { cells, width, theme: this.theme, view: this.view });
      this.light(panel, cells);
    }
  }

  point(number, patch) {
    if ((this.at?.patch ?? -1) === patch && (patch < 0 || this.at.number === number)) return;
    this.at = patch < 0 ? null : { number, patch };
    this.tip.hidden = patch < 0;
    for (const panel of this.panels) {
      if (panel.shown && panel.cells.clientWidth) this.light(panel, cellsOf(this.view, 0, panel.cells.clientWidth));
    }
    if (patch >= 0) this.word(number, patch);
  }

  word(number, patch) {
    const panel = this.panels[number].above.getBoundingClientRect();
    const frame = this.node.getBoundingClientRect();
    const cells = cellsOf(this.view, 0, panel.width);
    const [x, y] = cells.box(patch);
    this.tip.textContent = this.act.tell(number, patch);
    const { offsetWidth: wide, offsetHeight: high } = this.tip;
    const left = panel.left - frame.left + x + cells.side / 2 - wide / 2;
    const top = panel.top - frame.top + y - high - 6;
    this.tip.style.left = `${Math.max(0, Math.min(left, frame.width - wide))}px`;
    this.tip.style.top = `${top < 0 ? top + high + cells.side + 12 : top}px`;
  }

  /** What is pointed at, and the frames. */
  light({ above, shown }, cells) {
    const pen = cleared(above, cells.width, cells.height);
    const lit = this.at ? this.act.lit(this.at.number, this.at.patch) : null;
    if (lit) {
      const own = new Set(lit);
      pen.fillStyle = this.theme.shade;
      for (let patch = 0; patch < cells.count; patch++) {
        if (!own.has(patch)) pen.fillRect(...cells.box(patch), cells.side, cells.side);
      }
      for (const [color, thick] of [["#000", 3.5], ["#fff", 1.75]]) edges(pen, cells, own, color, thick);
    }
    for (const [color, thick] of PICKED) shown.frames.forEach((patch) => around(pen, cells, patch, color, thick));
    if (this.at) for (const [color, thick] of [["#000", 3.5], ["#fff", 1.75]]) around(pen, cells, this.at.patch, color, thick);
  }
}

function around(pen, cells, patch, color, thick) {
  const [x, y] = cells.box(patch);
  pen.strokeStyle = color;
  pen.lineWidth = thick;
  pen.strokeRect(x, y, cells.side, cells.side);
}

/** The sides between patches of a set and others. */
function edges(pen, cells, own, color, thick) {
  pen.strokeStyle = color;
  pen.lineWidth = thick;
  pen.beginPath();
  for (const patch of own) {
    const [x, y, side] = [...cells.box(patch), cells.side];
    const column = patch % cells.columns;
    const sides = [
      [own.has(patch - cells.columns), x, y, x + side, y],
      [own.has(patch + cells.columns), x, y + side, x + side, y + side],
      [column > 0 && own.has(patch - 1), x, y, x, y + side],
      [column < cells.columns - 1 && own.has(patch + 1), x + side, y, x + side, y + side],
    ];
    for (const [joined, x0, y0, x1, y1] of sides) {
      if (joined) continue;
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
    }
  }
  pen.stroke();
}
