// The machine: a picture goes in, its tokens go from place to place, an answer comes out. One for notebooks and pages.

import { placeColor } from "./color.js";
import { element } from "./dom.js";
import { Looking } from "./looking.js";
import { play, still, unfold } from "./motion.js";
import { Page } from "./page.js";
import { Live, Stored, bareOf, forecast, keyOf, scheduleOf } from "./source.js";
import { lightTerms } from "./terms.js";
import { runSentence, sameAnswer, totals } from "./words.js";

const LATE = 150; // milliseconds after which it is said that a run is computed
const PATIENCE = 8000; // after which a reader may ask what the kernel does

export class Machine {
  constructor(root, source, start) {
    Object.assign(this, { source, start, wanted: start });
    const act = {
      change: (part) => this.change(part),
      keep: (at, count) => this.keep(at, count),
      kept: () => (this.from = null),
      play: () => this.play(),
      reset: () => this.want(this.start),
      looking: () => this.looking,
    };
    this.page = new Page(root, source, act);
    this.looking = new Looking(this.page);
    this.want(start);
    this.askQuietly(bareOf(start));
  }

  close() {
    this.stop?.();
    clearTimeout(this.late);
    this.closed = true;
    this.page.close();
  }

  // ------------------------------------------------------------------------------------------- what is wanted
  change(part) {
    this.touched = true;
    this.want({ ...this.wanted, schedule: null, ...part });
  }

  /** Keep so many tokens at a place; later ones keep their fractions. */
  keep(at, count) {
    const { run, cards } = this.page;
    const card = cards.find(({ first }) => first === at);
    const fitted = Math.min(card.entered, Math.max(card.least, count));
    this.touched = true;
    this.from ??= run; // where the drag began
    if (!this.source.free) {
      this.want(this.source.nearest(this.wanted, this.from, at, fitted));
      return card.fill(this.page.run); // the handle goes where the stored run has it
    }
    const counts = forecast(run, at, fitted);
    return this.want({ ...this.wanted, schedule: scheduleOf(run, counts) }, counts);
  }

  /** Show what belongs to these settings: at once if it is there, else when it is computed. */
  want(settings, counts = null) {
    this.wanted = settings;
    this.refused = null;
    this.page.root.dataset.wanted = keyOf(settings);
    const run = this.source.get(settings);
    if (run) return this.show(run, settings);
    this.page.controls.set(settings, counts ? counts.at(-1) / this.page.run.bare_tokens : null);
    if (counts) this.page.fill(null, counts);
    return this.pump();
  }

  /** Ask for what is wanted, one run at a time: what is passed over meanwhile is never asked for. */
  async pump() {
    if (this.busy) return;
    const asked = this.wanted;
    const wanted = () => keyOf(asked) === keyOf(this.wanted);
    this.busy = true;
    this.announce(performance.now());
    try {
      const run = await this.source.ask(asked);
      this.busy = false;
      if (wanted()) this.show(run, asked);
      else if (this.onTheWay(asked)) this.draw(run, asked);
    } catch (error) {
      this.busy = false;
      if (wanted()) this.refuse(error);
    }
    if (!this.closed && !wanted()) this.want(this.wanted);
  }

  /** A step of a drag: of the same picture, question and method. Runs of others are dropped. */
  onTheWay(asked) {
    return ["picture", "question", "method"].every((name) => asked[name] === this.wanted[name]);
  }

  announce(begun) {
    clearTimeout(this.late);
    this.late = setTimeout(() => {
      if (!this.busy || this.closed) return;
      const waited = performance.now() - begun;
      const slow = waited > PATIENCE ? "; is the kernel running, and free?" : "";
      this.page.root.classList.add("im-busy");
      this.page.status.textContent = `computing … ${waited < 1000 ? "" : `${Math.round(waited / 1000)} s`}${slow}`;
      this.announce(begun);
    }, this.page.root.classList.contains("im-busy") ? 1000 : LATE);
  }

  settle() {
    clearTimeout(this.late);
    this.page.root.classList.remove("im-busy", "im-refused");
  }

