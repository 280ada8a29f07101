// The per-route table: sorted by any column, filtered by text, and a row opens its own detail.

import { Detail } from "./detail.js";
import { cut, fixed, fixedTime, full, make, timed, write } from "./format.js";
import { allInAddress, inAddress, putInAddress } from "./settings.js";

const COLUMNS = [
  { key: "route", label: "Route", text: true },
  { key: "requests", label: "Requests", format: full },
  { key: "request_rate_rpm", label: "Rate / min", wide: true, wider: true },
  { key: "error_rate_pct", label: "Errors %" },
  { key: "latency_p50_ms", label: "P50 ms", wide: true, format: fixedTime },
  { key: "latency_p95_ms", label: "P95 ms", format: fixedTime },
  { key: "latency_p99_ms", label: "P99 ms", wide: true, format: fixedTime },
  { key: "latency_max_ms", label: "Slowest ms", wide: true, format: fixedTime },
  { key: "time_share_pct", label: "Time spent %", wide: true, wider: true },
];
// Where the stylesheet hides the columns that are for wide screens.
const NARROW = matchMedia("(max-width: 699px)");
const MIDDLE = matchMedia("(max-width: 1199px)");
// Beyond so many characters a template is cut on the page; its title has more of it.
const LONGEST = 300;
const LONGEST_NARROW = 48; // on a phone, where it is cut in its middle
const MOST_OPEN = 20; // rows that the address names
const USUAL = { key: "requests", up: false };

export class Routes {
  #rows = null; // of the live window, until they are told
  #span = null; // {rows, name} of a longer span
  #sort = USUAL;
  #filter = "";
  #open = new Map(); // key of an open row -> its detail, null until it is made
  #elements = new Map();
  #heads = new Map();
  #body = make("tbody");
  #none = make("p", { class: "quiet" });
  #count;
  #ask;
  #zoomed;
  #shapeOf;
  #input;
  zoom = null; // the span that was dragged, or null

