// The schedule designer: a slider for each layer, what that costs, and what is left of a picture and its answer.

import { costBars, costLegend } from "./designer_costs.js";
import { Layers } from "./designer_layers.js";
import { forecastOf, sentence, written } from "./designer_rule.js";
import { element } from "./dom.js";
import { followTheme } from "./theme.js";

const OWN = "your own";
const ABOUT =
  "Bars: visual tokens that enter each layer. Sliders: percent of them that the layer keeps. " +
  "An encoder layer reduces inside itself, so the next bar is lower; an LLM layer reduces before it, so its own bar is.";

/** `source`: { catalog, start(), shown, answers: [{ values, words, panels }], live: whether a kernel answers, send(values) }. */
export class Designer {
  constructor(root, source) {
    Object.assign(this, { root, source, catalog: source.catalog, values: [...source.shown], answers: new Map() });
    source.answers.forEach((answer) => this.answers.set(answer.values.join(), answer));
    const { presets, names } = this.catalog;
    this.own = element("option", { value: -1, text: OWN, disabled: true });
    const options = presets.map(({ name }, value) => element("option", { value, text: name }));
    this.preset = element("select", { "aria-label": "start from" }, ...options, this.own);
    this.preset.onchange = () => this.go(presets[this.preset.value].values);
    const reset = element("button", { type: "button", text: "Reset", onclick: () => this.go(source.start()) });
    const tag = element("span", { class: "im-tag", text: "start from" });
    this.layers = new Layers(this.catalog, {
      move: (number, percent) => {
        this.values[number] = percent;
        this.show();
      },
      done: () => source.send([...this.values]),
    });
    this.costs = element("div", {});
    this.said = element("p", { class: "im-figure", role: "status" });
    this.code = element("code", {});
    this.makeOutcome();
    root.classList.add("im", "im-designer");
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Schedule designer: what each layer keeps, what that costs, and what is answered");
    root.replaceChildren(
      element("div", { class: "im-line" }, element("label", { class: "im-line" }, tag, this.preset), reset),
      this.layers.node,
      element("p", { class: "im-about", text: ABOUT }),
      element("div", {}, costLegend(names), this.costs),
      element("div", {}, this.said, this.code),
      this.outcome,
      this.stored,
    );
    this.show();
    this.unwatch = followTheme(root, () => this.fit());
  }

  close() {
    this.unwatch();
  }

  /** All sliders at once. */
  go(values) {
    this.values = [...values];
    this.source.send([...values]);
    this.show();
  }

  show() {
    const { catalog, values } = this;
    this.plan = forecastOf(catalog, values);
    this.layers.show(values, this.plan.tokens);
    this.said.textContent = `${sentence(catalog, this.plan)}. Scoring and merging are left out.`;
    this.code.textContent = written(catalog, values);
    const key = values.join();
    // Two presets can be the same in whole percents: the chosen one stays.
    const same = catalog.presets.flatMap((preset, number) => (preset.values.join() === key ? [number] : []));
    const chosen = same.includes(Number(this.preset.value)) ? this.preset.value : (same[0] ?? -1);
    this.own.hidden = same.length > 0;
    this.preset.value = chosen;
    this.drawCosts();
    this.showOutcome();
  }

  fit() {
    const width = this.layers.node.clientWidth;
    if (!width || width === this.fitted) return;
    this.fitted = width;
    this.layers.fit(width);
    this.drawCosts();
  }

  drawCosts() {
    const width = this.fitted;
    if (!width) return;
    const { flops, time } = this.plan;
    const rows = time ? [["FLOPs", flops], ["time", time]] : [["FLOPs", flops]];
    this.costs.replaceChildren(costBars(rows, this.catalog.names, width));
  }

  // ------------------------------------------------------------------------------------------- picture and answer
  makeOutcome() {
    this.title = element("p", { class: "im-title", role: "status" });
    this.pictures = element("div", { class: "im-panels" });
    this.outcome = element("div", { class: "im-outcome" }, this.title, this.pictures);
    this.stored = element("div", { class: "im-stored" });
    this.outcome.hidden = !this.catalog.outcome;
    this.stored.hidden = this.outcome.hidden || this.source.live;
    this.chips = [];
    if (!this.stored.hidden) this.makeStored();
  }

