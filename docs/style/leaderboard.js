// Filters, sorting and the plot of the leaderboard. Everything is read from the table, which is whole without this file.
(() => {
  const board = document.getElementById("leaderboard");
  const table = board.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
  const form = board.querySelector("form"), count = board.querySelector(".count");
  const figure = board.querySelector("figure"), across = board.querySelector(".across"), svg = board.querySelector("svg");
  const heads = [...table.tHead.rows[0].cells], place = Object.fromEntries(heads.map((head, i) => [head.dataset.key, i]));
  const value = (row, key) => row.cells[place[key]].dataset.value ?? "";
  const looks = JSON.parse(svg.dataset.looks); // of each method [color, marker], as in every figure
  const color = method => looks[method][0];
  const mark = (parent, method, x, y, size) => add(parent, "path", {
    d: illavaMarkers[looks[method][1]], fill: color(method), transform: `translate(${x} ${y}) scale(${size})` });
  for (const part of [form, count, figure]) part.hidden = false;

  // ------------------------------------------------------------------------------------------ filters
  const chosen = () => [...new FormData(form)].filter(([, wanted]) => wanted);
  function filter() {
    const wanted = chosen();
    // The bare model belongs to every method and budget: all others are compared with it.
    const fits = (row, [key, text]) =>
      row.dataset[key] === text || (row.dataset.method === "none" && (key === "method" || key === "kind"));
    for (const row of rows) row.hidden = !wanted.every(pair => fits(row, pair));
    count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
    draw();
  }
  form.addEventListener("change", filter);
  form.addEventListener("reset", () => setTimeout(filter));

  // ------------------------------------------------------------------------------------------ sorting
  function sort(head, key) {
    const down = head.ariaSort === "ascending";
    for (const other of heads) other.ariaSort = null;
    head.ariaSort = down ? "descending" : "ascending";
    const compared = (a, b) => {
      const [x, y] = [value(a, key), value(b, key)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured comes last, either way
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    };
    body.append(...rows.sort(compared));
  }
  for (const head of heads) {
    const key = head.dataset.key;
    if (key === "file") continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head, key));
    head.append(button);
  }

  // ------------------------------------------------------------------------------------------ the plot
  const W = 800, H = 400, LEFT = 56, RIGHT = 190, TOP = 12, BOTTOM = 44;
  function add(parent, name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, given] of Object.entries(attributes)) node.setAttribute(key, given);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }
  function scale(numbers, from, to, least) {
    let [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    const room = Math.max((high - low) * 0.06, least);
    [low, high] = [low - room, high + room];
    const at = number => from + ((number - low) / (high - low)) * (to - from);
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].find(step => (high - low) / step <= 8) ?? 1;
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick);
    return { at, ticks };
  }
  function draw() {
    svg.replaceChildren();
    const key = across.value, what = across.selectedOptions[0].text;
    const points = rows.filter(row => !row.hidden && value(row, key) !== "")
      .map(row => ({ row, x: Number(value(row, key)), y: Number(value(row, "accuracy")), method: row.dataset.method }));
    if (!points.length) return void add(svg, "text", { x: LEFT, y: H / 2, class: "axis" }, "Nothing to draw: no row shown has this.");
    const x = scale(points.map(p => p.x), LEFT, W - RIGHT, 0.02), y = scale(points.map(p => p.y), H - BOTTOM, TOP, 0.01);
    for (const tick of x.ticks) {
      add(svg, "line", { x1: x.at(tick), x2: x.at(tick), y1: TOP, y2: H - BOTTOM, class: "grid" });
      add(svg, "text", { x: x.at(tick), y: H - BOTTOM + 16, class: "axis", "text-anchor": "middle" }, tick.toFixed(2));
    }
    for (const tick of y.ticks) {
      add(svg, "line", { x1: LEFT, x2: W - RIGHT, y1: y.at(tick), y2: y.at(tick), class: "grid" });
      add(svg, "text", { x: LEFT - 6, y: y.at(tick) + 4, class: "axis", "text-anchor": "end" }, (100 * tick).toFixed(0));
    }
    add(svg, "text", { x: (LEFT + W - RIGHT) / 2, y: H - 8, class: "axis", "text-anchor": "middle" }, `${what}, share of the bare model's`);
    add(svg, "text", { x: 14, y: (TOP + H - BOTTOM) / 2, class: "axis", "text-anchor": "middle",
                       transform: `rotate(-90 14 ${(TOP + H - BOTTOM) / 2})` }, "accuracy %");
    // One line for each method on one model, task and machine, a budget after the other.
    const lines = {};
    for (const p of points) (lines[group(p)] ??= []).push(p);
    for (const line of Object.values(lines)) {
      line.sort((a, b) => a.x - b.x);
      const way = line.map(p => `${x.at(p.x).toFixed(1)},${y.at(p.y).toFixed(1)}`).join(" ");
      if (line.length > 1) add(svg, "polyline", { points: way, class: "way", stroke: color(line[0].method) });
    }
    for (const p of points) {
      const link = add(svg, "a", { href: `#${p.row.id}` });
      const dot = mark(link, p.method, x.at(p.x), y.at(p.y), 5);
      const cells = ["model", "method", "budget"].map(name => p.row.cells[place[name]].textContent).join(", ");
      add(dot, "title", {}, `${cells}: ${(100 * p.y).toFixed(1)} %, ${what} ${p.x.toFixed(2)}`);
    }
    const named = [...new Set(points.map(p => p.method))].sort(), room = Math.min(17, (H - TOP - 16) / named.length);
    named.forEach((method, i) => {
      mark(svg, method, W - RIGHT + 16, TOP + 8 + i * room, 4.5);
      add(svg, "text", { x: W - RIGHT + 26, y: TOP + 12 + i * room, class: "axis" }, method);
    });
  }
  const group = p => JSON.stringify(["model", "task", "method", "kind", "device", "by"].map(key => p.row.dataset[key]));
  across.addEventListener("change", draw);
  filter();
})();
