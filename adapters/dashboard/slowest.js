// Captured requests: the slowest ones, or those of a cell of the heat map, each with what leads to its trace.

import { dated, full, make, NONE, timed, write } from "./format.js";
import { Question } from "./question.js";

const MOST = 10; // shown of all, and of a cell
const MOST_OF_CELL = 50;
const MOST_ASKED = 1000; // as fast as those of a cell, to find these among
const ROUNDING = 0.01; // ms
const COLUMNS = [
  { key: "timestamp", label: "Began", text: ({ timestamp }) => dated(timestamp) },
  { key: "route", label: "Route", text: ({ method, route }) => `${method} ${route}`, foreign: true },
  { key: "latency_ms", label: "Took", text: ({ latency_ms }) => timed(latency_ms) },
  { key: "latency_ttfb_ms", label: "First byte", text: ({ latency_ttfb_ms }) => timed(latency_ttfb_ms) },
  { key: "status", label: "Status", text: ({ status, error }) => [status, error].filter(Boolean).join(" ") || NONE, foreign: true },
  { key: "pid", label: "Worker", text: ({ pid }) => String(pid) },
  { key: "requests_in_flight", label: "In flight", text: ({ requests_in_flight }) => full(requests_in_flight) },
  { key: "trace_id", label: "Trace", foreign: true },
  { key: "request_id", label: "Request id", foreign: true },
  { key: "path", label: "Path", foreign: true },
  { key: "query", label: "Query", foreign: true },
  { key: "user", label: "User", foreign: true },
];
// These have a column where one of the requests has them.
const OPTIONAL = ["trace_id", "request_id", "path", "query", "user"];

export class Slowest {
  #question;
  #route;
  #cell = null; // {from, to, low, high} of the heat map; null: the slowest of all
  #shown = ""; // as they were told
  #title = make("p", { class: "title" });
  #all = make("button", { type: "button", class: "button", hidden: "" }, "All of the window");
  #note = make("p", { class: "quiet" });
  #place = make("div", { class: "table", role: "region", "aria-label": "Slowest requests", tabindex: "0" });
  element = make("section", { class: "slowest" }, make("div", { class: "heading" }, this.#title, this.#all), this.#note, this.#place);

  /** `route`: {method, route}, or {} of all requests. */
  constructor({ base, route = {} }) {
    this.#question = new Question(base);
    this.#route = route;
    this.#all.addEventListener("click", () => this.pick(null));
  }

  /** Show those of a cell: from, to in Unix seconds, low, high in ms; null: the slowest. */
  pick(cell) {
    this.#cell = cell;
    this.#all.hidden = !cell;
    this.#shown = "";
    this.refresh();
  }

  async refresh() {
    const cell = this.#cell;
    const ofCell = cell && { limit: MOST_ASKED, least_ms: Math.max(cell.low - ROUNDING, 0).toFixed(6), most_ms: (cell.high + ROUNDING).toFixed(6) };
    const query = new URLSearchParams({ ...this.#route, ...(ofCell ?? { limit: MOST }) });
    const told = await this.#question.ask(`slowest?${query}`);
    if (told) this.#show(told.slowest, cell);
    if (cell !== this.#cell) this.refresh(); // it was picked meanwhile
  }

  /** What has not changed stays, as somebody may be copying an id. */
  #show(told, cell) {
    const rows = cell ? told.filter((row) => isIn(cell, row)).slice(0, MOST_OF_CELL) : told;
    const asText = JSON.stringify([rows, cell]);
    if (cell !== this.#cell || asText === this.#shown) return;
    this.#shown = asText;
    write(this.#title, cell ? `Captured requests that ended ${dated(cell.from * 1000)} to ${dated(cell.to * 1000)}, took ${shortly(cell.low)} to ${shortly(cell.high)}` : "Slowest requests");
    write(this.#note, rows.length ? "" : cell ? "None was captured: only the slowest are." : "None was captured in the window.");
    this.#note.hidden = rows.length > 0;
    this.#place.hidden = !rows.length;
    const isTold = ({ key }) => (key === "route" ? !this.#route.route : !OPTIONAL.includes(key) || rows.some((row) => row[key] !== null));
    const columns = COLUMNS.filter(isTold);
    const head = make("tr", {}, ...columns.map(({ label }) => make("th", { scope: "col" }, label)));
    const body = rows.map((row) => make("tr", {}, ...columns.map((column) => cellOf(column, row))));
    this.#place.replaceChildren(make("table", { class: "own" }, make("thead", {}, head), make("tbody", {}, ...body)));
  }
}

/** Whether a request was counted in a cell: as it ended, which a stream of events does after what its latency says. */
function isIn({ from, to, low, high }, { ended, latency_ms: took }) {
  const at = Date.parse(ended) / 1000;
  return at > from && at <= to && took > low - ROUNDING && took <= high + ROUNDING;
}

function shortly(milliseconds) {
  return timed(Math.round(100 * milliseconds) / 100);
}

/** Text from outside has a direction of its own. */
function cellOf({ key, text, foreign }, row) {
  const told = text ? text(row) : (row[key] ?? NONE);
  return make("td", { "data-key": key }, foreign ? make("bdi", {}, told) : told);
}
