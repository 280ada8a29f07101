// The per-route table: sorted by any column, filtered by text, and a row opens its own detail.

import { Chart, markers } from "./charts.js";
import { fixed, full, make, write } from "./format.js";

const COLUMNS = [
  { key: "route", label: "Route", text: true },
  { key: "requests", label: "Requests", format: full },
  { key: "error_rate_pct", label: "Errors %" },
  { key: "latency_p50_ms", label: "P50 ms", wide: true },
  { key: "latency_p95_ms", label: "P95 ms" },
  { key: "latency_p99_ms", label: "P99 ms", wide: true },
  { key: "latency_max_ms", label: "Slowest ms", wide: true },
];
const CLASSES = {
  "1xx": "informational", "2xx": "success", "3xx": "redirect", "4xx": "client error", "5xx": "server error",
};
// Where the stylesheet hides the columns that are for wide screens.
const NARROW = matchMedia("(max-width: 699px)");
// Beyond so many characters a template is cut on the page; its title has more of it.
const LONGEST = 300;

export class Routes {
  #rows = null; // until they are told
  #sort = { key: "requests", up: false };
  #filter = "";
  #open = null; // key of the row whose detail is shown
  #detail = null;
  #chart = null;
  #elements = new Map();
  #heads = new Map();
  #body = make("tbody");
  #none = make("p", { class: "quiet" });
  #count;
  #ask;

