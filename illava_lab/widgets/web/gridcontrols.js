// Controls of the explorers of a grid: each with its name before it, told when a reader moves it, and set from outside.

import { element } from "./dom.js";

const named = (name, ...controls) => element("label", { class: "im-line" }, element("span", { class: "im-tag", text: name }), ...controls);

/** A list of words to choose from; `options`: [[value, words], ...]. */
export function list(name, options, chosen) {
  const entries = options.map(([, text], number) => element("option", { value: number, text }));
  const select = element("select", { "aria-label": name }, ...entries);
  select.onchange = () => chosen(options[Number(select.value)][0]);
  const set = (value) => (select.value = options.findIndex(([one]) => one === value));
  return { node: named(name, select), set };
}

/** A slider from 0 on; beside it stands what its position is called. */
export function slider(name, moved) {
  const input = element("input", { type: "range", class: "im-budget", min: 0, step: 1, "aria-label": name });
  const text = element("b", { class: "im-kept" });
  input.oninput = () => moved(Number(input.value));
  const set = (value, last, words) => {
    input.max = last;
    input.value = value;
    input.disabled = !last;
    input.style.setProperty("--fill", `${(100 * value) / Math.max(1, last)}%`);
    input.setAttribute("aria-valuetext", words);
    text.textContent = words;
  };
  return { node: named(name, input, text), set };
}

/** A field for a number from 0 to below `count`. */
export function field(name, count, typed) {
  const input = element("input", { type: "number", min: 0, max: count - 1, step: 1, "aria-label": name });
  let shown = 0;
  const take = (number) => {
    if (Number.isInteger(number) && number >= 0 && number < count && number !== shown) typed(number);
  };
  input.oninput = () => input.value !== "" && take(Number(input.value));
  input.onchange = () => {
    if (input.value !== "") take(Math.min(count - 1, Math.max(0, Math.round(Number(input.value)))));
    input.value = shown; // what cannot be shown is not left standing
  };
  const set = (number) => {
    shown = number;
    if (Number(input.value) !== number || input.value === "") input.value = number;
  };
  return { node: named(name, input), set };
}

export function box(name, ticked) {
  const input = element("input", { type: "checkbox" });
  input.onchange = () => ticked(input.checked);
  return { node: element("label", { class: "im-line" }, input, element("span", { text: name })), set: (value) => (input.checked = value) };
}

export const button = (text, pressed) => element("button", { type: "button", text, onclick: pressed });
