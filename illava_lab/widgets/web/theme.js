// The theme of the page around a figure.

/** Keep `data-theme` of a figure as the page around it is, and say when it was looked at; returns what ends that. */
export function followTheme(root, changed) {
  const look = () => {
    const theme = isDark(root.parentElement) ? "dark" : "light";
    if (root.dataset.theme !== theme) root.dataset.theme = theme;
    changed();
  };
  // A notebook draws first and puts it on the page afterwards, which its size tells.
  const size = new ResizeObserver(look);
  size.observe(root);
  const themes = new MutationObserver(look);
  for (const node of [document.documentElement, document.body]) themes.observe(node, { attributes: true });
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", look);
  look();
  return () => {
    size.disconnect();
    themes.disconnect();
    dark.removeEventListener("change", look);
  };
}

/** Whether the page is dark around a node: by the first background that is not clear. */
function isDark(node) {
  for (let one = node; one; one = one.parentElement) {
    const parts = getComputedStyle(one).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
    const [red, green, blue, alpha = 1] = parts;
    if (alpha > 0.5) return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  }
  return false;
}
