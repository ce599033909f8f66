// The mask explorer: a heat map of layers by rounds, and of a chosen layer its mask and overlap with other seeds.

function lowest(map) {
  return Math.min(1, ...map.density.flat().filter((value) => value > 0));
}

function startMasks() {
  if (!data.masks.length) return;
  fill($("masks-run"), data.masks.map((map, k) => [String(k), map.words]));
  $("masks-run").addEventListener("change", drawMasks);
  $("explorer").hidden = false;
  drawMasks();
}

function drawMasks() {
  const map = data.masks[Number($("masks-run").value || 0)];
  const low = lowest(map);
  const shade = (value) => (value == null ? "transparent" : value <= 0 ? "#bbbbbb" : viridis(onLog(value, low, 1)));
  const head = make("tr", {}, make("th", { scope: "col" }, "layer"));
  map.rounds.forEach((round, k) => head.append(make("th", { scope: "col" }, String(round), make("br"), percent(map.remaining[k]))));
  const body = make("tbody");
  map.layers.forEach((layer, line) => {
    const row = make("tr", {}, make("th", { scope: "row", title: layer }, make("bdi", {}, layer.replace(/\.weight$/, ""))));
    map.rounds.forEach((round, column) => {
      const value = map.density[line][column];
      const words = `${layer}, round ${round}: ${value == null ? "not there" : `${percent(100 * value)} % kept`}`;
      const button = make("button", { type: "button", "aria-label": words, "aria-pressed": "false", title: words, tabindex: line + column ? "-1" : "0" });
      button.style.background = shade(value);
      button.addEventListener("click", () => choose(map, line, column, button));
      row.append(make("td", {}, button));
    });
    body.append(row);
  });
  const table = make("table", { class: "heat", "aria-label": "Share of weights kept, layers by rounds" }, make("thead", {}, head), body);
  table.addEventListener("keydown", walk);
  $("masks-grid").replaceChildren(table);
  $("masks-detail").replaceChildren();
  const bar = make("i");
  bar.style.background = `linear-gradient(to right, ${VIRIDIS.join(",")})`;
  const from = low < 1 ? [`${percent(100 * low)} %`, bar] : [bar];
  if (low === 1) bar.style.background = shade(1);
  $("masks-scale").replaceChildren(...from, "100 % kept; grey: empty layer; columns: round, prunable weights remaining (%)");
}

// Arrow keys in the heat map: one stop for Tab, as in any grid.
function walk(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const cell = event.target.closest("td");
  if (!step || !cell) return;
  event.preventDefault();
  const rows = [...cell.closest("tbody").rows];
  const row = rows[rows.indexOf(cell.parentElement) + step[0]];
  const next = row && row.cells[cell.cellIndex + step[1]];
  const button = next && next.querySelector("button");
  if (!button) return;
  event.target.tabIndex = -1;
  button.tabIndex = 0;
  button.focus();
}

function choose(map, line, column, button) {
  button.closest("table").querySelectorAll('[aria-pressed="true"]').forEach((other) => other.setAttribute("aria-pressed", "false"));
  button.setAttribute("aria-pressed", "true");
  button.closest("table").querySelectorAll('[tabindex="0"]').forEach((other) => { other.tabIndex = -1; });
  button.tabIndex = 0;
  const density = map.density[line][column], shape = map.shapes[line], size = map.sizes[line][column];
  const text = make("div", {}, make("h3", {}, `${map.layers[line]}, round ${map.rounds[column]}`));
  if (shape) {
    const count = shape.reduce((a, b) => a * b, 1);
    text.append(make("p", {}, `${shape.join(" × ")}: ${Math.round(density * count).toLocaleString("en")} of ${count.toLocaleString("en")} weights kept, ${percent(100 * density)} %`));
  }
  const parts = [];
  if (size && size[2]) {
    parts.push(thumbnail(map, line, column, size));
    text.append(make("p", {}, `Rows are outputs, columns inputs; white is ${percent(100 * size[2])} % kept.`));
  } else if (size) text.append(make("p", {}, "Nothing is kept."));
  else text.append(make("p", {}, "Its mask file is missing or damaged."));
  text.append(...shared(map.shared[line][column], map.seed));
  $("masks-detail").replaceChildren(...parts, text);
}

function thumbnail(map, line, column, [rows, columns]) {
  const zoom = Math.max(1, Math.min(Math.floor(320 / columns), Math.floor(320 / rows), 24));
  const canvas = make("canvas", { width: columns * zoom, height: rows * zoom, role: "img", "aria-label": `Mask of ${map.layers[line]} in round ${map.rounds[column]}` });
  const image = new Image();
  image.onload = () => {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, column * map.edge, line * map.edge, columns, rows, 0, 0, columns * zoom, rows * zoom);
    canvas.dataset.drawn = "true";
  };
  image.src = map.sprite;
  const holder = make("p");
  holder.append(canvas);
  return holder;
}

function shared(entries, seed) {
  if (!entries.length) return [make("p", {}, "No other seed of this experiment is in this report.")];
  const most = Math.max(...entries.flatMap(([, iou, chance]) => [iou, chance])) || 1;
  const rows = entries.map(([other, iou, chance]) => {
    const inner = make("div", {}, make("i"), make("b")), bar = make("td", { class: "bar" }, inner);
    inner.firstChild.style.width = `${(100 * iou) / most}%`;
    inner.lastChild.style.left = `${(100 * chance) / most}%`;
    const cells = [`${seed} and ${other}`, iou.toFixed(3), chance.toFixed(3)];
    return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)), bar);
  });
  const head = make("tr", {}, ...["Seeds", "IoU", "by chance", "IoU (bar), chance (line)"].map((words) => make("th", { scope: "col" }, words)));
  return [make("table", {}, make("caption", {}, "Overlap with the same layer of other seeds (intersection over union)"), make("thead", {}, head), make("tbody", {}, ...rows))];
}
