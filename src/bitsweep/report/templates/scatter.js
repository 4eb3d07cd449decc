// Any figure of the cells against any other: what the table shows, with the Pareto front, requirements and intervals.
const plot = document.querySelector("#plot"), chart = document.querySelector("#chart"), tip = document.querySelector("#tip");
const data = JSON.parse(document.querySelector("#data").textContent);
// Okabe and Ito's colours, which the colour-blind can tell apart; shapes tell them apart once more.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#7f7f7f"];
const SHAPES = [
  r => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
  r => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  r => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
  r => `M0,${-1.2 * r}L${1.2 * r},${r}L${-1.2 * r},${r}z`,
  r => `M0,${1.2 * r}L${1.2 * r},${-r}L${-1.2 * r},${-r}z`,
  r => `M${-r},${-r / 2.5}h${r * .6}v${-r * .6}h${r * .8}v${r * .6}h${r * .6}v${r * .8}h${-r * .6}v${r * .6}h${-r * .8}v${-r * .6}h${-r * .6}z`,
  r => `M0,${-1.3 * r}L${1.2 * r},${-.4 * r}L${.75 * r},${1.1 * r}L${-.75 * r},${1.1 * r}L${-1.2 * r},${-.4 * r}z`,
  r => `M${-.5 * r},${-1.1 * r}h${r}l${.7 * r},${1.1 * r}l${-.7 * r},${1.1 * r}h${-r}l${-.7 * r},${-1.1 * r}z`,
];
const RECOMMENDED = 6, MOST_INTERVALS = 100;

const svgElement = (name, attributes, parent) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
};

function select(label, name, options) {
  const field = document.createElement("label"), made = document.createElement("select");
  made.name = name;
  made.append(...options.map(([value, text]) => new Option(text, value)));
  field.append(`${label} `, made);
  field.hidden = options.length < 2;
  plot.querySelector("form").append(field);
  made.onchange = draw;
  return made;
}

const columnOf = title => heads.findIndex(head => head.textContent === title);
const textOf = (cell, title) => rowOf[cell].cells[columnOf(title)].textContent;
const rowOf = Object.fromEntries(rows.map(row => [row.dataset.cell, row]));
const axes = data.axes.map(axis => [axis.name, axis.title]);
const chosen = {
  x: select("across", "x", axes),
  y: select("up", "y", axes),
  batch: select("batch", "batch", data.batches.map(size => [size, size])),
  dataset: select("data set", "dataset", data.datasets.map(name => [name, name])),
  colour: select("colour", "colour", data.groups.map(name => [name, name])),
  shape: select("shape", "shape", data.groups.map(name => [name, name])),
};
chosen.x.value = data.axes.some(axis => axis.name === "latency_p50_ms") ? "latency_p50_ms" : "size_mb";
chosen.y.value = "top1";
chosen.batch.value = data.cells[0].batch;
chosen.shape.value = data.groups.includes("precision") ? "precision" : data.groups.at(-1);

// The value of a cell, or an end of its interval if it has one. Figures of its first batch size have plain names.
function valueAt(cell, axis, end = "") {
  const { values, batch } = data.cells[cell], size = chosen.batch.value;
  return values[`${axis.name}${end}${axis.byBatch && size !== batch ? `_b${size}` : ""}`];
}

function scale(points, axis, value, from, to) {
  const values = points.map(value);
  let low = Math.min(...values), high = Math.max(...values);
  // Intervals are seen whole, unless they are much wider than what lies between the points.
  const beyond = 10 * (high - low) || Infinity;
  const ends = points.length > MOST_INTERVALS ? [] : points.flatMap(point => ["_low", "_high"].map(end => valueAt(point.cell, axis, end))).filter(end => end !== undefined);
  low = Math.min(low, Math.max(low - beyond, Math.min(...ends)));
  high = Math.max(high, Math.min(high + beyond, Math.max(...ends)));
  const logarithmic = low > 0 && high / low > 5;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * .1, high + (Math.abs(high) || 1) * .1];
  const of = logarithmic ? Math.log10 : x => x, room = .06 * (of(high) - of(low));
  const start = of(low) - room, span = of(high) - of(low) + 2 * room;
  const at = value => from + (of(value) - start) / span * (to - from);
  const most = Math.max(2, Math.abs(to - from) / (from > to ? 40 : 70));
  const ticks = (logarithmic ? logTicks : linearTicks)(start, start + span, most);
  return { at, ticks, holds: value => !logarithmic || value > 0 };
}