  /** `ask(method, route)` answers with what a `Detail` shows of that route; `zoomed(span)` is told of a dragged one; `shapeOf(route)` makes a `Shape`. */
  constructor({ place, filter, count, ask, zoomed, shapeOf }) {
    this.#shapeOf = shapeOf;
    this.#input = filter;
    this.#zoomed = zoomed;
    this.#count = count;
    this.#ask = ask;
    const head = make("tr");
    for (const { key, label, wide, wider, text } of COLUMNS) {
      const arrow = make("span", { class: "arrow", "aria-hidden": "true" });
      // Beside the numbers it points away from them: heads end where their numbers do.
      const button = make("button", { type: "button" }, ...(text ? [label, arrow] : [arrow, label]));
      button.addEventListener("click", () => this.#sortBy(key, text));
      const cell = make("th", { scope: "col", class: wider ? "wide wider" : wide ? "wide" : undefined, "data-key": key }, button);
      this.#heads.set(key, cell);
      head.append(cell);
    }
    place.append(make("table", { class: "routes" }, make("thead", {}, head), this.#body), this.#none);
    filter.addEventListener("input", () => {
      this.#filter = filter.value.trim().toLowerCase();
      putInAddress("filter", filter.value.trim());
      this.#render();
    });
    for (const query of [NARROW, MIDDLE]) {
      query.addEventListener("change", () => {
        this.#elements.clear();
        this.#render();
      });
    }
    this.apply();
  }

  /** Take sort, filter and open rows of the address. */
  apply() {
    const [, down, key] = /^(-?)(\w+)$/.exec(inAddress("sort") ?? "") ?? [];
    this.#sort = COLUMNS.some((column) => column.key === key) ? { key, up: !down } : USUAL;
    const filter = inAddress("filter") ?? "";
    if (this.#input.value.trim() !== filter) this.#input.value = filter;
    this.#filter = filter.toLowerCase();
    const wanted = new Set(allInAddress("open").slice(0, MOST_OPEN));
    for (const known of [...this.#open.keys()]) if (!wanted.has(known)) this.#close(known);
    for (const each of wanted) if (!this.#open.has(each)) this.#open.set(each, null);
    this.#render();
  }

  /** Show a span that was dragged; null: all there is. */
  zoomTo(span) {
    this.zoom = span;
    for (const detail of this.#open.values()) detail?.show(span);
  }

  /** Show the rows of a longer span, which has a name; null: those of the live window. */
  over(rows, name) {
    this.#span = rows && { rows, name };
    this.#render();
  }

  /** The span is another one: so are the numbers of the open rows. */
  reload() {
    for (const detail of this.#open.values()) detail?.refresh(null, true);
  }

  show(rows) {
    this.#rows = rows;
    this.#render();
    for (const detail of this.#open.values()) if (detail?.row.isConnected) detail.refresh(this.zoom);
  }

  /** Lead to the row with most errors, of a route where one is given, and open it. */
  goToErrors(route) {
    const fitting = (this.#all ?? []).filter((row) => !route || row.route === route).sort((a, b) => byErrors(a, b, false));
    const key = fitting.length ? nameOf(fitting[0]) : "";
    if (key && !this.#elements.has(key)) {
      this.#input.value = "";
      this.#input.dispatchEvent(new Event("input")); // the filter hides it
    }
    const one = this.#elements.get(key);
    if (one && !this.#open.has(key)) this.#toggle(key);
    (one?.button ?? this.#input).focus({ preventScroll: true });
    (one?.row ?? this.#input).scrollIntoView({ block: "start" });
  }

  restyle() {
    for (const detail of this.#open.values()) detail?.restyle();
  }

  #sortBy(key, text) {
    const up = this.#sort.key === key ? !this.#sort.up : Boolean(text);
    this.#sort = { key, up };
    putInAddress("sort", key === USUAL.key && up === USUAL.up ? null : `${up ? "" : "-"}${key}`);
    this.#render();
  }

  get #all() {
    return this.#span?.rows ?? this.#rows;
  }

  #wanted() {
    const { key, up } = this.#sort;
    const rows = (this.#all ?? []).filter(({ method, route }) => `${method} ${route}`.toLowerCase().includes(this.#filter));
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
      if (this.#open.has(key)) {
        const detail = this.#detailOf(key, row);
        const rest = COLUMNS.filter(({ wide, wider }) => (wide && NARROW.matches) || (wider && MIDDLE.matches));
        detail.fill(row, COLUMNS.length - rest.length, rest.map((column) => said(column, row)));
        shown.push(detail.row);
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
    if (!this.#all) {
      write(this.#none, "Loading…");
      return;
    }
    const all = this.#all.length;
    const where = this.#span?.name ?? "window";
    write(this.#count, rows.length === all ? `${all} in the ${where}` : `${rows.length} of ${all} in the ${where}`);
    write(this.#none, rows.length ? "" : all ? "No route matches the filter." : `No routes in the ${where}.`);
  }

  #makeRow(row) {
    const key = nameOf(row);
    const long = row.route.length > LONGEST ? `${row.route.slice(0, LONGEST)}…` : row.route;
    const text = NARROW.matches ? cut(row.route, LONGEST_NARROW) : long;
    const button = make(
      "button", { type: "button", class: "name", "aria-expanded": "false", title: row.route.slice(0, 1000) },
      make("span", { class: "method" }, row.method), make("bdi", { class: "path" }, text),
    );
    button.addEventListener("click", () => this.#toggle(key));
    const cells = COLUMNS.map(({ key: column, wide, wider }) => {
      if (column === "route") return make("th", { scope: "row" }, button);
      return make("td", { class: wider ? "wide wider" : wide ? "wide" : undefined, "data-key": column });
    });
    const element = make("tr", {}, ...cells);
    return { row: element, cells, button };
  }

  #fill({ row, cells, button }, values) {
    COLUMNS.forEach(({ key, format = fixed }, index) => {
      if (key !== "route") write(cells[index], format(values[key]));
    });
    row.classList.toggle("failing", ownErrors(values) > 0);
    button.setAttribute("aria-expanded", String(this.#open.has(nameOf(values))));
  }

  #toggle(key) {
    if (this.#open.has(key)) this.#close(key);
    else this.#open.set(key, null);
    putInAddress("open", [...this.#open.keys()].slice(0, MOST_OPEN));
    this.#render();
  }

  #close(key) {
    this.#open.get(key)?.destroy();
    this.#open.delete(key);
  }

  #detailOf(key, { method, route }) {
    let detail = this.#open.get(key);
    if (!detail) {
      detail = new Detail({ ask: () => this.#ask(method, route), zoomed: this.#zoomed, shape: this.#shapeOf({ method, route }) });
      this.#open.set(key, detail);
      detail.refresh(this.zoom);
    }
    return detail;
  }
}

/** The order of rows that are equal otherwise, as in the API. */
function byName(a, b) {
  const [x, y] = a.route === b.route ? [a.method, b.method] : [a.route, b.route];
  return x < y ? -1 : Number(x > y);
}

/** A column's name and number, for where there is no column. */
function said({ key, label }, row) {
  return key.endsWith("_ms") ? `${label.replace(" ms", "")} ${timed(row[key])}` : `${label} ${full(row[key])}`;
}

function nameOf({ method, route }) {
  return `${method} ${route}`;
}

/** The share of a row's requests that the server itself failed, in percent, however small. */
function ownErrors({ server_error_rate_pct: rate, server_errors: own, statuses, requests }) {
  return rate || (requests ? (100 * (own ?? statuses["5xx"] ?? 0)) / requests : 0);
}

/** What the server failed comes first, then what clients did; what is no route of the app comes last. */
function byErrors(a, b, up) {
  const strays = Number(a.route === "<unmatched>") - Number(b.route === "<unmatched>");
  const by = ownErrors(a) - ownErrors(b) || a.error_rate_pct - b.error_rate_pct;
  return strays || (up ? by : -by) || byName(a, b);
}
