// The app's own numbers: a table of them, and a chart of the one that is chosen, since the page was opened.

import { Chart } from "./charts.js";
import { full, make, write } from "./format.js";
import { Question } from "./question.js";

const MOST_ROWS = 200;
const MOST_POINTS = 720; // of one number: an hour, at a look every five seconds
const LEAST_SPAN = 60; // seconds that a chart shows at least
const COLOUR = "accent";
// What is drawn: counters and histograms are drawn by what came between two looks.
const DRAWN = {
  counter: { label: "Increase", unit: () => "a minute" },
  gauge: { label: "Value", unit: (unit) => unit },
  histogram: { label: "Mean", unit: (unit) => unit },
};
const HEADS = ["Number", "Type", "Unit", "Value", "Count", "P50", "P95", "P99"];
const NUMBERS = ["value", "count", "p50", "p95", "p99"];

export class Custom {
  #section;
  #count;
  #place;
  #question;
  #body = make("tbody");
  #kept = new Map(); // by name and labels: {row, points, cells, element, button}
  #chosen = null;
  #chart = null;

  constructor({ section, count, table, place, base }) {
    this.#section = section;
    this.#count = count;
    this.#place = place;
    this.#question = new Question(base);
    const head = make("tr", {}, ...HEADS.map((name) => make("th", { scope: "col" }, name)));
    table.append(make("table", { class: "own" }, make("thead", {}, head), this.#body));
  }

  /** Ask for the numbers of now. */
  async refresh() {
    const told = await this.#question.ask("custom");
    if (told) this.#show(told);
  }

  restyle() {
    this.#chart?.restyle();
  }

  #show({ custom, timestamp }) {
    const at = Date.parse(timestamp) / 1000;
    const rows = custom.slice(0, MOST_ROWS);
    const names = new Set(rows.map(nameOf));
    for (const [name, { element }] of this.#kept) {
      if (names.has(name)) continue;
      element.remove();
      this.#kept.delete(name);
      if (this.#chosen === name) this.#choose(null);
    }
    rows.forEach((row, place) => {
      const one = this.#kept.get(nameOf(row)) ?? this.#add(row);
      note(one, row, at);
      NUMBERS.forEach((field, index) => write(one.cells[index], field in row ? full(row[field]) : ""));
      if (this.#body.children[place] !== one.element) this.#body.insertBefore(one.element, this.#body.children[place] ?? null);
    });
    this.#section.hidden = !rows.length;
    const more = custom.length > rows.length ? `, the first ${rows.length} shown` : "";
    write(this.#count, `${custom.length} ${custom.length === 1 ? "number" : "numbers"}${more}`);
    this.#draw();
  }

  #add(row) {
    const name = nameOf(row);
    const button = make("button", { type: "button", class: "link", "aria-pressed": "false", title: row.help }, make("bdi", {}, name));
    button.addEventListener("click", () => this.#choose(this.#chosen === name ? null : name));
    const cells = NUMBERS.map(() => make("td"));
    const element = make("tr", {}, make("th", { scope: "row" }, button), make("td", {}, row.type), make("td", {}, row.unit), ...cells);
    const one = { row: null, points: [], cells, element, button };
    this.#kept.set(name, one);
    return one;
  }

  #choose(name) {
    this.#kept.get(this.#chosen)?.button.setAttribute("aria-pressed", "false");
    this.#chart?.destroy();
    this.#chart = null;
    this.#chosen = name;
    const one = this.#kept.get(name);
    if (!one) return;
    one.button.setAttribute("aria-pressed", "true");
    const { label, unit } = DRAWN[one.row.type];
    const lines = [{ field: "drawn", label, colour: COLOUR, fill: true }];
    this.#chart = new Chart({ title: name, unit: unit(one.row.unit), lines, wide: true });
    this.#place.append(this.#chart.element);
    this.#draw();
  }

  #draw() {
    const points = this.#kept.get(this.#chosen)?.points;
    if (!points?.length || !this.#chart) return;
    const to = points.at(-1).at;
    this.#chart.show(points, Math.min(points[0].at, to - LEAST_SPAN), to);
  }
}

function nameOf({ name, labels }) {
  const pairs = Object.entries(labels).map(([label, value]) => `${label}=${JSON.stringify(value)}`);
  return pairs.length ? `${name}{${pairs.join(",")}}` : name;
}

/** Note what a number is now, and what is drawn of it: nothing after a reset. */
function note(one, row, at) {
  const before = one.row;
  const last = one.points.at(-1);
  if (last && at <= last.at) return;
  let drawn = row.value ?? null;
  if (row.type !== "gauge") {
    const field = row.type === "counter" ? "value" : "count";
    const more = before ? row[field] - before[field] : -1;
    if (row.type === "counter") drawn = more < 0 ? null : (60 * more) / (at - last.at);
    else drawn = more > 0 ? (row.sum - before.sum) / more : null;
  }
  one.row = row;
  one.points.push({ at, drawn });
  if (one.points.length > MOST_POINTS) one.points.shift();
}
