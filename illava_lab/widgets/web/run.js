// A run, read: who stands where at each place of the model. `illava_lab/views/run.py` describes the JSON.

import { viewColors } from "./color.js";

const running = (numbers) => {
  let sum = 0;
  return (numbers ?? []).map((number) => (sum += number));
};

/** A move: who holds each token that leaves (`held`), where each that entered goes (`goes`, -1: it falls), and every
    contribution as `parts[token that leaves]` = [[token that entered, weight], ...]. */
function readMove(lists, entered) {
  let held, gone;
  if (lists.held) {
    held = running(lists.held);
    const staying = new Set(held);
    gone = [...Array(entered).keys()].filter((token) => !staying.has(token));
  } else {
    gone = running(lists.gone);
    const leaving = new Set(gone);
    held = [...Array(entered).keys()].filter((token) => !leaving.has(token));
  }
  const own = new Array(held.length).fill(1000);
  running(lists.mixed).forEach((slot, i) => (own[slot] = lists.own[i]));
  const parts = held.map((token, slot) => (own[slot] ? [[token, own[slot] / 1000]] : []));
  const goes = new Int32Array(entered).fill(-1);
  held.forEach((token, slot) => (goes[token] = slot));
  let shared = 0;
  running(lists.into).forEach((slot, i) => {
    if (slot < 0) return;
    goes[gone[i]] = slot;
    parts[slot].push([gone[i], lists.share[shared++] / 1000]);
  });
  const [to, of] = [running(lists.to), running(lists.of)];
  to.forEach((slot, i) => parts[slot].push([of[i], lists.more[i] / 1000]));
  return { held, goes, parts };
}

/** Everything that is drawn of a run. Patches are counted over all views; `first[v]` is the first one of view v.
    `states[at]`: `anchor` (token -> patch), `token` (patch -> the token that stands there, -1), `owner` (patch -> the
    token that it is in, -1 where it has fallen), `members` (token -> patches), `move` (how it came to be, or null). */
export function readRun(run, views = run.views) {
  const sizes = views.map(({ grid }) => grid[0] * grid[1]);
  const first = sizes.map((_, v) => sizes.slice(0, v).reduce((a, b) => a + b, 0));
  const patches = sizes.reduce((a, b) => a + b, 0);
  const colors = views.flatMap(viewColors);
  const moves = new Map(run.moves.map((move) => [move.at, move]));
  let anchor = Int32Array.from({ length: patches }, (_, patch) => patch);
  let owner = Int32Array.from(anchor);
  const states = run.layers.stage.map((_, at) => {
    const lists = moves.get(at);
    const move = lists ? readMove(lists, anchor.length) : null;
    const before = anchor.length;
    if (move) {
      anchor = Int32Array.from(move.held, (token) => anchor[token]);
      owner = owner.map((token) => (token < 0 ? -1 : move.goes[token]));
    }
    return stateOf(anchor, owner, move, patches, before);
  });
  return { ...run, views, first, patches, colors, states };
}

function stateOf(anchor, owner, move, patches, before) {
  const token = new Int32Array(patches).fill(-1);
  anchor.forEach((patch, number) => (token[patch] = number));
  const members = Array.from(anchor, () => []);
  owner.forEach((number, patch) => number >= 0 && members[number].push(patch));
  const fallen = move ? move.goes.filter((slot) => slot < 0).length : 0;
  return { anchor, owner, token, members, move, fallen, melted: before - anchor.length - fallen };
}

/** The tokens at each place that a token at one place comes from and goes into: an array of Maps token -> weight. Before
    the place weights say how much of each is in it, behind it they are 1. */
export function lineage({ states }, at, number) {
  const line = states.map(() => new Map());
  line[at].set(number, 1);
  for (let place = at; place > 0; place--) {
    for (const [token, weight] of line[place]) {
      const parts = states[place].move ? states[place].move.parts[token] : [[token, 1]];
      for (const [earlier, share] of parts) {
        line[place - 1].set(earlier, (line[place - 1].get(earlier) ?? 0) + weight * share);
      }
    }
  }
  for (let place = at + 1; place < states.length; place++) {
    for (const token of line[place - 1].keys()) {
      const later = states[place].move ? states[place].move.goes[token] : token;
      if (later >= 0) line[place].set(later, 1);
    }
  }
  return line;
}

/** How much of each patch is in a token: Map patch -> weight. */
export function patchWeights(run, at, number) {
  const { move } = run.states[0]; // a picture that was made smaller starts with fewer tokens than patches
  const weights = new Map();
  for (const [token, weight] of lineage(run, at, number)[0]) {
    for (const [patch, share] of move ? move.parts[token] : [[token, 1]]) {
      weights.set(patch, (weights.get(patch) ?? 0) + weight * share);
    }
  }
  return weights;
}

/** The place at which a patch falls, or -1 if a token stands for it to the end. */
export function fallsAt({ states }, patch) {
  return states.findIndex(({ owner }) => owner[patch] < 0);
}

/** The view that a patch is in, with its row and column there. */
export function placeOf({ views, first }, patch) {
  let view = first.length - 1;
  while (first[view] > patch) view--;
  const width = views[view].grid[1];
  return { view, row: Math.floor((patch - first[view]) / width), column: (patch - first[view]) % width };
}
