// What can be chosen: picture, question, method, budget.

import { element, percent } from "./dom.js";
import { marker } from "./marker.js";

let group = 0; // names of radio buttons, apart for several machines on a page

/** Radio buttons in a frame with a name; `look(option)` is what stands on the label. */
function radios(name, options, look, chosen) {
  const shared = `im-${name}-${++group}`;
  const buttons = options.map((option, value) => {
    const input = element("input", { type: "radio", name: shared, value });
    input.onchange = () => chosen(value);
    return { input, label: element("label", { title: option.about }, input, ...look(option)) };
  });
  const node = element(
    "fieldset",
    { class: `im-${name}s` },
    element("legend", { text: name }),
    ...buttons.map(({ label }) => label),
  );
  return { node, set: (value) => buttons.forEach(({ input }, i) => (input.checked = i === value)) };
}

/** All controls. `act`: { change(settings that change), play(), reset() }. */
export class Controls {
  constructor({ catalog, free }, act) {
    Object.assign(this, { catalog, act });
    const { pictures, methods, keeps } = catalog;
    const thumb = ({ name, views }) => {
      const image = element("img", { src: views[0].picture, alt: name });
      return views.length > 1 ? [image, element("span", { text: `${views.length}` })] : [image];
    };
    this.picture = radios("picture", pictures, thumb, (picture) =>
      act.change({ picture, question: pictures[picture].questions[0] }),
    );
    this.picture.node.hidden = pictures.length < 2;
    const chip = ({ label, marker: shape, color }) => [marker(shape, color), element("span", { text: label })];
    this.method = radios("method", methods, chip, (number) => act.change({ method: methods[number].label }));
    this.makeQuestion(free);
    this.keep = element("input", { type: "range", class: "im-budget", min: 0, max: keeps.length - 1, step: 1 });
    this.keep.setAttribute("aria-label", "keep: share of the tokens that the last LLM layer sees");
    this.keep.oninput = () => act.change({ keep: keeps[Number(this.keep.value)] });
    this.kept = element("b", { class: "im-kept" });
    this.play = element("button", { type: "button", class: "im-play", onclick: act.play });
    this.playing(false);
    this.reset = element("button", { type: "button", text: "Reset", onclick: act.reset });
    this.node = element(
      "div",
      { class: "im-controls" },
      this.picture.node,
      this.question.node,
      this.method.node,
      element("div", { class: "im-line" }, element("span", { class: "im-tag", text: "keep" }), this.keep, this.kept),
      element("div", { class: "im-line" }, this.play, this.reset),
    );
  }

  playing(now) {
    this.play.textContent = now ? "■ Stop" : "▶ Watch it flow";
  }

  makeQuestion(free) {
    const list = element("datalist", { id: `im-questions-${++group}` });
    const field = free
      ? element("input", { type: "text", list: list.id, spellcheck: "false", autocomplete: "off" })
      : element("select", {});
    field.setAttribute("aria-label", "question");
    const ask = () => {
      const question = field.value.trim();
      if (question && question !== this.asked) this.act.change({ question });
    };
    field.onchange = ask;
    field.onkeydown = ({ key }) => {
      if (key === "Enter") ask();
    };
    const node = element("label", { class: "im-line" }, element("span", { class: "im-tag", text: "question" }), field);
    if (free) node.append(list);
    const set = (questions, question) => {
      this.asked = question;
      const options = questions.map((text) => element("option", { value: text, text: free ? undefined : text }));
      (free ? list : field).replaceChildren(...options);
      if (document.activeElement !== field || !free) field.value = question;
    };
    this.question = { node, set };
  }

  /** Show settings; `left`: share of the tokens that are left at the end, where the schedule is the user's own. */
  set({ picture, question, method, keep, schedule }, left) {
    const { pictures, methods, keeps } = this.catalog;
    this.picture.set(picture);
    this.question.set(pictures[picture].questions, question);
    this.method.set(methods.findIndex(({ label }) => label === method));
    const share = schedule ? left : keep;
    const nearest = keeps.reduce((best, one, i) => (Math.abs(one - share) < Math.abs(keeps[best] - share) ? i : best), 0);
    this.keep.value = nearest;
    this.kept.textContent = schedule ? `${percent(left)}, own schedule` : percent(keep);
    this.keep.setAttribute("aria-valuetext", this.kept.textContent);
    this.keep.style.setProperty("--fill", `${(100 * nearest) / Math.max(1, keeps.length - 1)}%`);
  }
}
