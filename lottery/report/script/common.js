// What the other parts share: the embedded data, elements, selects, colours.

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

// entries: [value, words]; the choice stays where it is still there.
function fill(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, words]) => make("option", { value }, words)));
  if (entries.some(([value]) => value === before)) select.value = before;
  select.parentElement.hidden = entries.length < 2;
}

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
