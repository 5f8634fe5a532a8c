// What is on the page: built once, filled and drawn for every run.

import { Answer } from "./answer.js";
import { layOut } from "./cards.js";
import { Controls } from "./controls.js";
import { element, percent } from "./dom.js";
import { cellsOf } from "./map.js";
import { Overlay } from "./motion.js";
import { drawPhoto } from "./photo.js";
import { lineage } from "./run.js";
import { followTheme } from "./theme.js";
import { placeName, table, tokenSentence, totals } from "./words.js";

const MORPH = 220; // milliseconds in which one run becomes the next
const CARD = 66; // pixels of the narrowest card, and between two of them
const GAP = 10;
const PHOTO = 320; // pixels of the widest photograph
const TITLE = "The machine: visual tokens on their way from the picture to the answer";

export class Page {
  /** `act`: { change(settings), keep(at, count), kept(), play(), reset(), looking() -> Looking }. */
  constructor(root, source, act) {
    Object.assign(this, { root, act, view: 0, cards: [], pictures: new Map() });
    this.controls = new Controls(source, act);
    this.answer = new Answer();
    this.build(source.note);
    this.unwatch = followTheme(root, () => this.theme());
  }

  build(note) {
    this.photo = element("canvas", { class: "im-photo", role: "img" });
    this.caption = element("figcaption", {});
    this.views = element("div", { class: "im-views", role: "group", "aria-label": "Pictures, crops or frames" });
    this.figures = element("div", { class: "im-figures" });
    this.status = element("p", { class: "im-status" });
    this.heard = element("p", { class: "im-heard", role: "status" });
    this.said = element("p", { class: "im-said", "aria-live": "polite" });
    this.flow = element("div", { class: "im-flow" });
    this.every = element("input", { type: "checkbox", onchange: () => this.arrange() });
    this.everyLabel = element("label", {}, this.every, " a card for every layer");
    this.table = element("div", { class: "im-table" });
    this.overlay = new Overlay(this.root, element("canvas", { class: "im-overlay", "aria-hidden": "true" }));
    const side = element("div", { class: "im-side" }, this.controls.node, this.figures, this.status, this.heard);
    const shown = element("figure", {}, this.photo, this.views, this.caption);
    const more = element("details", {}, element("summary", { text: "The same as a table" }), this.table);
    this.root.classList.add("im", "im-machine");
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", TITLE);
    this.root.replaceChildren(
      element("div", { class: "im-top" }, shown, side),
      this.flow,
      legend(),
      element("div", { class: "im-foot" }, this.everyLabel, more, note ? element("p", { text: note }) : null),
      this.said,
      this.overlay.canvas,
    );
    const looking = this.act.looking;
    const patch = (event) => this.patchAt(event);
    this.photo.onpointermove = (event) => {
      if (event.pointerType !== "touch") looking().over(looking().place(), patch(event));
    };
    this.photo.onpointerleave = () => looking().out();
    this.photo.onclick = (event) => looking().follow(looking().place(), patch(event));
  }

  patchAt(event) {
    const box = this.photo.getBoundingClientRect();
    return cellsOf(this.run, this.view, this.photoWidth).hit(event.clientX - box.left, event.clientY - box.top);
  }

  close() {
    this.closed = true;
    this.unwatch();
  }

