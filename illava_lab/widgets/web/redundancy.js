// The redundancy explorer: how like a picked patch all others are, in every layer, and which patches are groups.

import { element } from "./dom.js";
import { Panels, drawGroups, drawPicture, drawValues, groupsOf } from "./grid.js";
import { box, button, field, list, slider } from "./gridcontrols.js";
import { figureOf } from "./gridfigure.js";
import { followTheme } from "./theme.js";

const LIKENESS = { false: "cosine", true: "cosine, mean removed" };
const STRONG = 5; // times the mean, where the scale of attention ends unless more is paid

/** What `RedundancyExplorer` has packed: text on a page, bytes in a notebook. */
async function unpacked(packed) {
  const view = typeof packed === "string" ? Uint8Array.from(atob(packed), (one) => one.charCodeAt(0)) : packed;
  const stream = new Blob([view]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** Cosines of all pairs in hundredths, of what `tables.py` has left of them. `share`: quarters of the table `before`, that
    of the layer before, which were taken off. */
function readTable(left, count, share, before) {
  const table = new Int8Array(count * count);
  const less = new Int16Array(count * count); // without that share
  let at = 0;
  for (let row = 0; row < count; row++) {
    for (let column = row; column < count; column++) {
      const place = row * count + column;
      const west = column ? less[place - 1] : 0;
      const north = row ? less[place - count] : 0;
      const corner = row && column ? less[place - count - 1] : 0;
      const [low, high] = west < north ? [west, north] : [north, west];
      const guess = corner >= high ? low : corner <= low ? high : west + north - corner;
      const off = share ? Math.floor((share * before[place] + 2) / 4) : 0;
      const other = column * count + row;
      table[place] = guess + off + left[at++]; // an Int8Array counts modulo 256, as the writer does
      table[other] = table[place];
      less[place] = less[other] = table[place] - off;
    }
  }
  return table;
}

export class Redundancy {
  /** `source`: { catalog, numbers() -> key: numbers, start() -> settings, shown, send(settings) }. */
  constructor(root, source) {
    const { catalog } = source;
    Object.assign(this, { root, source, catalog, shown: source.shown, known: new Map(), tables: new Map() });
    const [rows, columns] = catalog.grid;
    this.patches = rows * columns;
    this.columns = columns;
    this.image = list("image", catalog.images.map(({ name }) => [name, name]), (image) => this.want({ image }));
    this.image.node.hidden = catalog.images.length < 2;
    this.stage = list("stage", catalog.stages.map(({ stage, name }) => [stage, name]), (stage) => this.want({ stage }));
    this.layer = slider("layer", (layer) => this.want({ layer }));
    this.patch = field("patch", this.patches, (patch) => this.want({ patch }));
    this.centred = box("remove the mean", (centred) => this.want({ centred }));
    this.third = list("right panel", catalog.third, (third) => this.want({ third }));
    this.title = element("p", { class: "im-title", role: "status" });
    this.panels = new Panels(root, 3, { grid: catalog.grid, window: [0, 0, 1, 1] }, {
      pick: (patch) => this.want({ patch }),
      lit: (number, patch) => (number === 2 && this.shown.third === "groups" ? this.groups.members[this.groups.owner[patch]] : null),
      tell: (number, patch) => this.tell(number, patch),
    });
    root.classList.add("im", "im-explorer", "im-three");
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Redundancy explorer: how alike the patches of an image are in every layer");
    const controls = [this.image, this.stage, this.layer, this.patch, this.centred, this.third].map(({ node }) => node);
    const reset = button("Reset", () => this.want(source.start()));
    root.replaceChildren(element("div", { class: "im-choices" }, ...controls, reset), this.title, this.panels.node);
    this.show();
    this.close = followTheme(root, () => this.panels.draw());
  }

  /** Something was moved. Where another stage has fewer layers, its last place is shown. */
  want(part) {
    const shown = { ...this.shown, ...part };
    this.shown = { ...shown, layer: Math.min(shown.layer, this.depth(shown.stage)) };
    this.source.send(this.shown);
    this.show();
  }

  depth(stage) {
    return this.catalog.stages.find((one) => one.stage === stage).layers;
  }

  // ------------------------------------------------------------------------------------------- numbers
  /** The numbers of what is shown, once they are here and unpacked; before, nothing. They are shown when they are there. */
  numbers() {
    const { blocks, images } = this.catalog;
    const place = this.place();
    const block = blocks.findIndex(([first, stop]) => first <= place && place < stop);
    const key = `${images.findIndex(({ name }) => name === this.shown.image)},${block}`;
    const given = this.source.numbers()[key];
    if (given && !this.known.has(key)) {
      this.known.set(key, null);
      Promise.all([unpacked(given.cosines), unpacked(given.others)]).then(([left, rest]) => {
        const [first, stop] = blocks[block];
        const numbers = { left: new Uint8Array(left), rest: new Int16Array(rest), shares: given.shares };
        this.known.set(key, { key, first, count: stop - first, ...numbers });
        this.show();
      });
    }
    return this.known.get(key);
  }

  /** Places of a stage count on from those of the stages before it. */
  place() {
    const { stages } = this.catalog;
    const before = stages.slice(0, stages.findIndex(({ stage }) => stage === this.shown.stage));
    return before.reduce((sum, { layers }) => sum + layers + 1, 0) + this.shown.layer;
  }

  /** The cosines of a place of a block. Tables of a stage lean on each other: its first ones stand alone. */
  cosines(known, number) {
    const { left, shares } = known;
    const key = `${known.key} ${number}`;
    if (!this.tables.has(key)) {
      const pairs = (this.patches * (this.patches + 1)) / 2;
      const own = left.subarray(number * pairs, (number + 1) * pairs);
      const before = shares[number] ? this.cosines(known, number - 2) : null;
      this.tables.set(key, readTable(own, this.patches, shares[number], before));
    }
    return this.tables.get(key);
  }

  /** What is known of the place that is shown: cosines, their mean and those of 0.9 and more for each patch, groups,
      attention. */
  look(known) {
    const { patches } = this;
    const place = this.place() - known.first;
    const number = 2 * place + Number(this.shown.centred);
    const row = (at) => known.rest.subarray(at * patches, (at + 1) * patches);
    const [mean, near, owner] = [0, 1, 2].map((which) => row(3 * number + which));
    Object.assign(this, { table: this.cosines(known, number), mean, near, times: row(6 * known.count + place) });
    const anchor = [];
    owner.forEach((group, patch) => (anchor[group] ??= patch));
    this.groups = groupsOf(owner, anchor);
  }

  /** The cosine of two patches. */
  like(patch) {
    return this.table[this.shown.patch * this.patches + patch] / 100;
  }

  // ------------------------------------------------------------------------------------------- in words
  /** How like the picked patch the others are: as `RedundancyExplorer.describe`. */
  sentence() {
    const { image, stage, layer, patch, centred } = this.shown;
    const { name, layers } = this.catalog.stages.find((one) => one.stage === stage);
    const where = layer === layers ? `leaves the ${name}` : `enters layer ${layer} of the ${name}`;
    return (
      `${image}, what ${where}: patch ${patch} has cosine ${(this.mean[patch] / 100).toFixed(2)} to the others on average, ` +
      `${this.near[patch]} of ${this.patches - 1} reach 0.9 (${LIKENESS[centred]})`
    );
  }

  tell(number, patch) {
    const { third, layer, stage } = this.shown;
    const like = `cosine to patch ${this.shown.patch}: ${this.like(patch).toFixed(2)}`;
    const lines = [`patch ${patch}: row ${Math.floor(patch / this.columns)}, column ${patch % this.columns}`, like];
    if (number === 2 && third === "groups") {
      lines[0] = `patch ${patch}: in a group of ${this.groups.members[this.groups.owner[patch]].length}`;
    } else if (number === 2 && layer < this.depth(stage)) {
      lines[1] = `${(this.times[patch] / 10).toFixed(1)} times the mean patch`;
    }
    return lines.join("\n");
  }

  // ------------------------------------------------------------------------------------------- what is shown
  show() {
    const { image, stage, layer, patch, centred, third } = this.shown;
    const last = this.depth(stage);
    this.image.set(image);
    this.stage.set(stage);
    this.layer.set(layer, last, layer === last ? "end" : `${layer}`);
    this.patch.set(patch);
    this.centred.set(centred);
    this.third.set(third);
    this.panels.point(0, -1);
    const known = this.numbers();
    this.root.classList.toggle("im-late", !known);
    if (known) this.fill(known);
    else if (known === undefined) this.title.textContent = "comparing the patches of these layers …";
  }

  fill(known) {
    const { image, patch, centred, third } = this.shown;
    this.look(known);
    this.title.textContent = this.sentence();
    const picture = this.panels.picture(this.catalog.images.find(({ name }) => name === image).seen);
    const photo = { title: "what the model sees", frames: [patch], foot: "click a patch to pick it" };
    photo.draw = (canvas, how) => drawPicture(canvas, { ...how, picture });
    const values = Array.from({ length: this.patches }, (_, one) => this.like(one));
    const scale = { colors: "RdBu_r", limits: [-1, 1], name: LIKENESS[centred] };
    const middle = { title: `how like patch ${patch} they are`, frames: [patch], scale };
    middle.draw = (canvas, how) => drawValues(canvas, how, values, scale, true);
    this.panels.show([photo, middle, third === "groups" ? this.alike(picture) : this.attention()], patch);
  }

  alike(picture) {
    const { groups } = this;
    const title = `${groups.anchor.length} groups with cosine ≥ ${this.catalog.least}${this.shown.centred ? ", mean removed" : ""}`;
    const foot = "outlined: patches that are alike, each to each";
    return { title, frames: [], foot, draw: (canvas, how) => drawGroups(canvas, how, groups, picture) };
  }

  attention() {
    const { stage, layer } = this.shown;
    const title = stage === "encoder" ? "attention that each patch receives" : "attention of the last text token";
    const nothing = (canvas, how) => drawPicture(canvas, { ...how, picture: null });
    if (layer === this.depth(stage)) {
      return { title, frames: [], note: "what leaves a stage has no attention of its own", draw: nothing };
    }
    const values = [...this.times].map((tenths) => tenths / 10);
    const scale = { colors: "viridis", limits: [0, Math.max(STRONG, ...values)], name: "times the mean" };
    return { title, frames: [], scale, draw: (canvas, how) => drawValues(canvas, how, values, scale, true) };
  }
}

export default figureOf(Redundancy);
