// Captured requests: the slowest of a route, each with what leads to its trace and its log lines.

import { dated, full, make, NONE, timed, write } from "./format.js";

const MOST = 10;
// Cells are text; those of ids can be selected with one click.
const COLUMNS = [
  { key: "timestamp", label: "Began", text: ({ timestamp }) => dated(timestamp) },
  { key: "latency_ms", label: "Took", text: ({ latency_ms }) => timed(latency_ms) },
  { key: "latency_ttfb_ms", label: "First byte", text: ({ latency_ttfb_ms }) => timed(latency_ttfb_ms) },
  { key: "status", label: "Status", text: ({ status, error }) => [status, error].filter(Boolean).join(" ") || NONE },
  { key: "pid", label: "Worker", text: ({ pid }) => String(pid) },
  { key: "requests_in_flight", label: "In flight", text: ({ requests_in_flight }) => full(requests_in_flight) },
  { key: "trace_id", label: "Trace", text: ({ trace_id }) => trace_id ?? NONE, id: true },
  { key: "request_id", label: "Request id", text: ({ request_id }) => request_id ?? NONE, id: true },
  { key: "path", label: "Path", text: ({ path, query }) => withQuery(path, query), id: true },
  { key: "user", label: "User", text: ({ user }) => user ?? NONE, id: true },
];

/** What is told only where the monitor's setting says so has no column where it is not told. */
const OPTIONAL = ["path", "user"];

export class Slowest {
  #ask;
  #title = make("p", { class: "title" }, "Slow requests");
  #note = make("p", { class: "quiet" });
  #place = make("div", { class: "table" });
  #shown = ""; // as it was told
  element = make("div", { class: "slowest" }, this.#title, this.#note, this.#place);

  /** `ask(query)` answers with the answer of /slowest to that query. */
  constructor({ ask, route }) {
    this.#ask = () => ask(new URLSearchParams({ ...route, limit: MOST }));
  }

  async refresh() {
    const told = await this.#ask().catch(() => null);
    if (told) this.show(told.slowest);
  }

  /** Show these; what has not changed stays, as somebody may be copying an id. */
  show(rows) {
    const asText = JSON.stringify(rows);
    if (asText === this.#shown) return;
    this.#shown = asText;
    write(this.#note, rows.length ? "" : "None was captured in the window.");
    this.#note.hidden = rows.length > 0;
    this.#place.hidden = !rows.length;
    const columns = COLUMNS.filter(({ key }) => !OPTIONAL.includes(key) || rows.some((row) => row[key] !== null || (key === "path" && row.query !== null)));
    const head = make("tr", {}, ...columns.map(({ label }) => make("th", { scope: "col" }, label)));
    const body = rows.map((row) => make("tr", {}, ...columns.map((column) => cell(column, row))));
    this.#place.replaceChildren(make("table", { class: "own" }, make("thead", {}, head), make("tbody", {}, ...body)));
  }
}

function cell({ key, text, id }, row) {
  const told = text(row);
  return make("td", { "data-key": key }, id && told !== NONE ? make("bdi", { class: "id" }, told) : told);
}

function withQuery(path, query) {
  if (path === null && query === null) return NONE;
  return query === null ? path : `${path ?? ""}?${query}`;
}
