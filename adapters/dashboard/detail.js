// What a row of the per-route table opens: charts of its rate, errors and latency, its statuses.

import { Chart, FIRST_BYTE, markers, withFirstBytes } from "./charts.js";
import { full, make, timed, write } from "./format.js";

const CLASSES = {
  "1xx": "informational", "2xx": "success", "3xx": "redirect", "4xx": "client error", "5xx": "server error",
};

/** The live series of a route, as a `Detail` shows it. */
export function liveSteps(told) {
  const rows = withFirstBytes(told.series.map((step) => ({ ...step, at: Date.parse(step.timestamp) / 1000 })));
  const to = Date.parse(told.timestamp) / 1000;
  return { rows, from: to - told.seconds, to, marks: markers(told) };
}

export class Detail {
  #charts;
  #statuses = make("div", { class: "statuses" });
  #cell;
  #ask;
  #shape;
  #shown = null; // {rows, from, to, marks}
  #note = make("p", { class: "quiet", role: "status" });
  #place;
  #asked = 0; // a later question ends the earlier ones
  #again = 0; // when to ask again, by the browser's monotonic clock

  /** `ask()` answers with {rows, from, to, marks, note, again}; `zoomed(span)` is told of a dragged span, [from, to] or null; `shape`: the route's `Shape`. */
  constructor({ ask, zoomed, shape }) {
    this.#ask = ask;
    this.#shape = shape;
    const options = { height: 130, onZoom: zoomed };
    this.#charts = [
      new Chart({
        ...options, title: "Latency of this route", unit: "ms", logarithmic: true,
        lines: [
          { field: "latency_p50_ms", label: "P50", colour: "one" },
          { field: "latency_p95_ms", label: "P95", colour: "two", dash: "dashed" },
          { field: "latency_p99_ms", label: "P99", colour: "three", dash: "dotted" },
          FIRST_BYTE,
        ],
      }),
      new Chart({ ...options, title: "Rate of this route", unit: "a minute", lines: [{ field: "request_rate_rpm", label: "Requests", colour: "accent", fill: true }] }),
      new Chart({ ...options, title: "Errors of this route", unit: "%", lines: [{ field: "error_rate_pct", label: "Errors", colour: "three", fill: true }] }),
    ];
    const charts = this.#charts.map((chart) => chart.element);
    this.#place = make("div", { class: "detail-charts" }, ...charts);
    this.#cell = make("td", {}, make("div", { class: "detail" }, this.#statuses, this.#note, this.#place, shape.element));
    this.row = make("tr", { class: "opened" }, this.#cell);
  }

  /** Ask for the numbers, unless those that are there will do for a while; `anew`: they will not. */
  async refresh(zoom, anew = false) {
    this.#shape.refresh(zoom);
    if (!anew && performance.now() < this.#again) return;
    const mine = (this.#asked += 1);
    const told = await this.#ask().catch(() => null);
    if (!told || mine !== this.#asked || !this.#charts.length) return;
    this.#again = performance.now() + (told.again ?? 0);
    write(this.#note, told.note ?? "");
    this.#note.hidden = !told.note;
    this.#place.hidden = Boolean(told.note);
    this.#shown = told;
    this.show(zoom);
  }

  /** Show what was loaded, or the part of it that was zoomed to. */
  show(zoom) {
    this.#shape.show(zoom);
    if (!this.#shown) return;
    const { rows, from, to, marks } = this.#shown;
    const [begin, end] = zoom && zoom[1] > from && zoom[0] < to ? zoom : [from, to];
    for (const chart of this.#charts) chart.show(rows, begin, end, marks);
  }

  restyle() {
    for (const part of [...this.#charts, this.#shape]) part.restyle();
  }

  destroy() {
    for (const part of [...this.#charts, this.#shape]) part.destroy();
    this.#charts = [];
    this.row.remove();
  }

  /** `columns` so many that the row goes below; `rest`: what the table does not show at this width. */
  fill(row, columns, rest) {
    this.#cell.colSpan = columns;
    const others = make("p", { class: "rest" }, rest.join(" · "));
    // A history has neither statuses nor first bytes of single routes.
    this.#statuses.replaceChildren(...(row.statuses ? told(row) : []), others);
    this.#statuses.hidden = !row.statuses && !rest.length;
    this.#statuses.parentElement.classList.toggle("whole", this.#statuses.hidden);
  }
}

/** The statuses of a row, and its time to first byte. */
function told(row) {
  const total = Object.values(row.statuses).reduce((sum, count) => sum + count, 0);
  const bar = make("div", { class: "split", "aria-hidden": "true" });
  const list = make("ul", {});
  for (const [name, count] of Object.entries(row.statuses)) {
    const part = make("span", { class: `s${name[0]}` });
    part.style.flexGrow = String(count);
    bar.append(part);
    const share = total ? ` · ${full(Math.round((1000 * count) / total) / 10)} %` : "";
    list.append(make("li", {}, make("span", { class: `key s${name[0]}`, "aria-hidden": "true" }), `${name} ${CLASSES[name] ?? ""} `, make("b", {}, full(count)), share));
  }
  const first = [50, 95, 99].map((percent) => `P${percent} ${timed(row[`latency_ttfb_p${percent}_ms`])}`);
  return [
    make("p", { class: "title" }, "Statuses"), bar, list,
    make("p", { class: "title" }, "Time to first byte"), make("p", { class: "first-byte" }, first.join(" · ")),
  ];
}
