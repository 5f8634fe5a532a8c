// Who is looked at: the token under the pointer or the cursor, and the one that is followed.

import { nextToken } from "./cards.js";
import { tokenSentence } from "./words.js";

/** `page`: { run, view, cards, say(text, followed), draw() }. */
export class Looking {
  constructor(page) {
    this.page = page;
    this.forget();
  }

  forget() {
    Object.assign(this, { hover: null, pinned: null, chosen: undefined, cursor: null });
  }

  /** The place whose tokens the photograph shows: where somebody looks, else the last LLM layer. */
  place() {
    return (this.hover ?? this.pinned)?.at ?? this.chosen ?? this.last();
  }

  last() {
    return this.page.run.layers.stage.lastIndexOf("llm");
  }

  /** { at, patch that was pointed at, token that it is in (-1 where it has fallen) }, or null. */
  active() {
    const { at, patch } = this.hover ?? this.pinned ?? {};
    return at === undefined ? null : { at, patch, token: this.page.run.states[at].owner[patch] };
  }

  over(at, patch) {
    if (patch < 0) return this.out();
    if (this.hover?.at === at && this.hover.patch === patch) return;
    this.hover = { at, patch };
    this.tell();
  }

  out() {
    if (!this.hover) return;
    this.hover = null;
    this.tell();
  }

  /** Keep following a token, or let go of it. */
  follow(at, patch) {
    if (patch < 0) return;
    const again = this.pinned?.at === at && this.pinned.patch === patch;
    this.pinned = again ? null : { at, patch };
    this.chosen = again ? undefined : at;
    this.hover = null;
    this.tell();
  }

  release() {
    Object.assign(this, { hover: null, pinned: null, chosen: undefined });
    this.tell();
  }

  tell() {
    const active = this.active();
    this.page.say(active ? tokenSentence(this.page.run, active) : "", Boolean(this.pinned));
    this.page.draw();
  }

  // ------------------------------------------------------------------------------------------- by keyboard
  /** One map at a time is in the tab order: the one with the cursor, at first that of the last layer. */
  roam() {
    const at = this.cursor?.at ?? this.last();
    const { cards } = this.page;
    const card = cards.find(({ first, last }) => first <= at && at <= last) ?? cards[0];
    cards.forEach((one) => (one.map.tabIndex = one === card ? 0 : -1));
  }

  /** The first token of the view that is shown. */
  home(at) {
    return nextToken(this.page.run, at, this.page.run.first[this.page.view], this.page.view, "Home");
  }

  /** A map has got the focus. */
  enter(at, map) {
    this.cursor = { at, patch: this.cursor?.patch ?? this.home(at) };
    this.roam();
    if (map.matches(":focus-visible")) this.over(at, this.cursor.patch);
  }

  /** A key on the map of a place. */
  key(event, at) {
    const { run, view, cards } = this.page;
    const patch = this.cursor?.patch ?? this.home(at);
    if (event.key === "PageUp" || event.key === "PageDown") {
      const number = cards.findIndex(({ first }) => first === at) + (event.key === "PageUp" ? -1 : 1);
      if (cards[number]) this.move(cards[number].first, patch, cards[number].map);
    } else if (/^(Arrow|Home$|End$)/.test(event.key)) {
      this.move(at, nextToken(run, at, patch, view, event.key));
    } else if (event.key === "Enter" || event.key === " ") {
      this.follow(at, patch);
    } else if (event.key === "Escape") {
      this.release();
    } else return;
    event.preventDefault();
  }

  move(at, patch, map) {
    this.cursor = { at, patch };
    this.roam();
    map?.focus();
    this.hover = null;
    this.over(at, patch);
  }
}
