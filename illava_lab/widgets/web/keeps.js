// The keep slider: what is left of a picture, and what is answered, at each of several budgets.

import { element, percent } from "./dom.js";
import { followTheme } from "./theme.js";

const NAME = "keep: share of the tokens that the last LLM layer sees";

export class Keeps {
  /** `moved(position)` is told where the slider was moved to. */
  constructor(root, catalog, at, moved) {
    Object.assign(this, { catalog, at });
    const last = catalog.positions.length - 1;
    this.slider = element("input", { type: "range", class: "im-budget", min: 0, max: last, step: 1, "aria-label": NAME });
    this.slider.oninput = () => {
      this.show(Number(this.slider.value));
      moved(this.at);
    };
    this.kept = element("b", { class: "im-kept" });
    this.said = element("p", { class: "im-title", role: "status" });
    this.panels = [catalog.seen, ...catalog.positions[at].panels].map(panel);
    const line = element("label", { class: "im-line" }, element("span", { class: "im-tag", text: "keep" }), this.slider, this.kept);
    root.classList.add("im", "im-keeps");
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Keep slider");
    const pictures = element("div", { class: "im-panels" }, ...this.panels.map(({ node }) => node));
    root.replaceChildren(line, this.said, pictures);
    this.close = followTheme(root, () => null);
    this.show(at);
  }

  show(at) {
    this.at = at;
    const { question, method, seen, positions } = this.catalog;
    const { keep, answer, odds, panels } = positions[at];
    this.slider.value = at;
    this.slider.style.setProperty("--fill", `${(100 * at) / Math.max(1, positions.length - 1)}%`);
    this.kept.textContent = percent(keep);
    this.slider.setAttribute("aria-valuetext", this.kept.textContent);
    const sure = odds === null ? "" : ` (${percent(odds, odds > 0.995 ? 0 : 1)} sure of its first word)`;
    this.said.textContent = `${question} → “${answer}”${sure}, ${method}`;
    [seen, ...panels].forEach((one, number) => this.panels[number].fill(one));
  }
}

/** A picture below its title; filled anew it stays in its place. */
function panel() {
  const [caption, image] = [element("figcaption", {}), element("img", {})];
  const fill = ({ title, address }) => {
    caption.textContent = image.alt = title;
    image.src = address;
  };
  return { node: element("figure", {}, caption, image), fill };
}

/** On a page with what `KeepSlider.store` gives. */
export function mount(root, { catalog, at }) {
  return new Keeps(root, catalog, at, () => null);
}

/** In a notebook, for anywidget. */
export function render({ model, el }) {
  const root = element("div", {});
  el.append(root);
  const keeps = new Keeps(root, model.get("catalog"), model.get("at"), (at) => {
    model.set("at", at);
    model.save_changes();
  });
  const told = () => keeps.show(model.get("at"));
  model.on("change:at", told);
  return () => {
    model.off("change:at", told);
    keeps.close();
  };
}

export default { render, mount };
