// The places of the model in a row: a card for each, with its map, its count, its handle and its bars.

import { element, percent } from "./dom.js";
import { drawMap } from "./map.js";
import { STAGES, bytes, many, placeName } from "./words.js";

const DEEP = 12; // layers of a stage; of more, those where nothing happens share a card

/** Which places have a card: [first, last] of each. */
export function placesOf({ layers: { stage }, states }, every) {
  const depth = (name) => stage.filter((one) => one === name).length;
  const places = [];
  stage.forEach((name, at) => {
    if (name === "head") return;
    const before = places.at(-1);
    const quiet = at > 0 && stage[at - 1] === name && !states[at].move;
    const shared = name === "unused" || (!every && depth(name) > DEEP);
    if (before && quiet && shared) before[1] = at;
    else places.push([at, at]);
  });
  return places;
}

/** A card of one place, or of several where nothing happens. `act`: { keep(at, count), kept(), looking() -> Looking }. */
export class Card {
  constructor(run, [first, last], act) {
    Object.assign(this, { first, last, act });
    const stage = run.layers.stage[first];
    const name = placeName(run, first) + (last > first ? `–${run.layers.layer[last]}` : "");
    this.long = placeName(run, first, true) + (last > first ? ` to ${run.layers.layer[last]}` : "");
    this.map = element("canvas", { class: "im-map", tabindex: -1, role: "application" });
    this.map.setAttribute("aria-roledescription", "map of tokens");
    this.count = element("b", {});
    this.lost = element("span", { class: "im-lost" });
    this.keep = this.makeKeep(run, first);
    this.flops = meter("FLOPs");
    this.cache = stage === "llm" ? meter("cache") : null;
    this.node = element(
      "li",
      { class: "im-card", "data-stage": stage, "data-at": first },
      element("div", { class: "im-name", text: name }),
      this.map,
      element("div", { class: "im-count" }, this.count, this.lost),
      this.keep ?? element("div", { class: "im-nokeep", text: stage === "unused" ? "not used" : "" }),
      this.flops.node,
      this.cache?.node,
    );
    this.listen();
  }

  makeKeep(run, at) {
    if (run.layers.least[at] >= 1) return null;
    const keep = element("input", { type: "range", class: "im-keep", min: 1, max: run.patches, step: 1 });
    keep.setAttribute("aria-label", `Tokens kept at ${this.long}`);
    keep.oninput = () => this.act.keep(at, Number(keep.value));
    keep.onchange = () => this.act.kept();
    return keep;
  }

  listen() {
    const patch = (event) => {
      const box = this.map.getBoundingClientRect();
      return this.cells?.hit(event.clientX - box.left, event.clientY - box.top) ?? -1;
    };
    const looking = this.act.looking;
    this.map.onpointermove = (event) => {
      if (event.pointerType !== "touch") looking().over(this.first, patch(event));
    };
    this.map.onpointerleave = () => looking().out();
    this.map.onclick = (event) => looking().follow(this.first, patch(event));
    this.map.onfocus = () => looking().enter(this.first, this.map);
    this.map.onblur = () => looking().out();
    this.map.onkeydown = (event) => looking().key(event, this.first);
  }