  /** Buttons for single layers that were computed before; the presets are in the list above. */
  makeStored() {
    const { places, names, presets } = this.catalog;
    const rows = new Map();
    for (const { values } of this.answers.values()) {
      const cut = values.flatMap((percent, number) => (percent < 100 ? [number] : []));
      if (cut.length !== 1 || presets.some((preset) => preset.values.join() === values.join())) continue;
      rows.set(cut[0], [...(rows.get(cut[0]) ?? []), values]);
    }
    const lines = [...rows].map(([number, stored]) => {
      const [stage, layer] = places[number];
      const name = `${names[stage]} layer ${layer}`;
      const short = `${stage === "encoder" ? "E" : "L"}${layer}`;
      const chips = stored.map((values) => {
        const text = `${values[number]} %`;
        const button = element("button", { type: "button", text, "aria-label": `${name} alone: ${text}`, onclick: () => this.go(values) });
        this.chips.push([values.join(), button]);
        return button;
      });
      return element("div", { class: "im-alone" }, element("span", { class: "im-tag", text: short }), ...chips);
    });
    const kept = presets.filter(({ values }) => this.answers.has(values.join())).length;
    const all = kept === presets.length ? "all settings" : `${kept} of the ${presets.length} settings`;
    const alone = lines.length ? ", and for one layer alone:" : ".";
    const words = `On this page, picture and answer are stored for ${all} under “start from”${alone}`;
    this.stored.append(element("p", { class: "im-about", text: words }), ...lines);
  }

  /** The kernel has answered. */
  hear(answer) {
    if (!answer.values) return;
    if (answer.panels) this.answers.set(answer.values.join(), answer);
    this.latest = answer;
    this.showOutcome();
  }

  showOutcome() {
    const { outcome, places } = this.catalog;
    if (!outcome) return;
    const key = this.values.join();
    this.chips.forEach(([own, button]) => button.setAttribute("aria-pressed", own === key));
    const at = places.findIndex((_, number) => this.values[number] < 100 && outcome.refused[number]);
    const failed = this.latest?.values.join() === key && this.latest.error;
    const answer = this.answers.get(key);
    const waits = !answer && at < 0 && !failed && this.source.live;
    this.outcome.classList.toggle("im-pale", waits);
    this.outcome.setAttribute("aria-busy", waits);
    if (waits) return; // what was there before stays, pale
    this.title.classList.toggle("im-why", !answer);
    if (answer) {
      this.title.textContent = answer.words;
      this.fill([outcome.seen, ...answer.panels]);
      return;
    }
    const why = at < 0 ? failed : outcome.refused[at];
    this.title.textContent = why
      ? `${outcome.method} cannot do that: ${why}`
      : "Picture and answer of this schedule were not computed for this page. In a notebook, they follow every move.";
    this.fill([]);
  }

  /** Pictures below their titles. Those that stay the same stay in their place. */
  fill(panels) {
    const nodes = [...this.pictures.children];
    nodes.slice(panels.length).forEach((node) => node.remove());
    panels.forEach(({ title, address }, number) => {
      const node = nodes[number] ?? element("figure", {}, element("figcaption", {}), element("img", {}));
      const [caption, image] = node.children;
      caption.textContent = image.alt = title;
      if (image.getAttribute("src") !== address) image.src = address;
      if (!nodes[number]) this.pictures.append(node);
    });
  }
}

/** On a page with what `ScheduleDesigner.store` gives. Returns the designer. */
export function mount(root, { catalog, start, answers, images }) {
  const whole = answers.map((answer) => ({
    ...answer,
    panels: answer.panels.map(({ title, image }) => ({ title, address: images[image] })),
  }));
  return new Designer(root, { catalog, start: () => start, shown: start, answers: whole, live: false, send: () => null });
}

/** In a notebook, for anywidget: the kernel hears where the sliders were let go, and asks the model. */
export function render({ model, el }) {
  const root = element("div", {});
  el.append(root);
  const send = (values) => {
    model.set("shown", values);
    model.save_changes();
  };
  const [catalog, shown] = ["catalog", "shown"].map((name) => model.get(name));
  const start = () => model.get("start");
  const designer = new Designer(root, { catalog, start, shown, answers: [], live: true, send });
  const told = () => {
    designer.values = [...model.get("shown")];
    designer.show();
  };
  const heard = () => designer.hear(model.get("answer"));
  heard();
  model.on("change:shown", told);
  model.on("change:answer", heard);
  return () => {
    model.off("change:shown", told);
    model.off("change:answer", heard);
    designer.close();
  };
}

export default { render, mount };
