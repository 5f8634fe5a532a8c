// What moves: threads through the places of a token that is followed, and the flow from the picture to the answer.

import { css } from "./color.js";
import { cellsOf, cleared } from "./map.js";

const CHANGE = 480; // milliseconds from one place to the next, where tokens melt or fall
const QUIET = 140;
const MANY = 8; // tokens of a lineage at one place that have a line each
const ease = (x) => (x < 0.5 ? 4 * x ** 3 : 1 - (2 - 2 * x) ** 3 / 2);

export const still = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A sheet over the whole figure that lets the pointer through. */
export class Overlay {
  constructor(root, canvas) {
    Object.assign(this, { root, canvas });
  }

  clear() {
    const box = this.root.getBoundingClientRect();
    this.corner = [box.left, box.top];
    return cleared(this.canvas, box.width, box.height);
  }

  /** Where a cell of a card's map lies on the sheet: its middle and its side. */
  spot(canvas, cells, patch) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = cells.box(patch);
    const half = cells.side / 2;
    return [box.left - this.corner[0] + x + half, box.top - this.corner[1] + y + half, cells.side];
  }

  /** Lines from card to card through all tokens of a lineage (`lineage` of run.js). Where these are many, only those
      that melt have a line, and from row to row only the heaviest. */
  threads(run, view, cards, line) {
    const pen = this.clear();
    const inView = (patch) => patch >= run.first[view] && patch < run.first[view] + cards[0].cells.count;
    pen.lineCap = "round";
    for (let i = 1; i < cards.length; i++) {
      const [from, to] = [cards[i - 1], cards[i]];
      const weights = line[from.last];
      const heaviest = [...weights.keys()].reduce((a, b) => (weights.get(b) > weights.get(a) ? b : a), -1);
      const below = to.map.offsetTop > from.map.offsetTop + 40;
      for (const token of line[to.first].keys()) {
        const parts = run.states[to.first].move?.parts[token] ?? [[token, 1]];
        for (const [earlier] of parts) {
          if (!weights.has(earlier) || (below && earlier !== heaviest)) continue;
          const [start, end] = [run.states[from.last].anchor[earlier], run.states[to.first].anchor[token]];
          if (!inView(start) || !inView(end) || (start === end && weights.size > MANY && earlier !== heaviest)) continue;
          this.thread(pen, this.spot(from.map, from.cells, start), this.spot(to.map, to.cells, end), {
            color: css(run.colors[start], below ? 0.5 : parts.length > MANY ? 0.5 : 0.9),
            thick: start === end ? 1.6 : 1,
            below,
          });
        }
      }
    }
  }

  thread(pen, [x0, y0], [x1, y1], { color, thick, below }) {
    const bend = (x1 - x0) * (below ? 0.2 : 0.5);
    pen.strokeStyle = color;
    pen.lineWidth = thick;
    pen.setLineDash(below ? [2, 4] : []);
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.bezierCurveTo(x0 + bend, y0, x1 - bend, y1, x1, y1);
    pen.stroke();
  }
}

/** The flow, once: squares fly from the photograph through all cards into the answer. Returns a function that ends it.
    `scene`: { overlay, run, view, photo, cards, answer, reach(number of cards that are drawn), end() } */
export function play(scene) {
  const legs = legsOf(scene);
  let [leg, start, running] = [0, performance.now(), true];
  const finish = () => {
    if (!running) return;
    running = false;
    scene.overlay.clear();
    scene.end();
  };
  const frame = (now) => {
    if (!running) return;
    if (now - start >= legs[leg].time) {
      leg += 1;
      start = now;
      if (leg === legs.length) return finish();
      scene.reach(leg);
    }
    legs[leg].draw(Math.min(1, (now - start) / legs[leg].time));
    requestAnimationFrame(frame);
  };
  scene.reach(0);
  requestAnimationFrame(frame);
  return finish;
}

/** The same without motion: one card after the other appears. */
export function unfold({ overlay, cards, reach, end }) {
  let timer = 0;
  const finish = () => {
    clearTimeout(timer);
    end();
  };
  const next = (number) => {
    reach(number);
    timer = number < cards.length ? setTimeout(next, 350, number + 1) : setTimeout(finish, 350);
  };
  overlay.clear();
  next(1);
  return finish;
}

function legsOf({ overlay, run, view, photo, cards, answer }) {
  const photoCells = cellsOf(run, view, photo.getBoundingClientRect().width);
  const spots = [{ map: photo, cells: photoCells }, ...cards];
  const tokensIn = (state) => [...state.anchor.entries()].filter(([, patch]) => inside(patch));
  const inside = (patch) => patch >= run.first[view] && patch < run.first[view] + photoCells.count;
  const patches = { anchor: Int32Array.from({ length: run.patches }, (_, i) => i) };
  return spots.map((from, i) => {
    const to = spots[i + 1];
    const before = i ? run.states[from.last] : patches;
    const after = to && run.states[to.first];
    const flights = tokensIn(before).map(([token, patch]) => {
      const color = run.colors[patch];
      if (!to) return { color, from: patch, into: true };
      const slot = after.move ? after.move.goes[token] : token;
      if (slot < 0) return { color, from: patch, falls: true };
      return { color, from: patch, to: after.anchor[slot], melts: after.anchor[slot] !== patch };
    });
    const changes = !i || !to || after.move;
    return { time: changes ? CHANGE : QUIET, draw: (share) => drawLeg({ overlay, from, to, answer, flights, share, inside }) };
  });
}

function drawLeg({ overlay, from, to, answer, flights, share, inside }) {
  const pen = overlay.clear();
  const end = to ? null : answer.getBoundingClientRect();
  flights.forEach(({ color, from: patch, to: target, falls, melts, into }, i) => {
    const p = ease(Math.min(1, Math.max(0, share * 1.35 - (0.35 * i) / flights.length)));
    let [x, y, side] = overlay.spot(from.map, from.cells, patch);
    let alpha = 1;
    if (falls) {
      const [x1] = overlay.spot(to.map, to.cells, patch);
      x += (x1 - x) * Math.min(p, 0.5);
      y += 90 * p ** 2;
      alpha = 1 - p;
    } else {
      let goal = [end && end.left - overlay.corner[0] + end.width / 2, end && end.top - overlay.corner[1] + 44, 0];
      if (!into) goal = overlay.spot(to.map, to.cells, target);
      if (!into && !inside(target)) alpha = 1 - p;
      x += (goal[0] - x) * p;
      y += (goal[1] - y) * p - (into ? 0 : Math.sin(Math.PI * p) * 4);
      side += (goal[2] * (melts ? 0.4 : 1) - side) * p;
    }
    const drawn = Math.max(0, side - 1);
    pen.fillStyle = css(color, alpha);
    pen.fillRect(x - drawn / 2, y - drawn / 2, drawn, drawn);
  });
}