  refuse(error) {
    this.settle();
    this.refused = error;
    this.page.root.classList.add("im-refused");
    this.page.status.textContent = this.page.heard.textContent = error.message;
    if (this.page.run) this.page.fill(this.bare());
  }

  // ------------------------------------------------------------------------------------------- what is shown
  bare() {
    return this.source.get(bareOf(this.wanted));
  }

  draw(run, settings) {
    this.stop?.();
    const past = still() ? null : this.page.run;
    this.page.show(run, this.bare(), past);
    this.page.root.dataset.shown = keyOf(settings);
  }

  /** The run that is wanted. */
  show(run, settings) {
    this.settle();
    this.page.controls.set(settings, totals(run).left / run.bare_tokens);
    this.draw(run, settings);
    this.tell();
    this.prepare(settings);
  }

  tell() {
    const { run, status, heard } = this.page;
    status.textContent = [sameAnswer(run, this.bare()), run.note].filter(Boolean).join(" ");
    heard.textContent = runSentence(run, this.bare());
  }

  /** Ask for a run that nobody waits for. */
  async askQuietly(settings) {
    if (this.source.get(settings)) return;
    while (this.busy) await pause(50);
    if (this.closed) return;
    await this.source.ask(settings, true).catch(() => null);
    if (!this.page.run || this.refused || this.busy || this.closed) return;
    this.page.answer.fill(this.page.run, this.bare());
    this.tell();
  }

  /** Once somebody changes something: the neighbours of the budget and the bare run, while nothing else is to do. */
  async prepare(settings) {
    if (!this.touched || !this.source.free) return;
    const { keeps } = this.source.catalog;
    const at = settings.schedule ? -1 : keeps.indexOf(settings.keep);
    const near = at < 0 ? [] : [at - 1, at + 1, at - 2, at + 2].filter((one) => one in keeps);
    const round = (this.round = {});
    for (const next of [bareOf(settings), ...near.map((one) => ({ ...settings, keep: keeps[one] }))]) {
      await pause(100);
      if (this.round !== round || this.busy || this.closed) return;
      await this.askQuietly(next);
    }
  }

  /** Watch it once from the picture to the answer; or stop watching. */
  play() {
    if (this.stop) return this.stop();
    this.looking.release();
    const { page } = this;
    const reach = (number) => {
      page.reached = number;
      page.draw();
    };
    const end = () => {
      this.stop = undefined;
      page.reached = undefined;
      page.controls.playing(false);
      page.draw();
    };
    page.controls.playing(true);
    const { overlay, run, view, photo, cards, answer } = page;
    this.stop = (still() ? unfold : play)({ overlay, run, view, photo, cards, answer: answer.node, reach, end });
  }

  /** Play once when the figure comes into sight, unless somebody wants no motion or is at work with it already. */
  playWhenSeen() {
    if (still()) return;
    const seen = new IntersectionObserver(
      ([{ isIntersecting }]) => {
        if (!isIntersecting || this.closed) return;
        seen.disconnect();
        if (!this.touched && !this.looking.active()) this.play();
      },
      { threshold: 0.5 },
    );
    seen.observe(this.page.root);
  }
}

const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

/** On a page with stored runs (`Machine.store` in Python says how they look). Returns the machine. */
export function mount(root, stored) {
  const machine = new Machine(root, new Stored(stored), stored.start);
  machine.playWhenSeen();
  lightTerms(machine.page.root);
  return machine;
}

/** In a notebook, for anywidget. */
export function render({ model, el }) {
  const source = new Live(model);
  const [start, shown, answer] = ["start", "shown", "answer"].map((name) => model.get(name));
  if (answer.run) source.put(answer.settings, answer.run);
  const root = element("div", {});
  el.append(root);
  const machine = new Machine(root, source, shown);
  machine.start = start;
  source.told = (settings) => machine.want(settings);
  return () => {
    machine.close();
    source.close();
  };
}

export default { render, mount, placeColor };
