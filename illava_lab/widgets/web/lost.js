// Questions that a point loses: their pictures, what is right, and what was said.

import { element } from "./dom.js";

const SHOWN = 6;

/** The first of them within some categories, in the order of the questions: [[question, what was said], ...].
    `lost`: the same for each category. */
export function firstLost(lost, categories) {
  return categories.flatMap((number) => lost[number]).sort((a, b) => a[0] - b[0]).slice(0, SHOWN);
}

/** Their pictures with words, as a list. */
export function lostCards({ questions, pictures }, lost) {
  return lost.map(([number, said]) => {
    const { question, answer, picture } = questions[number];
    const { address, name, width } = pictures[picture];
    const card = element(
      "li",
      {},
      element("img", { src: address, alt: name, width, height: 112 }),
      element("span", { text: question }),
      element("span", {}, "right: ", element("b", { text: answer }), ", said: ", element("b", { class: "im-other", text: said })),
    );
    card.style.width = `${width}px`;
    return card;
  });
}
