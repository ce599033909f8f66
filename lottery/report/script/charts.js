// The interactive charts, drawn by Plotly once it is unpacked; where that fails the static figures stay.

const [MOST_NAMED, MOST_BANDS] = [12, 6]; // curves of a chart with a legend, and with bands
const LOGARITHMIC = ["density"];
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

function lineTraces(chart, line, name, look, x, y) {
  const points = line.rounds
    .map((round, k) => ({ round, density: line.x.density && line.x.density[k], x: line.x[x] && line.x[x][k], y: line.y[y] && line.y[y][k] }))
    .filter((point) => point.round > 0 || !(x === "arm" || (chart.once && x !== "round"))) // dense is a level there
    .filter((point) => point.x != null && point.y && !(LOGARITHMIC.includes(x) && point.x <= 0))
    .sort((a, b) => a.x - b.x);
  if (!points.length) return [];
  const counts = points.map((point) => point.y[3]);
  const [few, many] = [Math.min(...counts), Math.max(...counts)];
  const group = name;
  // Several rounds in one place, as of several rewind points at one density, are no line. Nor are two studies that prune once.
  const joined = new Set(points.map((p) => p.x)).size === points.length && points.length > (chart.once ? 2 : 1);
  const band = {
    x: [...points.map((p) => p.x), ...points.map((p) => p.x).reverse()],
    y: [...points.map((p) => p.y[1]), ...points.map((p) => p.y[2]).reverse()],
    fill: "toself", mode: "lines", line: { width: 0 }, fillcolor: `rgba(${channels(look.colour).join(",")},0.16)`,
    hoverinfo: "skip", showlegend: false, legendgroup: group,
  };
  const main = {
    x: points.map((p) => p.x), y: points.map((p) => p.y[0]), mode: joined ? "lines+markers" : "markers", legendgroup: group,
    name: `${wrapped(name)} (n = ${few === many ? few : `${few}–${many}`})`,
    line: { color: look.colour, width: 2, dash: look.dash }, marker: { symbol: look.symbol, size: 7 },
    customdata: points.map((p) => [p.round, LOGARITHMIC.includes(x) || x === "arm" ? `${percent(p.density)} %` : p.x, ...p.y.slice(1)]),
    hovertemplate: `${safe(name)}<br>round %{customdata[0]}, at %{customdata[1]}<br>%{y:.5~g} (%{customdata[2]:.5~g} to %{customdata[3]:.5~g}, n = %{customdata[4]})<extra></extra>`,
  };
  return many > 1 && joined ? [band, main] : [main];
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
  const alone = chosen.length === 1 || chosen.every(({ chart }) => chart === chosen[0].chart);
  fill($("rounds-x"), first("axes").filter(([key]) => key !== "arm" || alone));
  const [x, y] = [$("rounds-x").value, $("rounds-y").value];
  const traces = chosen.flatMap(({ chart, line, name, look }) => lineTraces(chart, line, name, look, x, y));
  const words = new Map(first("axes")).get(x), title = { text: safe(new Map(first("measures")).get(y)) };
  const values = traces.flatMap((trace) => trace.x);
  const arms = { tickvals: chosen.map((_, k) => k), ticktext: chosen.map(({ name }) => safe(name)), range: [-0.5, chosen.length - 0.5] };
  const xaxis = LOGARITHMIC.includes(x) ? densityAxis(values, words) : { title: { text: safe(words) }, ...(x === "arm" ? arms : {}) };
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
  const height = 16 * 27 + 24 * legend; // a long legend takes nothing from the lines
  $("rounds-chart").style.height = `${height}px`;
  made.legend = { ...made.legend, yref: "container", yanchor: "top", y: 1 - (isNarrow() ? 4 : 30) / height }; // below the buttons
  if (chosen.length <= MOST_NAMED) made.margin.t = (isNarrow() ? 10 : 36) + 24 * lines;
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
  made.legend = { title: { text: "round: prunable weights" }, font: { size: 11 } };
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
