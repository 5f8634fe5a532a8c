// The picture beneath its tokens: grey, groups in the colour of their token and with an outline, fallen patches dark.

import { css } from "./color.js";
import { cellsOf, cleared } from "./map.js";
import { patchWeights } from "./run.js";

const LARGEST = 24; // groups that are filled, and all as large; `illava_lab/views/colors.py` has the same number

/** The patches that a group has at least if it is filled with colour: as the last of the largest has. */
function leastFilled({ members }) {
  const sizes = members.map((patches) => patches.length).sort((a, b) => b - a);
  return Math.max(2, sizes[LARGEST - 1] ?? 0);
}

/** Draw one view after a place. `active`: { at, token, patch } that is followed, or null. */
export function drawPhoto(canvas, { run, at, view, width, theme, picture, active }) {
  const cells = cellsOf(run, view, width);
  const pen = cleared(canvas, cells.width, cells.height);
  pen.imageSmoothingQuality = "high";
  drawGrey(pen, picture, cells, theme);
  const state = run.states[at];
  const patches = [...Array(cells.count).keys()].map((i) => run.first[view] + i);
  if (active) lightUp(pen, run, cells, patches, picture, active, theme);
  else tint(pen, run, cells, patches, state, theme);
}

function drawGrey(pen, picture, cells, theme) {
  pen.fillStyle = theme.empty;
  pen.fillRect(0, 0, cells.width, cells.height);
  if (!picture?.complete || !picture.naturalWidth) return;
  pen.drawImage(picture, 0, 0, cells.width, cells.height);
  pen.globalCompositeOperation = "saturation"; // takes the colour of what lies below
  pen.fillStyle = "#888";
  pen.fillRect(0, 0, cells.width, cells.height);
  pen.globalCompositeOperation = "source-over";
}

function tint(pen, run, cells, patches, { owner, token, anchor, members }, theme) {
  const least = leastFilled({ members });
  for (const patch of patches) {
    const [x, y] = cells.box(patch);
    const number = owner[patch];
    if (number < 0) {
      pen.fillStyle = theme.fallen;
      pen.fillRect(x, y, cells.side, cells.side);
    } else if (members[number].length >= least) {
      pen.fillStyle = css(run.colors[anchor[number]], 0.62);
      pen.fillRect(x, y, cells.side, cells.side);
    }
  }
  for (const patch of patches) {
    const number = owner[patch];
    if (number < 0 || members[number].length < 2) continue;
    outline(pen, run, cells, patch, (other) => owner[other] === number, css(run.colors[anchor[number]]), 1.5);
  }
  for (const patch of patches) {
    const number = token[patch];
    if (number < 0) continue;
    const [x, y] = cells.box(patch);
    if (members[number].length > 1) frame(pen, x, y, cells.side, css(run.colors[patch]), theme, 1.5);
    else {
      pen.strokeStyle = theme.thin;
      pen.lineWidth = 1;
      pen.strokeRect(x + 0.5, y + 0.5, cells.side - 1, cells.side - 1);
    }
  }
}

/** The patches of one token in the photograph's own colours, everything else dark. */
function lightUp(pen, run, cells, patches, picture, { at, token, patch }, theme) {
  pen.fillStyle = theme.shade;
  pen.fillRect(0, 0, cells.width, cells.height);
  const weights = token < 0 ? new Map([[patch, 1]]) : patchWeights(run, at, token);
  const most = Math.max(...[...weights.values()].map(Math.abs));
  const home = token < 0 ? patch : run.states[at].anchor[token];
  const color = css(run.colors[home]);
  const scale = picture?.naturalWidth ? [picture.naturalWidth / cells.width, picture.naturalHeight / cells.height] : null;
  for (const one of patches) {
    if (!weights.has(one)) continue;
    const [x, y] = cells.box(one);
    pen.globalAlpha = token < 0 ? 0.5 : 0.45 + 0.55 * Math.abs(weights.get(one) / most);
    if (scale) {
      const source = [x * scale[0], y * scale[1], cells.side * scale[0], cells.side * scale[1]];
      pen.drawImage(picture, ...source, x, y, cells.side, cells.side);
    }
    pen.globalAlpha = 1;
    outline(pen, run, cells, one, (other) => weights.has(other), color, 2);
  }
  if (patches.includes(home) && token >= 0) frame(pen, ...cells.box(home), cells.side, color, theme, -1);
}

function frame(pen, x, y, side, color, theme, inset) {
  for (const [stroke, thick] of [[theme.frame, 4.5], [color, 2]]) {
    pen.strokeStyle = stroke;
    pen.lineWidth = thick;
    pen.strokeRect(x + inset, y + inset, side - 2 * inset, side - 2 * inset);
  }
}

/** The sides of a patch behind which another group begins. */
function outline(pen, run, cells, patch, same, color, thick) {
  const [x, y] = cells.box(patch);
  const [column, row] = [Math.round(x / cells.side), Math.round(y / cells.side)];
  const sides = [
    [row > 0 && same(patch - cells.columns), [x, y, x + cells.side, y]],
    [row < cells.rows - 1 && same(patch + cells.columns), [x, y + cells.side, x + cells.side, y + cells.side]],
    [column > 0 && same(patch - 1), [x, y, x, y + cells.side]],
    [column < cells.columns - 1 && same(patch + 1), [x + cells.side, y, x + cells.side, y + cells.side]],
  ];
  pen.strokeStyle = color;
  pen.lineWidth = thick;
  pen.beginPath();
  for (const [joined, [x0, y0, x1, y1]] of sides) {
    if (joined) continue;
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
  }
  pen.stroke();
}
