// What is seen, in words: names of places, sentences for a screen reader, the table.

import { element, percent } from "./dom.js";
import { fallsAt, lineage, patchWeights, placeOf } from "./run.js";

export const STAGES = { encoder: "Image encoder", projector: "Projector", llm: "Language model" };

export const many = (count, word) => `${count} ${word}${count === 1 ? "" : word.endsWith("ch") ? "es" : "s"}`;

export function bytes(count) {
  const units = ["B", "KB", "MB", "GB"];
  const power = count < 1 ? 0 : Math.min(3, Math.floor(Math.log(count) / Math.log(1000)));
  const value = count / 1000 ** power;
  return `${value.toFixed(value < 10 && power ? 1 : 0)} ${units[power]}`;
}

/** The name of an entry of `layers`, short or as it is said. */
export function placeName({ layers: { stage, layer } }, at, long = false) {
  const number = layer[at];
  const names = {
    patches: ["patches", "the patches"],
    encoder: [`E${number}`, `encoder layer ${number}`],
    unused: [`E${number}`, `encoder layer ${number}`],
    projector: ["projector", "the projector"],
    llm: [`L${number}`, `LLM layer ${number}`],
    head: ["answer", "the answer"],
  };
  return names[stage[at]][long ? 1 : 0];
}

export function where(run, patch) {
  const { view, row, column } = placeOf(run, patch);
  const name = run.views.length > 1 ? `${run.views[view].name}, ` : "";
  return `${name}row ${row + 1}, column ${column + 1}`;
}

const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** Tokens of the last LLM layer without and with reduction, and shares of the bare model's FLOPs and cache. */
export function totals({ layers, bare_cache, bare_tokens, states }) {
  const last = layers.stage.lastIndexOf("llm");
  const depth = layers.stage.filter((stage) => stage === "llm").length;
  return {
    tokens: bare_tokens,
    left: states[last].anchor.length,
    flops: sum(layers.flops) / sum(layers.bare),
    cache: sum(layers.cache) / (bare_cache * depth),
  };
}

export function runSentence(run, bare) {
  const { tokens, left, flops, cache } = totals(run);
  const how = run.moves.length ? `${run.label}, ${run.budget}` : "Without reduction";
  const before = bare && bare !== run ? `; without reduction: “${bare.answer.text}”` : "";
  return (
    `${how}: ${left} of ${tokens} tokens are in the last LLM layer, at ${percent(flops)} of the FLOPs and ` +
    `${percent(cache)} of the cache. Answer: “${run.answer.text}”${before}.${run.note ? ` ${run.note}` : ""}`
  );
}

/** Whether the answer is another one than without reduction, where that is known. */
export function sameAnswer(run, bare) {
  if (!bare || bare === run) return "";
  const [now, before] = [run, bare].map(({ answer }) => answer.text);
  return now === before ? "The answer is the same as without reduction." : `Without reduction the answer is “${before}”.`;
}

/** What became of the token (or the patch, where none stands for it) that is followed. */
export function tokenSentence(run, { at, token, patch }) {
  const place = placeName(run, at, true);
  if (token < 0) {
    const fell = placeName(run, fallsAt(run, patch), true);
    return `${where(run, patch)}: fell at ${fell}; no token stands for this patch from there on.`;
  }
  const home = run.states[at].anchor[token];
  const count = patchWeights(run, at, token).size;
  const line = lineage(run, at, token);
  const parents = at > 0 && run.states[at].move ? line[at - 1].size : 1;
  const made = parents > 1 ? `, made of ${many(parents, "token")} just now` : "";
  const stands = count === 1 ? "stands for its own patch" : `stands for ${many(count, "patch")}`;
  const inside = patch !== home ? ` It holds the patch at ${where(run, patch)}.` : "";
  return `After ${place}, the token at ${where(run, home)} ${stands}${made}.${inside} ${fate(run, at, line)}`;
}

function fate(run, at, line) {
  const last = run.layers.stage.lastIndexOf("llm");
  const gone = line.findIndex((tokens, place) => place > at && tokens.size === 0);
  if (gone >= 0) return `It falls at ${placeName(run, gone, true)}.`;
  const [end] = line[last].keys();
  const home = run.states[last].anchor[end];
  const [now] = line[at].keys();
  if (home === run.states[at].anchor[now]) return at === last ? "" : "It reaches the last LLM layer.";
  let place = at;
  while (run.states[place].anchor[[...line[place].keys()][0]] !== home) place++;
  return `It melts into the token at ${where(run, home)}, which it has joined by ${placeName(run, place, true)}.`;
}

/** All that the figure shows of its places, as rows of a table. */
export function table(run) {
  const heads = ["place", "visual tokens", "melted", "fallen", "FLOPs, % of all", "cache"];
  const body = run.layers.stage.map((stage, at) => {
    const { anchor, melted, fallen } = run.states[at];
    const cache = stage === "llm" ? bytes(run.layers.cache[at]) : "";
    const name = `${placeName(run, at, true).replace("the ", "")}${stage === "unused" ? " (not used)" : ""}`;
    const cells = [anchor.length, melted, fallen, run.layers.flops[at].toFixed(1), cache];
    const row = cells.map((cell) => element("td", { text: cell }));
    return element("tr", {}, element("th", { scope: "row", text: name }), ...row);
  });
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col", text })));
  return element(
    "table",
    {},
    element("caption", { text: runSentence(run) }),
    element("thead", {}, head),
    element("tbody", {}, ...body),
  );
}
