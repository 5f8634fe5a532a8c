// The end of the machine: the answer, and the words that were most probable.

import { element, percent } from "./dom.js";

const WORTH = 0.005; // a probability without reduction that is marked

export class Answer {
  constructor() {
    this.text = element("div", { class: "im-text" });
    this.steps = element("div", { class: "im-steps", role: "group", "aria-label": "Word of the answer" });
    this.words = element("ol", { class: "im-words", "aria-label": "Most probable words" });
    this.node = element(
      "li",
      { class: "im-card im-answer" },
      element("div", { class: "im-name", text: "answer" }),
      this.text,
      this.steps,
      this.words,
    );
    this.step = 0;
  }

  /** `bare`: the run without reduction, or undefined where it is not known. */
  fill(run, bare) {
    Object.assign(this, { run, bare });
    const steps = run.answer.words;
    const said = steps.length > 1 && steps.at(-1)[0][0].match(/^(<.*>|\[.*\])$/) ? steps.length - 1 : steps.length;
    this.step = Math.min(this.step, said - 1);
    this.text.textContent = `“${run.answer.text}”`;
    this.text.classList.toggle("im-long", run.answer.text.length > 24);
    this.text.classList.toggle("im-other", Boolean(bare) && bare.answer.text !== run.answer.text);
    this.steps.replaceChildren(...(said > 1 ? steps.slice(0, said).map((words, at) => this.button(words, at)) : []));
    const now = steps[this.step] ?? [];
    const before = new Map(bare?.answer.words[this.step] ?? []);
    this.words.replaceChildren(...now.map(([word, odds]) => this.row(word, odds, before)));
  }

  button(words, at) {
    const button = element("button", { type: "button", text: words[0][0], "aria-pressed": String(at === this.step) });
    button.onclick = () => {
      this.step = at;
      this.fill(this.run, this.bare);
    };
    return button;
  }

  row(word, odds, before) {
    const bar = element("i", {});
    bar.style.width = `${100 * odds}%`;
    const parts = [bar];
    if (before.get(word) >= WORTH) {
      const mark = element("s", { title: `without reduction ${percent(before.get(word), 1)}` });
      mark.style.left = `${100 * before.get(word)}%`;
      parts.push(mark);
    }
    return element(
      "li",
      {},
      element("span", { class: "im-word", text: word }),
      element("span", { class: "im-odds" }, ...parts),
      element("span", { class: "im-number", text: percent(odds, odds > 0.995 || odds < 0.0005 ? 0 : 1) }),
    );
  }
}