function linearTicks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(factor => factor * power >= rough) * power;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(+(k * step).toPrecision(12));
  return found;
}

function logTicks(low, high, most) {
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = Math.floor(low); power <= high; power++)
      for (const factor of factors)
        if (Math.log10(factor) + power >= low && Math.log10(factor) + power <= high) found.push(+(factor * 10 ** power).toPrecision(6));
    if (found.length <= most || factors.length === 1) return found;
  }
}

// The points that no other beats, from the cheapest on; as in the pictures, only of cells whose accuracy is believed.
function paretoFront(points, xAxis, yAxis) {
  if (!xAxis.better || !yAxis.better || xAxis === yAxis) return [];
  const cost = point => xAxis.better === "less" ? point.x : -point.x, gain = point => yAxis.better === "more" ? point.y : -point.y;
  const front = [];
  for (const point of points.filter(each => data.cells[each.cell].believable).sort((a, b) => cost(a) - cost(b) || gain(b) - gain(a)))
    if (!front.length || gain(point) > gain(front.at(-1))) front.push(point);
  return front;
}

const distinct = (title, cells) => [...new Set(cells.map(cell => textOf(cell, title)))];

function draw() {
  const xAxis = data.axes.find(axis => axis.name === chosen.x.value), yAxis = data.axes.find(axis => axis.name === chosen.y.value);
  const points = [];
  data.cells.forEach((known, cell) => {
    const x = valueAt(cell, xAxis), y = valueAt(cell, yAxis);
    const shown = !rowOf[cell].hidden && (!known.dataset || known.dataset === chosen.dataset.value);
    if (shown && x !== undefined && y !== undefined) points.push({ cell, x, y });
  });
  chart.querySelector("svg")?.remove();
  tip.hidden = true;
  const width = Math.max(280, chart.clientWidth), height = Math.round(Math.min(520, Math.max(320, width * .5)));
  const right = 14, top = 14, bottom = 44;
  const name = `${yAxis.title} against ${xAxis.title}, ${points.length} cells`;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": name });
  chart.prepend(svg);
  if (!points.length) {
    svgElement("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg).textContent = "no cell has both figures";
    return legend([], "", []);
  }
  const y = scale(points, yAxis, point => point.y, height - bottom, top);
  const left = 32 + 7 * Math.max(...y.ticks.map(tick => `${tick}`.length));  // room for the numbers beside the title
  const x = scale(points, xAxis, point => point.x, left, width - right);
  for (const tick of x.ticks) {
    svgElement("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: top, y2: height - bottom }, svg);
    svgElement("text", { x: x.at(tick), y: height - bottom + 16, "text-anchor": "middle" }, svg).textContent = tick;
  }
  for (const tick of y.ticks) {
    svgElement("line", { class: "grid", x1: left, x2: width - right, y1: y.at(tick), y2: y.at(tick) }, svg);
    svgElement("text", { x: left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, svg).textContent = tick;
  }
  svgElement("path", { class: "frame", fill: "none", d: `M${left},${top}V${height - bottom}H${width - right}` }, svg);
  svgElement("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, svg).textContent = xAxis.title;
  const upwards = `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`;
  svgElement("text", { transform: upwards, "text-anchor": "middle" }, svg).textContent = yAxis.title;
  const within = (at, low, high) => at >= low - 1 && at <= high + 1;
  // The name of a limit stands where no point is, if there is such a place.
  const nameLimit = (text, places) => {
    const name = svgElement("text", { class: "limit-name" }, svg);
    name.textContent = text;
    const isFree = place => {
      for (const [key, value] of Object.entries(place)) name.setAttribute(key, value);
      const box = name.getBBox(), near = (at, start, length) => at > start - 7 && at < start + length + 7;
      return !points.some(point => near(x.at(point.x), box.x, box.width) && near(y.at(point.y), box.y, box.height));
    };
    if (!places.some(isFree)) isFree(places[0]);
  };
  for (const limit of data.limits) {
    if (limit.metric === xAxis.name && x.holds(limit.value) && within(x.at(limit.value), left, width - right)) {
      svgElement("line", { class: "limit", x1: x.at(limit.value), x2: x.at(limit.value), y1: top, y2: height - bottom }, svg);
      const past = x.at(limit.value) > width / 2;
      nameLimit(limit.text, [top + 10, height - bottom - 6].map(at => ({ x: x.at(limit.value) + (past ? -4 : 4), y: at, "text-anchor": past ? "end" : "start" })));
    }
    if (limit.metric === yAxis.name && y.holds(limit.value) && within(y.at(limit.value), top, height - bottom)) {
      svgElement("line", { class: "limit", x1: left, x2: width - right, y1: y.at(limit.value), y2: y.at(limit.value) }, svg);
      const places = [-4, 12].flatMap(off => [[left + 4, "start"], [width - right - 4, "end"]].map(([at, anchor]) => ({ x: at, y: y.at(limit.value) + off, "text-anchor": anchor })));
      nameLimit(limit.text, places.filter(place => within(place.y, top + 8, height - bottom)));
    }
  }
  const front = paretoFront(points, xAxis, yAxis);
  if (front.length) {
    const steps = front.slice(1).map(point => `H${x.at(point.x)}V${y.at(point.y)}`);
    svgElement("path", { class: "front", d: `M${x.at(front[0].x)},${y.at(front[0].y)}${steps.join("")}` }, svg);
  }
  const cells = data.cells.map((_, cell) => cell);
  const colours = distinct(chosen.colour.value, cells), shapes = distinct(chosen.shape.value, cells);
  const best = new Set(front.map(point => point.cell));
  for (const point of points) {
    const colour = COLOURS[colours.indexOf(textOf(point.cell, chosen.colour.value)) % COLOURS.length];
    if (points.length <= MOST_INTERVALS) interval(svg, point, xAxis, yAxis, x, y, colour, { left, right: width - right, top, bottom: height - bottom });
    point.colour = colour;
  }
  for (const point of points) {
    const { believable, recommended } = data.cells[point.cell], isBest = best.has(point.cell);
    const group = svgElement("g", { transform: `translate(${x.at(point.x)} ${y.at(point.y)})` }, svg);
    if (recommended) svgElement("circle", { class: "ring", r: 5 + RECOMMENDED }, group);
    const shape = SHAPES[shapes.indexOf(textOf(point.cell, chosen.shape.value)) % SHAPES.length];
    const mark = svgElement("path", { class: `point${isBest ? " best" : ""}${believable ? "" : " doubtful"}`, d: shape(isBest ? 6 : 4.5) }, group);
    mark.style[believable ? "fill" : "stroke"] = point.colour;
    group.onpointerenter = event => event.pointerType === "mouse" && tell(point, x, y, true);
    group.onpointerleave = () => { if (tip.className === "passing") tip.hidden = true; };
    group.onclick = event => { event.stopPropagation(); tell(point, x, y, false); };
  }
  const kinds = [["Pareto front", front.length], ["recommended", data.cells.some(each => each.recommended)], ["not to be believed", points.some(each => !data.cells[each.cell].believable)]];
  legend(colours, shapes, kinds.filter(([, some]) => some).map(([kind]) => kind));
}

function interval(svg, point, xAxis, yAxis, x, y, colour, frame) {
  const clip = (at, low, high) => Math.max(low, Math.min(high, at));
  const ends = (axis, scaled, low, high) => ["_low", "_high"].map(end => valueAt(point.cell, axis, end))
    .map(value => value === undefined || !scaled.holds(value) ? undefined : clip(scaled.at(value), low, high));
  const [x1, x2] = ends(xAxis, x, frame.left, frame.right), [y1, y2] = ends(yAxis, y, frame.top, frame.bottom);
  const style = { class: "interval", stroke: colour };
  if (x1 !== undefined && x2 !== undefined) svgElement("line", { ...style, x1, x2, y1: y.at(point.y), y2: y.at(point.y) }, svg);
  if (y1 !== undefined && y2 !== undefined) svgElement("line", { ...style, x1: x.at(point.x), x2: x.at(point.x), y1, y2 }, svg);
}

function legend(colours, shapes, kinds) {
  const list = document.querySelector("#legend"), same = chosen.colour.value === chosen.shape.value;
  list.replaceChildren();
  const entry = (text, mark) => {
    const item = document.createElement("li"), svg = svgElement("svg", { viewBox: "-8 -8 16 16" }, item);
    mark(svg);
    item.append(text);
    list.append(item);
  };
  if (colours.length > 1 || same)
    colours.forEach((text, k) => entry(text, svg => svgElement("path", { d: SHAPES[same ? k % SHAPES.length : 0](5), fill: COLOURS[k % COLOURS.length] }, svg)));
  if (!same && shapes.length > 1)
    shapes.forEach((text, k) => entry(text, svg => svgElement("path", { d: SHAPES[k % SHAPES.length](5), fill: "none", stroke: "currentColor", "stroke-width": 1.5 }, svg)));
  const marks = {
    "Pareto front": svg => svgElement("path", { d: "M-7,5H0V-4H7", fill: "none", stroke: "currentColor" }, svg),
    recommended: svg => svgElement("circle", { r: 6, fill: "none", stroke: "#009e73", "stroke-width": 2.5 }, svg),
    "not to be believed": svg => svgElement("circle", { r: 5, fill: "none", stroke: "currentColor", "stroke-width": 2 }, svg),
  };
  for (const kind of kinds) entry(kind, marks[kind]);
}

// What the table says of a cell, beside its point; a click keeps it there, with its links.
function tell(point, x, y, passing) {
  if (passing && !tip.hidden && tip.className === "") return;
  const row = rowOf[point.cell], list = document.createElement("dl");
  heads.forEach((head, column) => {
    const cell = row.cells[column];
    if (!cell.textContent.trim()) return;
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = head.textContent;
    text.append(...[...cell.childNodes].map(node => node.cloneNode(true)));
    if (head.className === "links") term.className = text.className = "links";
    list.append(term, text);
  });
  tip.replaceChildren(list);
  tip.className = passing ? "passing" : "";
  tip.hidden = false;
  for (const other of rows) other.classList.toggle("shown", !passing && other === row);
  const across = x.at(point.x), down = y.at(point.y), room = 14;
  const start = across + room + tip.offsetWidth <= chart.clientWidth ? across + room : Math.max(0, across - room - tip.offsetWidth);
  tip.style.left = `${Math.min(start, Math.max(0, chart.clientWidth - tip.offsetWidth))}px`;
  const lowest = window.innerHeight - chart.getBoundingClientRect().top - tip.offsetHeight;
  tip.style.top = `${Math.max(0, Math.min(down - tip.offsetHeight / 2, lowest))}px`;
}

document.addEventListener("click", event => { if (!tip.contains(event.target)) tip.hidden = true; });
document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
whenFiltered.push(draw);
// On paper the plot is drawn for the width of a sheet, so that its words are as large as the others.
window.addEventListener("beforeprint", () => { chart.style.width = "700px"; draw(); });
window.addEventListener("afterprint", () => { chart.style.width = ""; draw(); });
let lastWidth = 0;
new ResizeObserver(() => {
  if (chart.clientWidth !== lastWidth) draw(lastWidth = chart.clientWidth);
}).observe(chart);
