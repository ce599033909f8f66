"use strict";
// What the report does when it is read: charts, tables that sort, the mask explorer. It loads nothing.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  // An element with text alone: nothing that comes from a run folder is ever markup.
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function percent(value) {
    if (value == null) return "";
    if (value <= 0) return "0";
    const digits = Math.max(0, 2 - Math.floor(Math.log10(value)));
    const text = value.toFixed(Math.min(digits, 10));
    return text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text;
  }

  // -- tables ---------------------------------------------------------------------------------------------------------

  const collator = new Intl.Collator("en", { numeric: true });

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, down ? -1 : 1);
      });
    });
  }

  function sort(table, column, sign) {
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent;
    };
    const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured is last
      return sign * (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  document.querySelectorAll("table.sortable").forEach(sortable);

  // -- selects --------------------------------------------------------------------------------------------------------

  // entries: [value, words]; the choice stays where it is still there.
  function fill(select, entries) {
    const before = select.value;
    select.replaceChildren(...entries.map(([value, words]) => make("option", { value }, words)));
    if (entries.some(([value]) => value === before)) select.value = before;
    select.parentElement.hidden = entries.length < 2;
  }

  // -- colours --------------------------------------------------------------------------------------------------------

  const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"];
  const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const MARKERS = { o: "circle", s: "square", "^": "triangle-up", D: "diamond", v: "triangle-down", P: "cross", X: "x", "*": "star" };
  const SYMBOLS = Object.values(MARKERS);

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  // 0 dark, 1 bright.
  function viridis(share) {
    const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    const [a, b] = [channels(VIRIDIS[low]), channels(VIRIDIS[low + 1])];
    return `rgb(${a.map((value, k) => Math.round(value + (at - low) * (b[k] - value))).join(",")})`;
  }

  const onLog = (value, low, high) => (high > low ? Math.log(value / low) / Math.log(high / low) : 1);

  function css(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // -- charts ---------------------------------------------------------------------------------------------------------

  const [MOST_NAMED, MOST_BANDS] = [12, 6]; // curves of a chart with a legend, and with bands
  const LOGARITHMIC = ["density", "density_weights"];
  const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const wrapped = (text) => safe(text.replace(isNarrow() ? /(.{24,34}) /g : /(.{90,110}) /g, "$1\n")).replace(/\n/g, "<br>");
  const seen = (colour) => (colour === "#000000" ? css("--text") : colour);

  async function plotly() {
    const text = atob($("plotly").textContent);
    const packed = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) packed[k] = text.charCodeAt(k); // Uint8Array.from is several times slower
    performance.mark("unpacked");
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    performance.mark("inflated");
    document.head.append(script);
    if (!window.Plotly) throw new Error("Plotly did not start");
    performance.mark("plotly");
  }

  const isNarrow = () => window.innerWidth < 640;
  const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

  function layout(xaxis, yaxis) {
    const narrow = isNarrow();
    const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--text"), family: "system-ui, sans-serif", size: 13 },
      margin: { l: 56, r: 12, t: 34, b: 48 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--text") },
      hovermode: "closest",
      hoverlabel: { namelength: -1, align: "left" },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
      showlegend: true,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: narrow ? 12 : 13 } },
      xaxis: { ...axis, ...xaxis },
      yaxis: { ...axis, ...yaxis },
    };
  }

  const config = () => ({ responsive: true, displayModeBar: isNarrow() ? false : "hover", displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });

  // Dense at the left on a log axis, labelled at densities that were trained and have room.
  function densityAxis(values, words) {
    const known = [...new Set(values.filter((value) => value > 0))].sort((a, b) => b - a);
    if (!known.length) return { title: { text: safe(words) } };
    const [high, low] = [Math.log10(known[0]), Math.log10(known[known.length - 1])];
    const pad = Math.max(0.03, 0.03 * (high - low));
    const room = (high - low) / Math.max(2, Math.min(9, window.innerWidth / 90));
    const ticks = known.filter((value, at, all) => {
      if (at && all.shown - Math.log10(value) < room) return false;
      all.shown = Math.log10(value);
      return true;
    });
    return {
      title: { text: safe(words) }, type: "log", range: [high + pad, low - pad],
      tickvals: ticks, ticktext: ticks.map(percent),
    };
  }

  function lineTraces(line, name, look, x, y) {
    const points = line.rounds
      .map((round, k) => ({ round, x: line.x[x] && line.x[x][k], y: line.y[y] && line.y[y][k] }))
      .filter((point) => point.x != null && point.y && !(LOGARITHMIC.includes(x) && point.x <= 0))
      .sort((a, b) => a.x - b.x);
    if (!points.length) return [];
    const counts = points.map((point) => point.y[3]);
    const [few, many] = [Math.min(...counts), Math.max(...counts)];
    const group = name;
    const band = {
      x: [...points.map((p) => p.x), ...points.map((p) => p.x).reverse()],
      y: [...points.map((p) => p.y[1]), ...points.map((p) => p.y[2]).reverse()],
      fill: "toself", mode: "lines", line: { width: 0 }, fillcolor: `rgba(${channels(look.colour).join(",")},0.16)`,
      hoverinfo: "skip", showlegend: false, legendgroup: group,
    };
    const main = {
      x: points.map((p) => p.x), y: points.map((p) => p.y[0]), mode: "lines+markers", legendgroup: group,
      name: `${wrapped(name)} (n = ${few === many ? few : `${few}–${many}`})`,
      line: { color: look.colour, width: 2, dash: look.dash }, marker: { symbol: look.symbol, size: 7 },
      customdata: points.map((p) => [p.round, percent(p.x), ...p.y.slice(1)]),
      hovertemplate: `${safe(name)}<br>round %{customdata[0]}, at %{customdata[1]}<br>%{y:.5~g} (%{customdata[2]:.5~g} to %{customdata[3]:.5~g}, n = %{customdata[4]})<extra></extra>`,
    };
    return many > 1 ? [band, main] : [main];
  }

  // What the first select chooses: all experiments of one network and data set together, or one with its controls.
  function shown(choice) {
    if (choice.startsWith("all:")) {
      const charts = data.charts.filter((chart) => chart.subject === choice.slice(4));
      return charts.map((chart, k) => ({
        chart, line: chart.lines.find((line) => line.ticket), name: shorter(chart.words, chart.subject),
        look: { colour: PALETTE[k % PALETTE.length], dash: DASHES[Math.floor(k / PALETTE.length) % DASHES.length], symbol: SYMBOLS[k % SYMBOLS.length] },
      })).filter((each) => each.line);
    }
    const chart = data.charts[Number(choice)];
    return chart.lines.map((line) => ({
      chart, line, name: line.words, look: { colour: seen(line.colour), dash: "solid", symbol: MARKERS[line.marker] },
    }));
  }

  const shorter = (words, subject) => (words.startsWith(`${subject}, `) ? words.slice(subject.length + 2) : words);

  function drawRounds() {
    const chosen = shown($("rounds-what").value);
    const first = (key) => [...new Map(chosen.flatMap(({ chart }) => Object.entries(chart[key])))];
    fill($("rounds-y"), first("measures"));
    fill($("rounds-x"), first("axes"));
    const [x, y] = [$("rounds-x").value, $("rounds-y").value];
    const traces = chosen.flatMap(({ line, name, look }) => lineTraces(line, name, look, x, y));
    const words = new Map(first("axes")).get(x), title = { text: safe(new Map(first("measures")).get(y)) };
    const values = traces.flatMap((trace) => trace.x);
    const xaxis = LOGARITHMIC.includes(x) ? densityAxis(values, words) : { title: { text: safe(words) } };
    const made = layout(xaxis, { title });
    const dense = chosen.filter(({ line }) => line.ticket && line.y[y] && line.rounds[0] === 0 && line.y[y][0]);
    if (dense.length === 1 || new Set(dense.map(({ line }) => line.y[y][0][0])).size === 1) {
      const level = dense[0].line.y[y][0][0];
      made.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: css("--soft"), width: 1.2, dash: "dash" } }];
      made.annotations = [{ xref: "paper", x: 1, xanchor: "right", y: level, yanchor: "bottom", text: "dense", showarrow: false, font: { color: css("--soft"), size: 12 } }];
    }
    $("rounds-chart").setAttribute("aria-label", `${title.text} against ${words}: the table of results has the same numbers`);
    const named = traces.filter((trace) => trace.name);
    const room = $("rounds-chart").clientWidth - 70;
    const wide = named.reduce((sum, trace) => sum + Math.min(room, 60 + 7 * trace.name.length), 0);
    const lines = isNarrow() ? named.reduce((sum, trace) => sum + trace.name.split("<br>").length, 0) : Math.ceil((1.2 * wide) / room);
    const legend = chosen.length > MOST_NAMED ? 0 : Math.max(0, lines - 1);
    $("rounds-chart").style.height = `${26 + 1.5 * legend}rem`; // a long legend takes nothing from the lines
    if (chosen.length > MOST_NAMED) made.showlegend = false; // a line's name shows where it is pointed at
    return Plotly.react("rounds-chart", chosen.length > MOST_BANDS ? traces.filter((trace) => !trace.fill) : traces, made, config());
  }

  function startRounds() {
    const subjects = [...new Set(data.charts.map((chart) => chart.subject))];
    const together = subjects.filter((subject) => data.charts.filter((chart) => chart.subject === subject).length > 1);
    fill($("rounds-what"), [
      ...together.map((subject) => [`all:${subject}`, `all tickets: ${subject}`]),
      ...data.charts.map((chart, k) => [String(k), chart.words]),
    ]);
    $("rounds").hidden = false;
    for (const key of ["what", "x", "y"]) $(`rounds-${key}`).addEventListener("change", drawRounds);
    return drawRounds();
  }

  // Without the first steps, which are far off: a double click shows them as well.
  function bulk(values, key) {
    const sorted = values.filter((value) => value != null).sort((a, b) => a - b);
    const at = (share) => sorted[Math.floor(share * (sorted.length - 1))];
    if (key === "loss") {
      const positive = sorted.filter((value) => value > 0);
      return positive.length ? { type: "log", autorange: true } : { autorange: true };
    }
    const [low, high] = [at(0.05), at(1)], pad = Math.max(0.5, 0.05 * (high - low));
    return { range: [low - pad, Math.min(high + pad, 100.5)] };
  }

  function drawTraining() {
    const { splits } = data.curves[Number($("training-run").value)];
    fill($("training-split"), Object.keys(splits).map((split) => [split, split]));
    const lines = splits[$("training-split").value];
    const measured = ["accuracy", "loss"].filter((key) => lines.some((line) => line[key].some((value) => value != null)));
    fill($("training-curve"), measured.map((key) => [key, key === "accuracy" ? "accuracy (%)" : "loss"]));
    const key = $("training-curve").value;
    const low = Math.min(...lines.map((line) => line.density).filter((value) => value > 0));
    const traces = lines.map((line) => ({
      x: line.step, y: line[key], mode: "lines", name: `${line.round}: ${percent(line.density)} %`,
      line: { width: 1.6, color: viridis((isDark() ? 0.25 : 0) + (isDark() ? 0.75 : 0.92) * (1 - onLog(Math.max(line.density, low), low, 100))) },
      hovertemplate: `round ${line.round}, ${percent(line.density)} %<br>step %{x:,}: %{y:.5~g}<extra></extra>`,
    }));
    const title = { text: `${safe($("training-split").value)} ${key === "accuracy" ? "accuracy (%)" : "loss"}` };
    const made = layout({ title: { text: "step" } }, { title, ...bulk(lines.flatMap((line) => line[key]), key) });
    made.legend = { title: { text: "round: weights" }, font: { size: 11 } };
    made.showlegend = !isNarrow();
    return Plotly.react("training-chart", traces, made, config());
  }

  function startTraining() {
    if (!$("training")) return null;
    fill($("training-run"), data.curves.map(({ words }, k) => [String(k), words]));
    $("training").hidden = false;
    for (const key of ["run", "split", "curve"]) $(`training-${key}`).addEventListener("change", drawTraining);
    return drawTraining();
  }

  async function startCharts() {
    const still = $("static");
    try {
      if (still) still.open = false;
      await plotly();
      await startRounds();
      performance.mark("first chart");
      await startTraining();
      const again = () => { drawRounds(); if ($("training")) drawTraining(); };
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    } catch (error) { // an old browser: the static figures stay
      if (still) still.open = true;
      $("charts").insertBefore(make("p", { class: "note" }, `Interactive charts could not be drawn: ${error.message}`), still);
    }
    performance.mark("ready");
    document.documentElement.dataset.ready = "true";
  }

  // -- masks ----------------------------------------------------------------------------------------------------------

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
    $("masks-scale").replaceChildren(...from, "100 % kept; grey: empty layer; columns: round, weights remaining (%)");
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

  // -- configurations -------------------------------------------------------------------------------------------------

  document.querySelectorAll("pre.config").forEach((pre) => {
    const button = make("button", { type: "button" }, "Save config.yaml");
    button.addEventListener("click", () => {
      const link = make("a", { download: "config.yaml", href: URL.createObjectURL(new Blob([pre.textContent], { type: "text/yaml" })) });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    pre.before(button);
  });

  performance.mark("script");
  startMasks();
  performance.mark("masks");
  if ($("plotly")) startCharts();
  else document.documentElement.dataset.ready = "true";
})();