  /** `ask(method, route)` answers with that route's series. */
  constructor({ place, filter, count, ask }) {
    this.#count = count;
    this.#ask = ask;
    const head = make("tr");
    for (const { key, label, wide, text } of COLUMNS) {
      const arrow = make("span", { class: "arrow", "aria-hidden": "true" });
      // Beside the numbers it points away from them: heads end where their numbers do.
      const button = make("button", { type: "button" }, ...(text ? [label, arrow] : [arrow, label]));
      button.addEventListener("click", () => this.#sortBy(key, text));
      const cell = make("th", { scope: "col", class: wide ? "wide" : undefined, "data-key": key }, button);
      this.#heads.set(key, cell);
      head.append(cell);
    }
    place.append(make("table", { class: "routes" }, make("thead", {}, head), this.#body), this.#none);
    filter.addEventListener("input", () => {
      this.#filter = filter.value.trim().toLowerCase();
      this.#render();
    });
    NARROW.addEventListener("change", () => this.#render());
    this.#render();
  }

  show(rows) {
    this.#rows = rows;
    this.#render();
    if (this.#detail?.row.isConnected) this.#refresh();
  }

  restyle() {
    this.#chart?.restyle();
  }

  #sortBy(key, text) {
    const up = this.#sort.key === key ? !this.#sort.up : Boolean(text);
    this.#sort = { key, up };
    this.#render();
  }

  #wanted() {
    const { key, up } = this.#sort;
    const rows = (this.#rows ?? []).filter(({ method, route }) => `${method} ${route}`.toLowerCase().includes(this.#filter));
    const order = (a, b) => {
      if (key === "error_rate_pct") return byErrors(a, b, up);
      const by = key === "route" ? byName(a, b) : a[key] - b[key];
      return (up ? by : -by) || byName(a, b);
    };
    return rows.sort(order);
  }

  #render() {
    for (const [key, cell] of this.#heads) {
      const sorted = this.#sort.key === key;
      if (sorted) cell.setAttribute("aria-sort", this.#sort.up ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
    const rows = this.#wanted();
    const shown = [];
    const kept = new Map();
    for (const row of rows) {
      const key = nameOf(row);
      const element = this.#elements.get(key) ?? this.#makeRow(row);
      kept.set(key, element);
      this.#fill(element, row);
      shown.push(element.row);
      if (this.#open === key && this.#detail) {
        this.#detail.cell.colSpan = COLUMNS.filter(({ wide }) => !wide || !NARROW.matches).length;
        shown.push(this.#detail.row);
        this.#fillStatuses(row);
      }
    }
    this.#elements = kept;
    shown.forEach((element, index) => {
      const there = () => this.#body.children[index];
      // What is moved loses the focus: so the row that has it stays, and those in its way go.
      if (element.contains(document.activeElement)) while (there() !== element) there().remove();
      if (there() !== element) this.#body.insertBefore(element, there() ?? null);
    });
    while (this.#body.children.length > shown.length) this.#body.lastChild.remove();
    if (!this.#rows) {
      write(this.#none, "Loading…");
      return;
    }
    const all = this.#rows.length;
    write(this.#count, rows.length === all ? `${all} in the window` : `${rows.length} of ${all} in the window`);
    write(this.#none, rows.length ? "" : all ? "No route matches the filter." : "No routes in the window.");
  }

  #makeRow(row) {
    const key = nameOf(row);
    const text = row.route.length > LONGEST ? `${row.route.slice(0, LONGEST)}…` : row.route;
    const button = make(
      "button", { type: "button", class: "name", "aria-expanded": "false", title: row.route.slice(0, 1000) },
      make("span", { class: "method" }, row.method), make("bdi", { class: "path" }, text),
    );
    button.addEventListener("click", () => this.#toggle(key, row));
    const cells = COLUMNS.map(({ key: column, wide }) => {
      if (column === "route") return make("th", { scope: "row" }, button);
      return make("td", { class: wide ? "wide" : undefined, "data-key": column });
    });
    const element = make("tr", {}, ...cells);
    return { row: element, cells, button };
  }

  #fill({ row, cells, button }, values) {
    COLUMNS.forEach(({ key, format = fixed }, index) => {
      if (key !== "route") write(cells[index], format(values[key]));
    });
    row.classList.toggle("failing", ownErrors(values) > 0);
    button.setAttribute("aria-expanded", String(this.#open === nameOf(values)));
  }

  #toggle(key, row) {
    this.#chart?.destroy();
    this.#detail?.row.remove();
    this.#chart = this.#detail = null;
    this.#open = this.#open === key ? null : key;
    if (this.#open) {
      this.#chart = new Chart({
        title: "Latency of this route",
        unit: "ms",
        height: 150,
        logarithmic: true,
        lines: [
          { field: "latency_p50_ms", label: "P50", colour: "one" },
          { field: "latency_p95_ms", label: "P95", colour: "two", dash: "dashed" },
          { field: "latency_p99_ms", label: "P99", colour: "three", dash: "dotted" },
        ],
      });
      const statuses = make("div", { class: "statuses" });
      const cell = make("td", {}, make("div", { class: "detail" }, statuses, this.#chart.element));
      this.#detail = { row: make("tr", { class: "opened" }, cell), cell, statuses, method: row.method, route: row.route };
      this.#refresh();
    }
    this.#render();
  }

  async #refresh() {
    const detail = this.#detail;
    if (!detail) return;
    const told = await this.#ask(detail.method, detail.route).catch(() => null);
    if (!told || detail !== this.#detail) return;
    const rows = told.series.map((step) => ({ ...step, at: Date.parse(step.timestamp) / 1000 }));
    const end = Date.parse(told.timestamp) / 1000;
    this.#chart.show(rows, end - told.seconds, end, markers(told));
  }

  #fillStatuses(row) {
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
    const rest = COLUMNS.filter(({ wide }) => wide).map(({ key, label }) => `${label.replace(" ms", "")} ${full(row[key])} ms`);
    const first = [50, 95, 99].map((percent) => `P${percent} ${full(row[`latency_ttfb_p${percent}_ms`])} ms`);
    this.#detail.statuses.replaceChildren(
      make("p", { class: "title" }, "Statuses"), bar, list,
      make("p", { class: "title" }, "Time to first byte"), make("p", { class: "first-byte" }, first.join(" · ")),
      make("p", { class: "narrow-only" }, rest.join(" · ")),
    );
  }
}

/** The order of rows that are equal otherwise, as in the API. */
function byName(a, b) {
  const [x, y] = a.route === b.route ? [a.method, b.method] : [a.route, b.route];
  return x < y ? -1 : Number(x > y);
}

function nameOf({ method, route }) {
  return `${method} ${route}`;
}

/** The share of a row's requests that the server itself failed. */
function ownErrors({ statuses, requests }) {
  return requests ? (statuses["5xx"] ?? 0) / requests : 0;
}

/** What the server failed comes first, then what clients did; what is no route of the app comes last. */
function byErrors(a, b, up) {
  const strays = Number(a.route === "<unmatched>") - Number(b.route === "<unmatched>");
  const by = ownErrors(a) - ownErrors(b) || a.error_rate_pct - b.error_rate_pct;
  return strays || (up ? by : -by) || byName(a, b);
}
