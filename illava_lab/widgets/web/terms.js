// Terms in the text of a page: pointing at one lights up what it names in the figure.

const PARTS = {
  answer: ".im-answer",
  budget: ".im-budget",
  cache: ".im-cache",
  encoder: '.im-row[data-stage="encoder"]',
  fallen: ".im-gone",
  flops: ".im-flops",
  group: ".im-group",
  handle: ".im-keep",
  llm: '.im-row[data-stage="llm"]',
  melted: ".im-melted",
  photograph: ".im-photo",
  token: ".im-map",
};

/** Every element of the page with `data-machine` is a term; a click brings what it names into sight. */
export function lightTerms(root) {
  const out = () => root.querySelectorAll(".im-lit").forEach((node) => node.classList.remove("im-lit"));
  for (const term of document.querySelectorAll("[data-machine]")) {
    const parts = () => [...root.querySelectorAll(PARTS[term.dataset.machine])];
    const over = () => {
      out();
      parts().forEach((node) => node.classList.add("im-lit"));
    };
    const find = () => parts()[0]?.scrollIntoView({ block: "nearest" });
    term.tabIndex = 0;
    term.addEventListener("pointerenter", over);
    term.addEventListener("pointerleave", out);
    term.addEventListener("focus", over);
    term.addEventListener("blur", out);
    term.addEventListener("click", find);
    term.addEventListener("keydown", ({ key }) => key === "Enter" && find());
  }
}
