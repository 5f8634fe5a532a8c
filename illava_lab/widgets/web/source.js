// Where runs come from: a kernel that computes them, or a store of those that were computed.

import { readRun } from "./run.js";

/** One name for settings that give the same run. */
export function keyOf({ picture, question, method, keep, schedule }) {
  return JSON.stringify([picture, question, method, schedule ? ordered(schedule) : keep]);
}

function ordered(value) {
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((name) => [name, ordered(value[name])]));
}

const ABOUT = 0.06; // of all patches: so much a handle may miss to leave the other layers as they are

/** Settings with which nothing is reduced. */
export const bareOf = ({ picture, question }) => ({ picture, question, method: "none", keep: 1, schedule: null });

class Source {
  constructor(catalog) {
    this.catalog = catalog;
    this.runs = new Map();
  }

  /** The run of these settings if it is there, read. */
  get(settings) {
    return this.runs.get(keyOf(settings));
  }

  put(settings, run) {
    const views = this.catalog.pictures[settings.picture].views;
    const read = readRun(run, views);
    this.runs.set(keyOf(settings), read);
    return read;
  }
}

/** Runs that were computed before: { catalog, parts, runs: [{ ...settings, run }, ...], note }; the layers and moves of a
    run are numbers of `parts`. */
export class Stored extends Source {
  constructor({ catalog, parts, runs, note }) {
    super(catalog);
    this.free = false;
    this.note = note;
    this.settings = runs.map(({ run, ...settings }) => settings);
    const whole = (run) => ({ ...run, layers: parts[run.layers], moves: run.moves.map((move) => parts[move]) });
    this.raw = new Map(runs.map(({ run, ...settings }) => [keyOf(settings), whole(run)]));
  }

  get(settings) {
    const key = keyOf(settings);
    if (!this.runs.has(key) && this.raw.has(key)) this.put(settings, this.raw.get(key));
    return this.runs.get(key);
  }

  async ask(settings) {
    const run = this.get(settings);
    if (!run) throw new Error("This run is not stored; the notebook computes it.");
    return run;
  }

  /** Those of one picture, question and method. */
  alike({ picture, question, method }) {
    return this.settings.filter(
      (one) => one.picture === picture && one.question === question && one.method === method,
    );
  }

  /** The settings whose run leaves about `count` tokens at a place, and else is most like the run that a handle was
      taken from. */
  nearest(settings, from, at, count) {
    const before = from.layers.tokens;
    const options = this.alike(settings).map((one) => {
      const { tokens } = this.raw.get(keyOf(one)).layers;
      const others = tokens.reduce((sum, number, place) => sum + Math.abs(number - before[place]), 0);
      return { one, off: Math.abs(tokens[at] - count), others };
    });
    const best = Math.min(...options.map(({ off }) => off)) + ABOUT * from.patches;
    return options.filter(({ off }) => off <= best).reduce((a, b) => (b.others < a.others ? b : a)).one;
  }
}

/** A kernel behind an anywidget model: `asked` goes there, `answer` comes back. */
export class Live extends Source {
  constructor(model) {
    super(model.get("catalog"));
    this.free = true;
    this.model = model;
    this.number = Date.now(); // ids of a page that is loaded again are others
    this.waiting = new Map();
    this.hear = (answer) => {
      if (!answer?.settings) return;
      const run = answer.run ? this.put(answer.settings, answer.run) : null;
      const { resolve, reject } = this.waiting.get(answer.id) ?? {};
      this.waiting.delete(answer.id);
      if (run) resolve?.(run);
      else reject?.(new Error(answer.error));
      if (run && answer.told) this.told?.(answer.settings);
    };
    this.changed = () => this.hear(model.get("answer"));
    model.on("change:answer", this.changed);
  }

  /** Ask the kernel; `quiet`: nobody waits for it. Rejects with what the lab says against it. */
  ask(settings, quiet = false) {
    const id = ++this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.model.set("asked", { ...settings, id, quiet });
      this.model.save_changes();
    });
  }

  close() {
    this.model.off("change:answer", this.changed);
  }
}

/** Tokens at each place if `count` are left at one: the others keep their fractions. A forecast, until the run is there. */
export function forecast(run, at, count) {
  const before = run.states.map(({ anchor }) => anchor.length);
  const out = [...before];
  for (let place = at; place < before.length; place++) {
    if (place === at) out[place] = count;
    else out[place] = Math.max(1, Math.round((out[place - 1] * before[place]) / before[place - 1]));
  }
  return out;
}

/** The schedule that leaves these many tokens, in fractions of those that enter. */
export function scheduleOf({ layers, patches }, counts) {
  const schedule = { image: null, encoder: {}, llm: {} };
  counts.forEach((count, at) => {
    const entered = at ? counts[at - 1] : patches;
    if (count >= entered) return;
    const share = Math.round((count / entered) * 1e6) / 1e6;
    if (layers.stage[at] === "patches") schedule.image = share;
    else if (layers.stage[at] in schedule) schedule[layers.stage[at]][layers.layer[at]] = share;
  });
  return schedule;
}