  /** The colors of the theme, and as many columns as the width has room for. */
  theme() {
    const style = getComputedStyle(this.root);
    const names = ["ink", "surface", "empty", "fallen", "shade", "thin", "frame", "focus"];
    this.paint = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--im-${name}`).trim()]));
    this.fit();
  }

  // ------------------------------------------------------------------------------------------- filling
  /** Show a run; `past`: the one that it grows out of, or null. */
  show(run, bare, past) {
    const other = this.run?.views !== run.views;
    this.run = run;
    this.past = past && !other ? { run: past, begun: performance.now() } : null;
    if (other) this.enter();
    this.arrange();
    this.fill(bare);
  }

  /** Another picture: its views are offered, and nothing is followed. */
  enter() {
    this.view = 0;
    this.act.looking().forget();
    const several = this.run.views.length > 1 ? this.run.views : [];
    this.views.replaceChildren(
      ...several.map(({ name, picture }, view) => {
        const image = element("img", { src: picture, alt: name });
        const button = element("button", { type: "button", title: name }, image, element("span", {}));
        button.onclick = () => this.look(view);
        return button;
      }),
    );
  }

  look(view) {
    this.view = view;
    this.act.looking().cursor = null;
    this.fit();
  }

  /** Cards for the places of this run, made anew only where these are others. */
  arrange() {
    const { run } = this;
    const { stage } = run.layers;
    const deep = ["encoder", "llm"].some((name) => stage.filter((one) => one === name).length > 12);
    const moves = deep && !this.every.checked ? run.moves.map(({ at }) => at) : [];
    const shape = JSON.stringify([stage, moves, run.layers.least, this.every.checked]);
    this.everyLabel.hidden = !deep;
    if (shape !== this.shape) {
      this.shape = shape;
      const focus = document.activeElement;
      const at = Number(this.root.contains(focus) ? (focus.closest(".im-card")?.dataset.at ?? -1) : -1);
      const { cards, rows } = layOut(run, this.every.checked, this.act, this.answer.node);
      this.cards = cards;
      this.flow.replaceChildren(...rows);
      const again = cards.find(({ first, last }) => first <= at && at <= last);
      if (again) (again[focus.tagName === "CANVAS" ? "map" : "keep"] ?? again.map).focus({ preventScroll: true });
      this.fit();
    }
    this.act.looking().roam();
  }

  /** Numbers and words of the run, or of a forecast: `counts` for each place. */
  fill(bare, counts = null) {
    const { run } = this;
    this.cards.forEach((card) => card.fill(run, counts));
    if (counts) return;
    this.answer.fill(run, bare);
    const { tokens, left, flops, cache } = totals(run);
    this.figures.replaceChildren(
      figure(String(left), `of ${tokens} tokens`, left / tokens),
      figure(percent(flops), "of the FLOPs", flops),
      figure(percent(cache), "of the cache", cache),
    );
    this.table.replaceChildren(table(run));
    this.draw();
  }

  say(text, followed) {
    this.said.textContent = text;
    this.said.classList.toggle("im-pinned", followed);
  }

  // ------------------------------------------------------------------------------------------- drawing
  /** As many columns as there is room for. */
  fit() {
    if (!this.cards.length) return;
    const wide = this.flow.clientWidth;
    const rows = [...this.flow.querySelectorAll("ol.im-places")];
    const most = Math.max(...rows.map((row) => row.children.length + (row.contains(this.answer.node) ? 1 : 0)));
    const columns = Math.max(3, Math.min(most, Math.floor((wide + GAP) / (CARD + GAP))));
    this.flow.style.setProperty("--columns", columns);
    this.cardWidth = Math.min(120, (wide - GAP * (columns - 1)) / columns);
    this.photoWidth = Math.min(PHOTO, this.photo.parentElement.clientWidth);
    this.draw();
  }

  draw() {
    if (this.closed || !this.run || !this.cardWidth) return;
    const { run, view, cardWidth: width, paint: theme } = this;
    const cells = cellsOf(run, view, width);
    const active = this.act.looking().active();
    const line = active && active.token >= 0 ? lineage(run, active.at, active.token) : null;
    const past = this.morph();
    this.cards.forEach((card, number) => {
      const here = Boolean(active) && card.first <= active.at && active.at <= card.last;
      card.node.classList.toggle("im-waits", this.reached !== undefined && number >= this.reached);
      card.node.classList.toggle("im-here", here);
      const glow = active ? new Set(line?.[card.first].keys() ?? []) : null;
      card.draw({ run, view, width, cells, theme, glow, focus: here ? active.patch : -1, past });
    });
    this.answer.node.classList.toggle("im-waits", this.reached !== undefined);
    if (this.reached === undefined) {
      if (line) this.overlay.threads(run, view, this.cards, line);
      else this.overlay.clear();
    }
    this.drawPhoto(active);
    if (past) requestAnimationFrame(() => this.draw());
  }

  /** How far one run has become the next, or null where it has. */
  morph() {
    if (!this.past) return null;
    const share = (performance.now() - this.past.begun) / MORPH;
    if (share >= 1) this.past = null;
    return this.past && { run: this.past.run, share: Math.max(0, share) };
  }

  drawPhoto(active) {
    const { run, view, photoWidth: width, paint: theme } = this;
    const arrived = this.cards[Math.max(0, (this.reached ?? 0) - 1)];
    const at = this.reached === undefined ? this.act.looking().place() : arrived.first;
    drawPhoto(this.photo, { run, at, view, width, theme, picture: this.picture(), active });
    const after = `after ${placeName(run, at, true)}: ${run.states[at].anchor.length} tokens`;
    this.caption.textContent = after;
    this.photo.setAttribute("aria-label", active ? tokenSentence(run, active) : `The picture ${after}`);
    [...this.views.children].forEach((button, number) => {
      const [height, wide] = run.views[number].grid;
      const from = run.first[number];
      const own = run.states[at].anchor.filter((patch) => patch >= from && patch < from + height * wide);
      button.setAttribute("aria-pressed", String(number === view));
      button.lastChild.textContent = own.length;
    });
  }

  picture() {
    const { picture } = this.run.views[this.view];
    if (!this.pictures.has(picture)) {
      const image = new Image();
      image.onload = () => this.draw();
      image.src = picture;
      this.pictures.set(picture, image);
    }
    return this.pictures.get(picture);
  }
}

function figure(number, name, share) {
  const bar = element("i", {});
  bar.style.width = `${Math.min(100, 100 * share)}%`;
  return element(
    "div",
    {},
    element("b", { text: number }),
    element("span", { text: name }),
    element("div", { class: "im-bar" }, bar),
  );
}

function legend() {
  const entry = (kind, text) => element("span", {}, element("i", { class: `im-key im-${kind}` }), text);
  return element(
    "p",
    { class: "im-legend" },
    entry("token", "a token, in the color of its place"),
    entry("group", "stands for several patches"),
    entry("melted", "melted into the token of its color"),
    entry("gone", "fell: no token stands for it"),
  );
}
