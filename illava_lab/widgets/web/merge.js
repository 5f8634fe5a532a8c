// The merge explorer: reductions of several methods step by step, and for every token the patches that it stands for.

import { element } from "./dom.js";
import { Panels, drawGroups, drawPicture, drawValues, groupsOf } from "./grid.js";
import { button, field, list, slider } from "./gridcontrols.js";
import { figureOf } from "./gridfigure.js";
import { followTheme } from "./theme.js";

const MILLION = 1e6; // a weight of 1
const PLACES = { photo: 0, scores: 1, tokens: 2, patches: 3 };

/** A weight as it is said: three digits, as Python rounds them. */
const said = (millionths) => (Math.sign(millionths) * Math.floor((Math.abs(millionths) + 500) / 1000) / 1000).toFixed(3);

/** A step as it is drawn. `parts`: token -> [its patches, heaviest first, their weights in millionths]. */
function readStep({ name, anchor, groups, owner, ranked }, patches) {
  const parts = anchor.map((patch) => [[patch], [MILLION]]);
  for (const [token, own, weights] of groups) parts[token] = [own, weights];
  const held = new Int32Array(patches).fill(-1);
  const most = new Float64Array(patches).fill(-1);
  parts.forEach(([own, weights], token) => {
    own.forEach((patch, i) => {
      if (Math.abs(weights[i]) <= most[patch]) return;
      most[patch] = Math.abs(weights[i]);
      held[patch] = token;
    });
  });
  const rank = new Map(ranked?.places.map((patch, i) => [patch, i]));
  return { name, parts, ranked, rank, ...groupsOf(owner ?? held, anchor) };
}

export class Merge {
  /** `source`: { catalog, start() -> settings, shown, send(settings) }. */
  constructor(root, source) {
    const { catalog } = source;
    Object.assign(this, { root, source, catalog, shown: source.shown, read: new Map() });
    const [rows, columns] = catalog.grid;
    this.patches = rows * columns;
    const methods = catalog.strategies.map(({ label }) => [label, label]);
    this.strategy = list("strategy", methods, (strategy) => this.want({ strategy }));
    this.step = slider("step", (step) => this.want({ step }));
    this.patch = field("patch", this.patches, (patch) => this.want({ patch }));
    this.title = element("p", { class: "im-title", role: "status" });
    this.panels = new Panels(root, 4, catalog, {
      pick: (patch) => this.want({ patch }),
      lit: (_, patch) => this.lit(patch),
      tell: (number, patch) => this.tell(number, patch),
    });
    root.classList.add("im", "im-explorer");
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Merge explorer: reductions step by step, and the patches of every token");
    const controls = [this.strategy, this.step, this.patch].map(({ node }) => node);
    const reset = button("Reset", () => this.want(source.start()));
    root.replaceChildren(element("div", { class: "im-choices" }, ...controls, reset), this.title, this.panels.node);
    this.show();
    this.close = followTheme(root, () => this.panels.draw());
  }

  /** Something was moved. Where another method has fewer steps, its last one is shown. */
  want(part) {
    const shown = { ...this.shown, ...part };
    const last = this.method(shown.strategy).steps.length - 1;
    this.shown = { ...shown, step: Math.min(shown.step, last) };
    this.source.send(this.shown);
    this.show();
  }

  method(label) {
    return this.catalog.strategies.find((one) => one.label === label);
  }

  /** The step that is shown. */
  get now() {
    const { strategy, step } = this.shown;
    const key = `${step} ${strategy}`;
    if (!this.read.has(key)) this.read.set(key, readStep(this.method(strategy).steps[step], this.patches));
    return this.read.get(key);
  }

  // ------------------------------------------------------------------------------------------- in words
  /** What has become of the picked patch, and what is answered: as `MergeExplorer.describe`. */
  sentence() {
    const { now } = this;
    const { strategy, patch } = this.shown;
    return `${strategy}, ${now.name}. Patch ${patch}: ${this.fate()}. ${this.catalog.question} → ${this.method(strategy).answer}`;
  }

  fate() {
    const { now } = this;
    const token = now.owner[this.shown.patch];
    if (token < 0) return "no token stands for it any more";
    const [own, weights] = now.parts[token];
    if (own.length === 1) return "it has a token of its own";
    const heaviest = own.slice(0, 4).map((patch, i) => `${patch} (${said(weights[i])})`).join(", ");
    return `it is in the token at patch ${now.anchor[token]}, which stands for ${own.length} patches, heaviest ${heaviest}`;
  }

