// What a schedule costs: the rule of `illava_lab/widgets/schedule_forecast.py`, held together with it by a test.

/** The nearest whole number, and of two the even one, as Python rounds. */
export function halfEven(value) {
  const below = Math.floor(value);
  const over = value - below;
  return below + (over > 0.5 || (over === 0.5 && below % 2 === 1) ? 1 : 0);
}

export const kept = (percent, count) => Math.max(1, count - halfEven(count * (1 - percent / 100)));

/** Visual tokens that enter each layer; the count that leaves a stage comes last. An encoder layer reduces inside
    itself, an LLM layer before it. */
export function tokensOf({ patches, depth, places }, values) {
  const plan = { encoder: {}, llm: {} };
  places.forEach(([stage, layer], number) => (plan[stage][layer] = values[number]));
  const out = {};
  let count = patches;
  for (const stage of ["encoder", "llm"]) {
    out[stage] = [];
    for (let layer = 0; layer < depth[stage]; layer++) {
      if (stage === "encoder") out[stage].push(count);
      count = kept(plan[stage][layer] ?? 100, count);
      if (stage === "llm") out[stage].push(count);
    }
    out[stage].push(count);
  }
  return out;
}

/** FLOPs of each part: "encoder", "projector", "llm". */
export function flopsOf({ chunk, text, parts }, tokens) {
  const cost = ([each, square, begun], count) =>
    each * count + square * count * count + begun * Math.ceil((text + count) / chunk);
  const sum = (terms, counts) => terms.reduce((all, term, layer) => all + cost(term, counts[layer]), 0);
  const whole = ([part, { fixed, encoder, llm }]) => [part, fixed + sum(encoder, tokens.encoder) + sum(llm, tokens.llm)];
  return Object.fromEntries(Object.entries(parts).map(whole));
}

export const total = (parts) => Object.values(parts).reduce((all, share) => all + share, 0);

/** { tokens, left, flops, time }: the last two as shares of the bare model's, by part; time is null where nothing was measured. */
export function forecastOf(catalog, values) {
  const { costs, seconds } = catalog;
  const tokens = tokensOf(catalog, values);
  const now = flopsOf(costs, tokens);
  const shares = (share) => Object.fromEntries(Object.keys(costs.parts).map((part) => [part, share(part)]));
  const bare = total(shares((part) => costs.parts[part].bare));
  const predicted = (part) => ((seconds[part] / total(seconds)) * now[part]) / costs.parts[part].bare;
  return {
    tokens,
    left: tokens.llm.at(-1),
    flops: shares((part) => now[part] / bare),
    time: seconds && shares(predicted),
  };
}

export function sentence({ patches }, { left, flops, time }) {
  const predicted = time ? `, predicted prefill time ${total(time).toFixed(2)}` : "";
  const entering = `${left} of ${patches} visual tokens enter the last LLM layer`;
  return `${entering}; FLOPs ${total(flops).toFixed(2)}${predicted} of the bare model's`;
}

/** The schedule as it is written in a notebook. */
export function written({ places }, values) {
  const plan = (stage) =>
    places.flatMap(([one, layer], number) => (one === stage && values[number] < 100 ? [`${layer}: ${values[number] / 100}`] : []));
  return `il.Schedule(encoder={${plan("encoder").join(", ")}}, llm={${plan("llm").join(", ")}})`;
}
