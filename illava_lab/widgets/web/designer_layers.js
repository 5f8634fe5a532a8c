// A column for each layer of a stage: a bar of the visual tokens that enter it, and a slider of what it keeps.

import { element, shape } from "./dom.js";
import { kept } from "./designer_rule.js";

const NARROW = 28; // pixels of a column, at least
const WIDE = 38; // of each, where both stages stand side by side
const GAP = 18; // between the stages
const STEPS = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -100, End: 100 };

/** `act`: { move(number of a slider, percent), done() }. */
export class Layers {
  constructor(catalog, act) {
    Object.assign(this, { catalog, act, columns: { encoder: [], llm: [] } });
    const number = new Map(catalog.places.map(([stage, layer], at) => [`${stage} ${layer}`, at]));
    const stages = ["encoder", "llm"].map((stage) => {
      for (let layer = 0; layer < catalog.depth[stage]; layer++) {
        this.columns[stage].push(this.column(stage, layer, number.get(`${stage} ${layer}`)));
      }
      const columns = element("div", { class: "im-columns" }, ...this.columns[stage].map(({ node }) => node));
      const name = element("legend", { text: catalog.names[stage] });
      return element("fieldset", { class: "im-half", "data-stage": stage }, name, columns);
    });
    this.node = element("div", { class: "im-stages" }, ...stages);
  }

  column(stage, layer, at) {
    const short = `${stage === "encoder" ? "E" : "L"}${layer}`;
    const bar = shape("rect", { class: "im-now", x: 0, width: 10 });
    const bare = shape("rect", { class: "im-all", x: 0, y: 0, width: 10, height: 100 });
    const drawing = shape("svg", { viewBox: "0 0 10 100", preserveAspectRatio: "none", "aria-hidden": "true" }, bare, bar);
    const count = element("span", { class: "im-entering" });
    const bars = element("div", { class: "im-bars" }, drawing, count);
    const slider = at === undefined ? null : this.slider(stage, layer, at);
    const percent = element("b", { class: "im-percent", text: slider ? "" : "–" });
    const node = element("div", { class: "im-column" }, bars, element("span", { class: "im-layer", text: short }));
    node.append(slider ?? element("span", { class: "im-none" }), percent);
    return { node, bar, count, slider, percent, at, short };
  }

  slider(stage, layer, at) {
    const name = `${this.catalog.names[stage]} layer ${layer}: percent kept`;
    const range = { type: "range", min: this.catalog.least, max: 100, step: 1 };
    const input = element("input", { ...range, class: "im-keeping", "aria-label": name, "aria-orientation": "vertical" });
    const refused = this.catalog.outcome?.refused[at];
    if (refused) input.title = refused;
    input.classList.toggle("im-cannot", Boolean(refused));
    input.oninput = () => this.act.move(at, Number(input.value));
    input.onchange = () => this.act.done();
    // Browsers do not agree about the keys of sliders that stand upright.
    input.onkeydown = (event) => {
      if (!(event.key in STEPS) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const before = Number(input.value);
      input.value = before + STEPS[event.key];
      if (Number(input.value) === before) return;
      this.act.move(at, Number(input.value));
      this.act.done();
    };
    return input;
  }

  /** Show what each slider keeps, and the tokens that enter each layer. */
  show(values, tokens) {
    const { patches, least } = this.catalog;
    for (const [stage, columns] of Object.entries(this.columns)) {
      let before = stage === "encoder" ? patches : tokens.encoder.at(-1);
      columns.forEach(({ node, bar, count, slider, percent, at, short }, layer) => {
        const entering = tokens[stage][layer];
        const height = (100 * entering) / patches;
        bar.setAttribute("y", 100 - height);
        bar.setAttribute("height", height);
        // Each number once: where it begins.
        const first = layer === 0 || entering !== tokens[stage][layer - 1];
        count.textContent = first ? entering : "";
        const inside = height > 82; // no room above the bar
        count.style.bottom = `${inside ? height - 18 : height}%`;
        count.classList.toggle("im-inside", inside);
        node.title = `${entering} visual tokens enter ${short}`;
        if (slider) {
          const value = values[at];
          const found = stage === "encoder" ? entering : before;
          slider.value = value;
          slider.style.setProperty("--fill", `${(100 * (value - least)) / (100 - least)}%`);
          slider.setAttribute("aria-valuetext", `${value} %: ${kept(value, found)} of ${found} tokens stay`);
          percent.textContent = value;
          node.classList.toggle("im-cut", value < 100);
        }
        before = entering;
      });
    }
  }

  /** Side by side where there is room; else each stage in rows of the same length. */
  fit(width) {
    const depths = Object.values(this.catalog.depth);
    const beside = depths.reduce((all, depth) => all + depth * WIDE, GAP) <= width;
    this.node.classList.toggle("im-beside", beside);
    [...this.node.children].forEach((stage, number) => {
      const rows = beside ? 1 : Math.ceil(depths[number] / Math.max(1, Math.floor(width / NARROW)));
      stage.style.setProperty("--columns", Math.ceil(depths[number] / rows));
    });
  }
}
