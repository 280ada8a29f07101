// Charts by uPlot, and where it was not built in, the same numbers as tables.

import { compact, full, make, NONE, time, write } from "./format.js";

const COLOURS = { accent: "--accent", one: "--line-1", two: "--line-2", three: "--line-3" };
const DASHES = { solid: undefined, dashed: [7, 4], dotted: [2, 3] };

export const hasCharts = typeof globalThis.uPlot === "function";

/** One figure. `lines`: [{field, label, colour, dash, fill, spanGaps}]; `unit` follows each number. */
export class Chart {
  #lines;
  #unit;
  #plot = null;
  #box;
  #summary;
  #legend = new Map();
  #data = null;
  #markers = [];

  constructor({ title, unit, lines, sync, height = 180, wide = false }) {
    this.#lines = lines;
    this.#unit = unit;
    this.sync = sync;
    this.height = height;
    const legend = make("ul", { class: "legend" });
    for (const line of lines) {
      const value = make("b", {}, NONE);
      this.#legend.set(line.field, value);
      const key = make("span", { class: `key ${line.colour} ${line.dash ?? "solid"}`, "aria-hidden": "true" });
      legend.append(make("li", {}, key, `${line.label} `, value, ` ${unit}`));
    }
    this.#box = make("div", { class: "plot" });
    this.#summary = make("p", { class: "hidden" });
    const caption = make("figcaption", {}, make("span", { class: "title" }, title), legend);
    this.element = make("figure", { class: wide ? "card chart wide" : "card chart" }, caption, this.#box, this.#summary);
    if (hasCharts) {
      this.#box.setAttribute("aria-hidden", "true"); // the summary says it in words
      this.observer = new ResizeObserver(() => this.#resize());
      this.observer.observe(this.#box);
    }
  }

  /** Show rows with `at` (Unix seconds) and the lines' fields, between two moments. */
  show(rows, from, to, markers = []) {
    const columns = this.#lines.map(({ field }) => rows.map((row) => row[field] ?? null));
    this.#data = [rows.map((row) => row.at), ...columns];
    this.#markers = markers.filter(({ at }) => at >= from && at <= to);
    this.range = [from, to];
    this.#describe(columns);
    if (!hasCharts) this.#tabulate(columns);
    else if (this.#plot) {
      this.#plot.batch(() => {
        this.#plot.setData(this.#data, false);
        this.#plot.setScale("x", { min: from, max: to });
      });
    } else this.#draw();
  }

  /** Draw anew, in the colours of the theme as it is now. */
  restyle() {
    this.#plot?.destroy();
    this.#plot = null;
    if (hasCharts && this.#data) this.#draw();
  }

  destroy() {
    this.observer?.disconnect();
    this.#plot?.destroy();
    this.element.remove();
  }

  #describe(columns) {
    const words = this.#lines.map(({ field, label }, index) => {
      const known = columns[index].filter((value) => value !== null);
      write(this.#legend.get(field), known.length ? full(known.at(-1)) : NONE);
      if (!known.length) return `${label}: no numbers yet.`;
      const [low, high] = [Math.min(...known), Math.max(...known)].map(full);
      return `${label}: now ${full(known.at(-1))} ${this.#unit}, lowest ${low}, highest ${high}.`;
    });
    const marks = this.#markers.map(({ label, at }) => `${label} at ${time(at * 1000)}.`);
    write(this.#summary, [...words, ...marks].join(" "));
    this.element.dataset.points = String(this.#data[0].length);
  }

  #tabulate(columns) {
    const head = make("tr", {}, make("td"), ...["lowest", "average", "highest"].map((name) => make("th", { scope: "col" }, name)));
    const rows = this.#lines.map(({ label }, index) => {
      const known = columns[index].filter((value) => value !== null);
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
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const quiet = colour("--quiet");
    const axis = {
      stroke: quiet,
      font: "11px system-ui, sans-serif",
      grid: { stroke: colour("--grid"), width: 1 },
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
        drag: { x: false, y: false },
      },
      scales: {
        x: { range: () => this.range },
        y: { range: (_, low, high) => [0, nice(high)] },
      },
      axes: [
        { ...axis, size: 28, space: width > 500 ? 90 : 56, values: (_, splits) => splits.map((at) => time(at * 1000).slice(0, splits[1] - splits[0] < 60 ? 8 : 5)) },
        { ...axis, size: 46, space: 34, values: (_, splits) => splits.map(compact) },
      ],
      series: [
        {},
        ...this.#lines.map(({ label, colour: name, dash, fill, spanGaps = false }) => {
          const stroke = colour(COLOURS[name]);
          return {
            label,
            stroke,
            width: 1.75,
            dash: DASHES[dash ?? "solid"],
            fill: fill ? `${stroke}22` : undefined,
            points: { show: true, size: 4, fill: stroke, filter: (plot, index) => alone(plot.data[index], spanGaps) },
            spanGaps,
          };
        }),
      ],
      hooks: {
        setCursor: [(plot) => this.#hover(plot.cursor.idx)],
        draw: [(plot) => this.#mark(plot, colour("--mark"))],
      },
    };
    this.#plot = new globalThis.uPlot(options, this.#data, this.#box);
  }

  #hover(index) {
    this.#lines.forEach(({ field }, line) => {
      const column = this.#data[line + 1];
      const value = index == null ? column.findLast((each) => each !== null) : column[index];
      write(this.#legend.get(field), full(value ?? null));
    });
  }

  #mark(plot, colour) {
    const { ctx } = plot;
    const scale = devicePixelRatio || 1;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour;
    ctx.lineWidth = scale;
    ctx.setLineDash([4 * scale, 3 * scale]);
    ctx.font = `${11 * scale}px system-ui, sans-serif`;
    ctx.textBaseline = "top";
    for (const { at, label } of this.#markers) {
      const x = plot.valToPos(at, "x", true);
      ctx.beginPath();
      ctx.moveTo(x, plot.bbox.top);
      ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
      ctx.stroke();
      const room = plot.bbox.left + plot.bbox.width - x;
      ctx.textAlign = room < 50 * scale ? "right" : "left";
      ctx.fillText(label, x + (room < 50 * scale ? -4 : 4) * scale, plot.bbox.top + 2 * scale);
    }
    ctx.restore();
  }
}

/** Places of the values that no line leads to or from. */
function alone(column, spanGaps) {
  const known = column.flatMap((value, index) => (value === null ? [] : [index]));
  if (spanGaps) return known.length === 1 ? known : [];
  return known.filter((index) => (column[index - 1] ?? null) === null && (column[index + 1] ?? null) === null);
}

/** The top of an axis from 0: a little room above the highest value. */
function nice(high) {
  if (!(high > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(high * 1.05));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((each) => each * unit >= high * 1.05) * unit;
}
