// Charts by uPlot, and where it was not built in, the same numbers as tables.

import { paint } from "./canvas.js";
import { compact, dated, full, make, measured, NONE, tick, write } from "./format.js";

const COLOURS = { accent: "--accent", one: "--line-1", two: "--line-2", three: "--line-3", quiet: "--quiet", bad: "--bad" };
const DASHES = { solid: undefined, dashed: [7, 4], dotted: [2, 3] };

const LABEL_LINES = 4; // of the labels of marks
const LEAST = 0.01; // where a logarithmic axis begins: the last decimal that is told

export const hasCharts = typeof globalThis.uPlot === "function";

/** How charts that may be `logarithmic` are drawn. */
export const looks = { log: false };

/** What the charts mark, of what the server tells of its series. */
export function markers({ started, reset }) {
  const marks = [{ at: Date.parse(started) / 1000, label: "start" }];
  if (reset) marks.push({ at: Date.parse(reset) / 1000, label: "reset" });
  return marks;
}

/** A row of the history with what was counted in its own time, in place of the window at its end. */
export function minuteOf(row) {
  const at = Date.parse(row.timestamp) / 1000;
  if (row.minute_seconds === undefined) return { ...row, at };
  const own = Object.entries(row).filter(([name]) => name.startsWith("minute_"));
  const isIdle = !row.minute_requests;
  const values = own.map(([name, value]) => [name.slice(7), isIdle && name.includes("latency") ? null : value]);
  const minute = { ...row, ...Object.fromEntries(values), at };
  if (minute.statuses_2xx === undefined) return minute; // of the time before they were kept
  const classes = ["1xx", "2xx", "3xx", "4xx", "5xx"];
  return { ...minute, ...byClass({ ...minute, statuses: Object.fromEntries(classes.map((name) => [name, minute[`statuses_${name}`]])) }) };
}

/** Lines of what `byClass` returns: red is for the server's own errors, and what clients caused is quiet. */
export const CLASSES = [
  { field: "2xx", label: "2xx", colour: "one", fill: true },
  { field: "3xx", label: "1xx, 3xx", colour: "two", dash: "dashed", fill: true },
  { field: "4xx", label: "4xx", colour: "quiet", dash: "dotted", fill: true },
  { field: "5xx", label: "5xx", colour: "bad", fill: true },
];

/** The line of the time to first byte: a legend has it where something streamed. */
export const FIRST_BYTE = { field: "first_byte", label: "First byte P95", colour: "quiet", dash: "solid", spanGaps: true, optional: true };

/** Rows with that line's field, where any of them tells of a stream; all others are measured by the latency. */
export function withFirstBytes(rows) {
  if (!rows.some(({ streams }) => streams)) return rows;
  return rows.map((row) => ({ ...row, first_byte: row.latency_ttfb_p95_ms }));
}

/** The answers of a step by the class of their status, a minute. */
export function byClass({ statuses = {}, requests, request_rate_rpm: rate }) {
  const each = (...names) => names.reduce((sum, name) => sum + (statuses[name] ?? 0), 0) * (requests ? rate / requests : 0);
  return { "2xx": each("2xx"), "3xx": each("1xx", "3xx"), "4xx": each("4xx"), "5xx": each("5xx") };
}

/**
 * One figure. `lines`: [{field, label, colour, dash, fill, spanGaps, optional}]; `unit` follows each number.
 * An `optional` line is in the legend while it has numbers.
 * `stacked`: each line stands on those behind it.
 *
 * The mouse moves along its points, and so do the arrow keys.
 */
export class Chart {
  #lines;
  #unit;
  #log;
  #stacked;
  #onZoom;
  #dragging = false;
  #plot = null;
  #box;
  #summary;
  #at;
  #legend = new Map();
  #shown = null; // what `show` was given
  #rows = [];
  #columns = []; // a null where a line breaks, undefined where it goes on without a point
  #data = null;
  #markers = [];