  tell(number, patch) {
    const { now } = this;
    const token = now.owner[patch];
    const lines = [`patch ${patch}: no token stands for it any more`];
    if (token >= 0) {
      const [own, weights] = now.parts[token];
      const weight = said(weights[own.indexOf(patch)] ?? 0);
      const many = `weight ${weight} in the token\nat patch ${now.anchor[token]}, which stands for ${own.length} patches`;
      lines[0] = `patch ${patch}: ${own.length === 1 ? "has a token of its own" : many}`;
    }
    if (number === PLACES.scores && now.ranked) {
      const rank = now.rank.get(patch);
      const { places, scores } = now.ranked;
      lines.push(rank === undefined ? "no token stood here before" : `score ${scores[rank]}, rank ${rank + 1} of ${places.length}`);
    }
    return lines.join("\n");
  }

  // ------------------------------------------------------------------------------------------- what is shown
  /** The patches of the token that holds one. */
  lit(patch) {
    const token = this.now.owner[patch];
    return token < 0 ? [patch] : this.now.parts[token][0];
  }

  show() {
    const { strategy, step, patch } = this.shown;
    const last = this.method(strategy).steps.length - 1;
    this.strategy.set(strategy);
    this.step.set(step, last, `${step} of ${last}`);
    this.patch.set(patch);
    this.title.textContent = this.sentence();
    const picture = this.panels.picture(this.catalog.seen);
    const photo = { title: "what the model sees", frames: [patch], foot: "click a patch to pick it" };
    photo.draw = (canvas, how) => drawPicture(canvas, { ...how, picture });
    const ground = (canvas, how, state) => drawGroups(canvas, how, state, picture);
    this.panels.show([photo, this.scores(ground), this.tokens(ground), this.provenance(ground)], patch);
  }

  scores(ground) {
    const { step } = this.shown;
    const { ranked } = this.now;
    const panel = { title: step ? "score that this step ranked by" : "no reduction yet", frames: [] };
    panel.draw = (canvas, how) => ground(canvas, how, this.bare);
    if (!ranked) return { ...panel, note: step ? "this method does not rank single tokens" : "move the slider" };
    const values = new Array(this.patches).fill(null);
    ranked.places.forEach((patch, i) => (values[patch] = ranked.scores[i]));
    const finite = ranked.scores.filter((score) => score !== null);
    const scale = { colors: "viridis", limits: [Math.min(...finite), Math.max(...finite)], name: "score" };
    panel.draw = (canvas, how) => {
      ground(canvas, how, this.bare);
      drawValues(canvas, how, values, scale);
    };
    return { ...panel, scale };
  }

  tokens(ground) {
    const { now } = this;
    const count = now.anchor.length;
    const title = this.shown.step ? `${count} token${count === 1 ? "" : "s"} after this step` : `${count} tokens, one a patch`;
    const merged = now.members.some((own) => own.length > 1);
    const foot = merged ? "outlined: tokens of several patches" : "";
    return { title, frames: [this.shown.patch], foot, draw: (canvas, how) => ground(canvas, how, now) };
  }

  provenance(ground) {
    const { patch } = this.shown;
    const { now } = this;
    const token = now.owner[patch];
    const alone = (canvas, how) => ground(canvas, how, this.bare);
    if (token < 0) return { title: `patch ${patch} is gone`, frames: [patch], note: "no token stands for it", draw: alone };
    const [own, weights] = now.parts[token];
    const values = new Array(this.patches).fill(null);
    own.forEach((one, i) => (values[one] = weights[i] / MILLION));
    const all = own.length < this.patches ? [0, ...weights] : weights;
    const limits = [Math.min(0, ...all) / MILLION, Math.max(...all) / MILLION];
    const scale = { colors: "viridis", limits, name: "weight of each patch" };
    const title = `token at patch ${now.anchor[token]}: ${own.length} patch${own.length > 1 ? "es" : ""}`;
    const draw = (canvas, how) => {
      alone(canvas, how);
      drawValues(canvas, how, values, scale);
    };
    return { title, frames: [now.anchor[token]], scale, draw };
  }

  /** Every patch as it is: the photograph in grey. */
  get bare() {
    const each = Int32Array.from({ length: this.patches }, (_, patch) => patch);
    return groupsOf(each, [...each]);
  }
}

export default figureOf(Merge);
