// The trade-off explorer: methods and kinds of question are ticked, a point is chosen, and one sees what it loses.

import { element, percent } from "./dom.js";
import { firstLost, lostCards } from "./lost.js";
import { marker } from "./marker.js";
import { plot } from "./plot.js";
import { followTheme } from "./theme.js";

const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const points = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)}`;

/** Check boxes in a frame with a name, and buttons for all and none of them. `look(option)`: what stands beside a box. */
function boxes(name, options, look, changed) {
  const inputs = options.map(() => element("input", { type: "checkbox", onchange: () => changed(ticked()) }));
  const ticked = () => [...inputs.keys()].filter((number) => inputs[number].checked);
  const all = (checked) => {
    inputs.forEach((input) => (input.checked = checked));
    changed(ticked());
  };
  const labels = options.map((option, number) => element("label", {}, inputs[number], ...look(option)));
  const buttons = [["all", true], ["none", false]].map(([text, checked]) =>
    element("button", { type: "button", text, "aria-label": `${text}: ${name}`, onclick: () => all(checked) }),
  );
  const node = element("fieldset", {}, element("legend", { text: name }), ...labels, ...buttons);
  return { node, set: (numbers) => inputs.forEach((input, number) => (input.checked = numbers.includes(number))) };
}

/** `source`: { catalog, start, shown, intervals() -> { "0,1": [[low, high] of each point] }, send(shown) }. */
export class Tradeoff {
  constructor(root, source) {
    Object.assign(this, { root, source, catalog: source.catalog, shown: source.shown });
    const { methods, categories } = this.catalog;
    const withMarker = ({ label, marker: name, color }) => [marker(name, color), element("span", { text: label })];
    const words = ({ name }) => [element("span", { text: name })];
    this.methods = boxes("methods", methods, withMarker, (numbers) => this.want({ methods: numbers }));
    this.categories = boxes("kinds of question", categories, words, (numbers) => this.want({ categories: numbers }));
    this.point = element("select", { "aria-label": "point", onchange: () => this.want({ point: Number(this.point.value) }) });
    this.figure = element("div", { class: "im-drawn" });
    this.tip = element("div", { class: "im-tip", "aria-hidden": "true" });
    this.said = element("p", { class: "im-figure" });
    this.title = element("p", { class: "im-title", role: "status" });
    this.lost = element("ul", { class: "im-lostlist" });
    const reset = element("button", { type: "button", text: "Reset", onclick: () => this.want(source.start) });
    root.classList.add("im", "im-tradeoff");
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Trade-off explorer: accuracy against cost, and the questions that are lost");
    root.replaceChildren(
      this.methods.node,
      this.categories.node,
      this.figure,
      element("label", { class: "im-line" }, element("span", { class: "im-tag", text: "point" }), this.point, reset),
      this.said,
      this.title,
      this.lost,
    );
    this.unwatch = followTheme(root, () => this.draw());
    this.show();
  }

  close() {
    this.unwatch();
  }

  /** Something was ticked or chosen. The chosen point is one that is seen. */
  want(part) {
    const shown = { ...this.shown, ...part };
    const seen = this.catalog.points.flatMap(({ method }, number) => (shown.methods.includes(method) ? [number] : []));
    if (!seen.includes(shown.point) && seen.length) [shown.point] = seen.slice(-1);
    this.shown = shown;
    this.source.send(shown);
    this.show();
  }

  // ------------------------------------------------------------------------------------------- what is shown
  /** What holds of a point within the chosen kinds: shares that are right, and the interval of its difference. */
  numbers(number) {
    const { points: all, bare, categories } = this.catalog;
    const chosen = this.shown.categories;
    const count = sum(chosen.map((one) => categories[one].count));
    const share = (right) => sum(chosen.map((one) => right[one])) / count;
    const [low, high] = this.source.intervals()[chosen.join()]?.[number] ?? [];
    return { right: share(all[number].right), bare: share(bare), low, high };
  }

  show() {
    const { methods, categories, point } = this.shown;
    const { points: all } = this.catalog;
    this.methods.set(methods);
    this.categories.set(categories);
    const seen = all.flatMap((one, number) => (methods.includes(one.method) ? [[one.name, number]] : []));
    this.point.replaceChildren(...seen.map(([text, value]) => element("option", { value, text })));
    this.point.disabled = !seen.length;
    if (seen.length) this.point.value = point;
    this.draw();
    this.tell();
  }

  /** Why there is nothing to see, or nothing. */
  nothing() {
    if (!this.shown.categories.length) return "Tick at least one kind of question.";
    return this.shown.methods.length ? "" : "Tick at least one method.";
  }

  draw() {
    const width = Math.min(860, this.figure.clientWidth);
    if (!width || !this.shown.categories.length) return this.figure.replaceChildren();
    const { methods, points: all } = this.catalog;
    const drawn = all.map(({ name, method, x }, number) => {
      const { right, bare, low, high } = this.numbers(number);
      const bar = low === undefined ? {} : { low: 100 * (bare + low), high: 100 * (bare + high) };
      return { number, name, method, x, y: 100 * right, hidden: !this.shown.methods.includes(method), ...bar };
    });
    const chosen = this.nothing() ? -1 : this.shown.point;
    const bare = 100 * this.numbers(0).bare;
    const label = `Accuracy against cost. The bare model: ${bare.toFixed(1)} % right. ${drawn
      .filter(({ hidden }) => !hidden)
      .map(({ name, x, y }) => `${name}: ${y.toFixed(1)} % at ${x.toFixed(0)} % of the FLOPs`)
      .join("; ")}.`;
    const act = { choose: (number) => this.want({ point: number }), point: (number, at) => this.pointAt(number, at) };
    this.figure.replaceChildren(plot({ points: drawn, methods, bare, chosen, width, label }, act), this.tip);
    return this.pointAt(-1);
  }

  pointAt(number, at) {
    this.tip.hidden = number < 0;
    if (number < 0) return;
    const { name, x } = this.catalog.points[number];
    this.tip.textContent = `${name}: ${percent(this.numbers(number).right, 1)} at ${x.toFixed(0)} % of the FLOPs`;
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(at[0] - wide / 2, this.figure.clientWidth - wide))}px`;
    this.tip.style.top = `${at[1] - this.tip.offsetHeight - 14}px`;
  }

  tell() {
    const why = this.nothing();
    this.said.textContent = "";
    this.title.textContent = why;
    this.lost.replaceChildren();
    if (why) return;
    const { categories, point } = this.shown;
    const { name, lost, count } = this.catalog.points[point];
    const { right, bare, low, high } = this.numbers(point);
    const interval = low === undefined ? "" : ` (95 % interval ${points(low)} to ${points(high)}, paired)`;
    this.said.textContent =
      `${name}: ${percent(right, 1)} right, the bare model ${percent(bare, 1)}: ` +
      `${points(right - bare)} points${interval}. Bars in the plot are these intervals.`;
    const all = sum(categories.map((one) => count[one]));
    const names = categories.map((one) => this.catalog.categories[one].name).join(", ");
    const where = categories.length === this.catalog.categories.length ? "" : ` in ${names}`;
    const shown = firstLost(lost, categories);
    const more = all > shown.length ? `, ${shown.length} shown` : "";
    this.title.textContent = `${all} question${all === 1 ? "" : "s"} lost${where} that the bare model answers${more}`;
    this.lost.replaceChildren(...lostCards(this.catalog, shown));
  }
}

/** On a page with what `TradeoffExplorer.store` gives. Returns the explorer. */
export function mount(root, { catalog, start, intervals }) {
  return new Tradeoff(root, { catalog, start, shown: start, intervals: () => intervals, send: () => null });
}

/** In a notebook, for anywidget: the kernel hears what is chosen, and computes intervals. */
export function render({ model, el }) {
  const root = element("div", {});
  el.append(root);
  const send = (shown) => {
    model.set("shown", shown);
    model.save_changes();
  };
  const [catalog, start, shown] = ["catalog", "start", "shown"].map((name) => model.get(name));
  const explorer = new Tradeoff(root, { catalog, start, shown, intervals: () => model.get("intervals"), send });
  const told = () => {
    explorer.shown = model.get("shown");
    explorer.show();
  };
  model.on("change:shown change:intervals", told);
  return () => {
    model.off("change:shown change:intervals", told);
    explorer.close();
  };
}

export default { render, mount };