  constructor({ title, unit, lines, sync, height = 180, wide = false, logarithmic = false, stacked = false, onZoom }) {
    this.#lines = lines;
    this.#unit = unit;
    this.#log = logarithmic;
    this.#stacked = stacked;
    this.#onZoom = onZoom;
    this.sync = sync;
    this.height = height;
    const legend = make("ul", { class: "legend" });
    for (const line of lines) {
      const value = make("b", {}, NONE);
      const told = make("i", {}, unit);
      this.#legend.set(line.field, [value, told]);
      const key = make("span", { class: `key ${line.colour} ${line.dash ?? "solid"}`, "aria-hidden": "true" });
      legend.append(make("li", { hidden: line.optional && "" }, key, `${line.label} `, value, " ", told));
    }
    this.#box = make("div", { class: "plot" });
    this.#summary = make("p", { class: "hidden" });
    this.#at = make("span", { class: "at" });
    const caption = make("figcaption", {}, make("span", { class: "title" }, title, this.#at), legend);
    this.element = make("figure", { class: `card chart ${stacked ? "full" : wide ? "wide" : ""}` }, caption, this.#box, this.#summary);
    if (hasCharts) {
      const slider = { role: "slider", tabindex: "0", "aria-label": `${title}, point by point`, "aria-valuenow": "0" };
      for (const [name, value] of Object.entries(slider)) this.#box.setAttribute(name, value);
      this.#box.addEventListener("keydown", (event) => this.#step(event));
      this.#box.addEventListener("mousedown", () => (this.#dragging = true));
      this.#box.addEventListener("dblclick", () => this.#onZoom?.(null));
      this.#box.addEventListener("blur", () => this.#plot?.setCursor({ left: -10, top: -10 }, true, true));
      this.observer = new ResizeObserver(() => this.#resize());
      this.observer.observe(this.#box);
    }
  }

  /**
   * Show rows with `at` (Unix seconds) and the lines' fields, between two moments. A row that is a
   * `gap` has no fields, and breaks all lines.
   */
  show(rows, from, to, marks = []) {
    this.#shown = [rows, from, to, marks];
    this.#rows = rows;
    this.#columns = this.#lines.map(({ field, spanGaps }) =>
      rows.map((row) => row[field] ?? (spanGaps && !row.gap ? undefined : null)));
    const drawn = (value) => (typeof value === "number" && this.#logarithmic ? Math.max(value, LEAST) : value);
    const columns = this.#stacked ? stack(this.#columns) : this.#columns;
    this.#data = [rows.map((row) => row.at), ...columns.map((column) => column.map(drawn))];
    this.#markers = marks.filter(({ at }) => at >= from && at <= to);
    this.range = [from, to];
    this.#describe();
    if (!hasCharts) this.#tabulate();
    else if (this.#plot) {
      this.#plot.batch(() => {
        this.#plot.setData(this.#data, false);
        this.#plot.setScale("x", { min: from, max: to });
      });
    } else this.#draw();
  }

  /** Draw anew, in the colours and on the scale of now. */
  restyle() {
    this.#plot?.destroy();
    this.#plot = null;
    if (this.#shown) this.show(...this.#shown);
  }

  destroy() {
    this.observer?.disconnect();
    this.#plot?.destroy();
    this.element.remove();
  }

  /** The fields of its lines. */
  get fields() {
    return this.#lines.map(({ field }) => field);
  }

  get #logarithmic() {
    return this.#log && looks.log;
  }

  #known(line) {
    return this.#columns[line].filter((value) => value != null);
  }

  #said(value) {
    return measured(value, this.#unit).join(" ");
  }

  #legendOf(field, value) {
    const [number, unit] = this.#legend.get(field);
    const told = measured(value, this.#unit);
    write(number, told[0]);
    write(unit, told[1]);
  }

  #describe() {
    const words = this.#lines.map(({ field, label, optional }, index) => {
      const known = this.#known(index);
      this.#legendOf(field, known.at(-1));
      if (optional) {
        this.#legend.get(field)[0].parentElement.hidden = !known.length;
        if (!known.length) return "";
      }
      if (!known.length) return `${label}: no numbers yet.`;
      const [now, low, high] = [known.at(-1), Math.min(...known), Math.max(...known)].map((value) => this.#said(value));
      return `${label}: now ${now}, lowest ${low}, highest ${high}.`;
    });
    const marks = this.#markers.map(({ label, at }) => `${label} at ${dated(at * 1000)}.`);
    write(this.#summary, [...words, ...marks].filter(Boolean).join(" "));
    this.element.dataset.points = String(this.#rows.filter(({ gap }) => !gap).length);
    if (hasCharts) this.#box.setAttribute("aria-valuemax", String(Math.max(this.#rows.length - 1, 0)));
  }

  #tabulate() {
    const head = make("tr", {}, make("td"), ...["lowest", "average", "highest"].map((name) => make("th", { scope: "col" }, name)));
    const rows = this.#lines.flatMap(({ label, optional }, index) => {
      const known = this.#known(index);
      if (optional && !known.length) return [];
      const sum = known.reduce((total, value) => total + value, 0);
      const cells = known.length ? [Math.min(...known), sum / known.length, Math.max(...known)] : [null, null, null];
      return make("tr", {}, make("th", { scope: "row" }, label), ...cells.map((value) => make("td", {}, full(value))));
    });
    this.#box.replaceChildren(make("table", { class: "stand-in" }, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  #resize() {
    const width = this.#box.clientWidth;
    if (this.#plot && width) this.#plot.setSize({ width, height: this.height });
    else if (!this.#plot && width && this.#data) this.#draw();
  }

  #draw() {
    const width = this.#box.clientWidth;
    if (!width) return;
    const axis = {
      stroke: paint("--quiet"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: paint("--grid"), width: 1 },
      ticks: { show: false },
    };
    const options = {
      width,
      height: this.height,
      padding: [10, 22, 0, 0],
      legend: { show: false },
      cursor: {
        sync: this.sync ? { key: this.sync } : undefined,
        points: { size: 7 },
        y: false,
        drag: { x: Boolean(this.#onZoom), y: false, setScale: false },
      },
      scales: {
        x: { range: () => this.range },
        y: this.#logarithmic
          ? { distr: 3, range: (_, low, high) => powers(low, high) }
          : { range: (_, low, high) => [0, nice(high)] },
      },
      axes: [
        { ...axis, size: 22, space: width > 500 ? 90 : 40, values: (_, splits) => splits.map((at) => tick(at * 1000, splits[1] - splits[0])) },
        { ...axis, grid: { ...axis.grid, ...(this.#logarithmic && { filter: decades }) }, size: 46, space: 34, values: (_, splits) => splits.map((value) => (value === null ? "" : this.#short(value))) },
      ],
      series: [
        {},
        ...this.#lines.map(({ label, colour: name, dash, fill }) => {
          const stroke = paint(COLOURS[name]);
          return {
            label,
            stroke,
            width: 1.75,
            dash: DASHES[dash ?? "solid"],
            fill: fill ? `${stroke}${this.#stacked ? "55" : "22"}` : undefined,
            points: { show: true, size: 4, fill: stroke, filter: (plot, index) => alone(plot.data[index]) },
          };
        }),
      ],
      bands: this.#stacked ? this.#lines.slice(1).map((_, line) => ({ series: [line + 1, line + 2] })) : undefined,
      hooks: {
        setSelect: [(plot) => this.#select(plot)],
        setCursor: [(plot) => this.#hover(plot.cursor.idx)],
        draw: [(plot) => drawMarks(plot.ctx, plot.bbox, this.#markers, (at) => plot.valToPos(at, "x", true), devicePixelRatio || 1)],
      },
    };
    this.#plot = new globalThis.uPlot(options, this.#data, this.#box);
  }

  #step(event) {
    const last = this.#rows.length - 1;
    const at = this.#plot?.cursor.idx ?? last + 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0 || !this.#plot) return;
    event.preventDefault();
    const index = Math.min(Math.max(to, 0), last);
    const left = this.#plot.valToPos(this.#data[0][index], "x");
    this.#plot.setCursor({ left, top: 0 }, true, true);
    const said = ({ label, optional }, line) => {
      const value = this.#columns[line][index];
      return optional && value == null ? [] : `${label} ${this.#said(value)}`;
    };
    const words = this.#lines.flatMap(said);
    this.#box.setAttribute("aria-valuenow", String(index));
    this.#box.setAttribute("aria-valuetext", `${dated(this.#rows[index].at * 1000)}: ${words.join(", ")}`);
  }

  #short(value) {
    return this.#unit === "ms" && value >= 1000 ? `${compact(value / 1000)} s` : compact(value);
  }

  /** A span was dragged: in this chart, or in one that moves with it. */
  #select(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    if (this.#dragging) this.#onZoom?.([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
    this.#dragging = false;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  }

  #hover(index) {
    write(this.#at, index == null ? "" : dated(this.#rows[index].at * 1000));
    this.#lines.forEach(({ field }, line) => {
      const value = index == null ? this.#known(line).at(-1) : this.#columns[line][index];
      this.#legendOf(field, value);
    });
  }
}

/**
 * Draw marks into a box of a canvas.
 *
 * `box`: {left, top, width, height}, and `xOf(at)`, in the canvas's units, `scale` of which are a pixel.
 * Labels that would overlap stand below each other, those for which there is no room are left out.
 */
export function drawMarks(ctx, { left, top, width, height }, marks, xOf, scale) {
  ctx.save();
  ctx.lineWidth = scale;
  ctx.setLineDash([4 * scale, 3 * scale]);
  ctx.font = `${11 * scale}px system-ui, sans-serif`;
  ctx.textBaseline = "top";
  ctx.textAlign = "left";
  const lines = Array.from({ length: LABEL_LINES }, () => []); // where labels stand in each line
  for (const { at, label, bad } of marks) {
    ctx.strokeStyle = ctx.fillStyle = paint(bad ? "--bad" : "--mark");
    const x = xOf(at);
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, top + height);
    ctx.stroke();
    const wide = ctx.measureText(label).width;
    const from = left + width - x < wide + 8 * scale ? x - wide - 4 * scale : x + 4 * scale;
    const line = lines.findIndex((ends) => ends.every(([begin, end]) => from > end || from + wide < begin));
    if (line < 0) continue;
    lines[line].push([from, from + wide]);
    ctx.fillText(label, from, top + (2 + 13 * line) * scale);
  }
  ctx.restore();
}

/** The columns, each with those behind it added. */
function stack(columns) {
  return columns.map((column, line) =>
    column.map((value, index) => (value == null ? value : columns.slice(line).reduce((sum, each) => sum + each[index], 0))));
}

/** Places of the values that no line leads to or from. */
function alone(column) {
  const ends = column.flatMap((value, index) => (value === undefined ? [] : [index]));
  return ends.filter((index, place) =>
    column[index] !== null && (column[ends[place - 1]] ?? null) === null && (column[ends[place + 1]] ?? null) === null);
}

/** A logarithmic axis around the values, from a power of ten to another. */
function powers(low, high) {
  const bottom = Math.floor(Math.log10(low ?? 1));
  return [10 ** bottom, 10 ** Math.max(Math.ceil(Math.log10(high ?? 10)), bottom + 1)];
}

/** Where a logarithmic axis has lines. */
function decades(_, splits) {
  return splits.map((value) => (Number.isInteger(Math.log10(value)) ? value : null));
}

/** The top of an axis from 0: a little room above the highest value. */
function nice(high) {
  if (!(high > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(high * 1.05));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((each) => each * unit >= high * 1.05) * unit;
}
