// What pages are made of, and how numbers are written.

const FOCUSED = new Set(["button", "canvas", "input", "select", "summary"]); // by readers without a mouse

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  if (FOCUSED.has(tag)) made.setAttribute("data-lm-suppress-shortcuts", "true"); // or JupyterLab would take "d" for its own
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name in made && typeof value === "function") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

/** An element of a drawing. */
export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