  /** The numbers of a run; `counts` where they are a forecast. */
  fill(run, counts = null) {
    const at = this.first;
    const { anchor, melted, fallen } = run.states[at];
    const tokens = counts ? counts[at] : anchor.length;
    const entered = counts ? (at ? counts[at - 1] : run.patches) : at ? run.states[at - 1].anchor.length : run.patches;
    this.count.textContent = tokens;
    this.lost.textContent = tokens < entered ? `−${entered - tokens}` : "";
    this.lost.title = counts ? "" : [melted && `${melted} melted`, fallen && `${fallen} fell`].filter(Boolean).join(", ");
    this.node.classList.toggle("im-changes", tokens < entered);
    if (this.keep) {
      this.keep.max = run.patches;
      this.keep.value = tokens;
      const least = Math.max(1, Math.ceil(entered * run.layers.least[at]));
      Object.assign(this, { entered, least });
      this.keep.style.setProperty("--fill", `${(100 * (tokens - 1)) / Math.max(1, run.patches - 1)}%`);
      this.keep.style.setProperty("--room", `${(100 * (entered - 1)) / Math.max(1, run.patches - 1)}%`);
      this.keep.setAttribute("aria-valuetext", `${tokens} of the ${entered} that enter`);
    }
    if (counts) return;
    const span = [...Array(this.last - at + 1).keys()].map((i) => at + i);
    const total = (name) => span.reduce((all, place) => all + run.layers[name][place], 0);
    const most = Math.max(...run.layers.bare, ...run.layers.flops) * span.length;
    this.flops.fill(total("flops") / most, total("bare") / most, percent(total("flops") / 100, 1));
    this.cache?.fill(total("cache") / (run.bare_cache * span.length), 1, bytes(total("cache")));
    const lost = [melted && `${many(melted, "token")} melted`, fallen && `${many(fallen, "token")} fell`];
    const words = [`After ${this.long}: ${many(tokens, "token")}`, ...lost.filter(Boolean)];
    this.map.setAttribute("aria-label", `${words.join(", ")}. Arrow keys go from token to token.`);
  }

  draw(shown) {
    this.cells = shown.cells;
    const past = shown.past && { ...shown.past, at: this.first };
    drawMap(this.map, { ...shown, past, at: this.first });
  }
}

/** A thin bar with its name and number; the outline is what it would be without reduction. */
function meter(name) {
  const [bar, whole] = [element("i", {}), element("s", {})];
  const number = element("span", { class: "im-number" });
  const label = element("div", { class: "im-label" }, element("span", { text: name }), number);
  const node = element("div", { class: `im-meter im-${name.toLowerCase()}` }, label, element("div", { class: "im-bar" }, whole, bar));
  const fill = (share, bare, text) => {
    bar.style.width = `${Math.min(100, 100 * share)}%`;
    whole.style.width = `${Math.min(100, 100 * bare)}%`;
    number.textContent = text;
  };
  return { node, fill };
}

function hint(stage, cards) {
  if (stage === "llm") return "point at a square to see where it comes from";
  return cards.some(({ keep }) => keep) ? "drag a handle to keep fewer tokens there" : "";
}

/** The cards of a run in two rows of the model, and at the end of the second the answer. */
export function layOut(run, every, act, answer) {
  const cards = placesOf(run, every).map((place) => new Card(run, place, act));
  const behind = cards.findIndex(({ node }) => node.dataset.stage === "projector");
  const row = (stage, own, ...more) =>
    element(
      "section",
      { class: "im-row", "data-stage": stage, "aria-label": STAGES[stage] },
      element("div", { class: "im-stage" }, STAGES[stage], element("span", { text: hint(stage, own) })),
      element("ol", { class: "im-places" }, ...own.map(({ node }) => node), ...more),
    );
  return { cards, rows: [row("encoder", cards.slice(0, behind)), row("llm", cards.slice(behind), answer)] };
}

/** The patch of the token nearest to a patch in a direction ("ArrowLeft", ...), in the same view; itself if none is. */
export function nextToken(run, at, patch, view, key) {
  const [, columns] = run.views[view].grid;
  const [from, count] = [run.first[view], run.views[view].grid[0] * columns];
  const tokens = [...run.states[at].anchor].filter((one) => one >= from && one < from + count);
  if (!tokens.length) return patch;
  if (key === "Home") return Math.min(...tokens);
  if (key === "End") return Math.max(...tokens);
  const place = (one) => [Math.floor((one - from) / columns), (one - from) % columns];
  const [row, column] = place(patch);
  const ahead = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
  const cost = (one) => {
    const [down, right] = [place(one)[0] - row, place(one)[1] - column];
    const along = down * ahead[0] + right * ahead[1];
    const aside = Math.abs(down * ahead[1]) + Math.abs(right * ahead[0]);
    return along > 0 ? along + 3 * aside : Infinity;
  };
  const best = tokens.reduce((a, b) => (cost(b) < cost(a) ? b : a));
  return cost(best) < Infinity ? best : patch;
}

