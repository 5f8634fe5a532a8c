// The colour of a place in a picture: the rule of `illava_lab/views/colors.py`, held together with it by a test.

const HUES = [270, 450];
const LIGHTNESS = [0.8, 0.5];
const CHROMA = 0.1;

/** [red, green, blue] from 0 to 255 of a place; x and y run from 0 to 1, to the right and down. */
export function placeColor(x, y) {
  const [across, down] = [x, y].map((value) => Math.min(1, Math.max(0, value)));
  const hue = ((HUES[0] + across * (HUES[1] - HUES[0])) * Math.PI) / 180;
  const light = LIGHTNESS[0] + down * (LIGHTNESS[1] - LIGHTNESS[0]);
  const a = CHROMA * Math.cos(hue);
  const b = CHROMA * Math.sin(hue);
  const l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((linear) => {
    const value = Math.min(1, Math.max(0, linear));
    const encoded = value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055;
    return Math.floor(encoded * 255 + 0.5);
  });
}

/** The colours of all patches of a view, in raster order. */
export function viewColors({ grid: [height, width], window: [left, top, right, bottom] }) {
  const colors = [];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const x = left + ((column + 0.5) / width) * (right - left);
      const y = top + ((row + 0.5) / height) * (bottom - top);
      colors.push(placeColor(x, y));
    }
  }
  return colors;
}

export function css([red, green, blue], alpha = 1) {
  return alpha === 1 ? `rgb(${red},${green},${blue})` : `rgba(${red},${green},${blue},${alpha})`;
}

export function mixed(from, to, share) {
  return from.map((value, i) => Math.round(value + (to[i] - value) * share));
}
