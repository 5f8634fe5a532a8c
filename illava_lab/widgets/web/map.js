// The tokens of one place as a small map: a square where a token stands, a dot where a patch has melted into the token of
// its colour, nothing where it has fallen.

import { css, mixed } from "./color.js";

const DOT = 0.42;
const FAINT = 0.14;
const FEW = 16; // tokens of a lineage that have a frame each; more would hide their colours

/** A canvas of this size in CSS pixels, sharp on every screen, cleared. */
export function cleared(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

/** How a patch looks at a place: side of its square (of a cell), colour. */
export function cellLook(run, at, patch) {
  const { token, owner, anchor } = run.states[at];
  if (token[patch] >= 0) return { side: 1, color: run.colors[patch] };
  if (owner[patch] >= 0) return { side: DOT, color: run.colors[anchor[owner[patch]]] };
  return { side: 0, color: run.colors[patch] };
}

/** Where the cells of a view lie in a map of a width: side of a cell, height, and the box of a patch. */
export function cellsOf(run, view, width) {
  const [rows, columns] = run.views[view].grid;
  const side = Math.min(width / columns, (width * 1.5) / rows);
  const box = (patch) => {
    const at = patch - run.first[view];
    return [(at % columns) * side, Math.floor(at / columns) * side];
  };
  const hit = (x, y) => {
    const [column, row] = [Math.floor(x / side), Math.floor(y / side)];
    return column < 0 || row < 0 || column >= columns || row >= rows ? -1 : run.first[view] + row * columns + column;
  };
  return { side, rows, columns, width: columns * side, height: rows * side, box, hit, count: rows * columns };
}

/** Draw one place.
    shown: { run, at, view, width, theme, glow (tokens that are followed, or null), focus (patch or -1),
             past ({ run, at, share }: what was shown before, and how much of the change is done) } */
export function drawMap(canvas, { run, at, view, width, theme, glow, focus, past }) {
  const cells = cellsOf(run, view, width);
  const pen = cleared(canvas, cells.width, cells.height);
  const { token, owner, members } = run.states[at];
  const framed = glow ? glow.size <= FEW : true;
  const gap = cells.side > 9 ? 1 : cells.side > 4 ? 0.75 : 0.4;
  for (let patch = run.first[view]; patch < run.first[view] + cells.count; patch++) {
    const [x, y] = cells.box(patch);
    let { side, color } = cellLook(run, at, patch);
    if (past) {
      const before = cellLook(past.run, past.at, patch);
      side = before.side + (side - before.side) * past.share;
      color = mixed(before.color, color, past.share);
    }
    const lit = !glow || (owner[patch] >= 0 && glow.has(owner[patch]));
    if (side > 0) {
      const drawn = (cells.side - gap) * side;
      const edge = (cells.side - drawn) / 2;
      pen.fillStyle = css(color, lit ? 1 : FAINT);
      pen.fillRect(x + edge, y + edge, drawn, drawn);
    }
    const own = token[patch];
    if (own >= 0 && lit && framed && (glow || members[own].length > 1) && !past) {
      // Who stands for several patches has a frame.
      const thick = Math.max(1, cells.side / 7);
      pen.strokeStyle = theme.ink;
      pen.lineWidth = thick;
      pen.strokeRect(x, y, cells.side - gap / 2, cells.side - gap / 2);
    }
  }
  if (focus >= run.first[view] && focus < run.first[view] + cells.count) {
    const [x, y] = cells.box(focus);
    const wide = Math.max(3, cells.side * 0.35);
    for (const [color, thick] of [[theme.surface, 4], [theme.focus, 2]]) {
      pen.strokeStyle = color;
      pen.lineWidth = thick;
      pen.strokeRect(x - wide / 2, y - wide / 2, cells.side + wide, cells.side + wide);
    }
  }
}
