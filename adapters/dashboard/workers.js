// The workers one by one, the sick ones first; asked for while the card is open.

import { dated, fixed, fixedTime, full, make, NONE, write } from "./format.js";
import { Question } from "./question.js";

const COLUMNS = [
  { key: "pid", label: "Worker", format: String },
  { key: "state", label: "State", format: String },
  { key: "since", label: "Since", format: dated },
  { key: "requests", label: "Requests", format: full },
  { key: "request_rate_rpm", label: "Rate / min", format: fixed },
  { key: "error_rate_pct", label: "Errors %", format: fixed },
  { key: "server_error_rate_pct", label: "By the server %", format: fixed },
  { key: "latency_p95_ms", label: "P95 ms", format: fixedTime },
  { key: "requests_in_flight", label: "In flight", format: full },
  { key: "cpu_pct", label: "CPU %", format: fixed },
  { key: "memory_mb", label: "Memory MB", format: fixed },
  { key: "last_request_seconds", label: "Last request", format: ago },
  { key: "seen_seconds", label: "Last seen", format: ago },
];
// What the mark of a worker says.
const SAID = {
  stopped: "It was stopped (SIGSTOP).",
  traced: "A debugger holds it.",
  "waits for a disk": "It waits for a disk.",
  ended: "It has ended.",
  spins: "It uses the CPU, and finishes no request.",
  waits: "It has requests in flight, waits, and finishes none.",
  hangs: "It has requests in flight, and finishes none.",
};
const WORSE = "▲"; // marks a number of a worker
const CALM = ["running", "unknown"];
const MOST_ROWS = 200;

export class Workers {
  #card;
  #count;
  #question;
  #body = make("tbody");
  #notes = make("dl", { class: "notes", hidden: "" }); // what the marks say
  #rows = new Map(); // by process id: {element, cells}

  /** `card`: a details element; `count` says how many there are, and how many are marked. */
  constructor({ card, count, table, base }) {
    this.#card = card;
    this.#count = count;
    this.#question = new Question(base);
    const head = make("tr", {}, ...COLUMNS.map(({ label }) => make("th", { scope: "col" }, label)));
    table.append(make("table", { class: "own workers" }, make("thead", {}, head), this.#body));
    table.after(this.#notes);
    card.addEventListener("toggle", () => this.refresh());
  }

  /** Ask for them, where the card is open. */
  async refresh() {
    if (!this.#card.open || this.#card.closest("[hidden]")) return;
    const told = await this.#question.ask("workers");
    if (told) this.#show(told.workers);
  }

  #show(rows) {
    const marked = rows.filter(isMarked);
    const shown = [...marked, ...rows.filter((row) => !isMarked(row))].slice(0, MOST_ROWS);
    const wanted = new Set(shown.map(({ pid }) => pid));
    for (const [pid, { element }] of this.#rows) {
      if (wanted.has(pid)) continue;
      element.remove();
      this.#rows.delete(pid);
    }
    shown.forEach((row, place) => {
      const one = this.#rows.get(row.pid) ?? this.#add(row.pid);
      fill(one, row);
      if (this.#body.children[place] !== one.element) this.#body.insertBefore(one.element, this.#body.children[place] ?? null);
    });
    const more = rows.length > shown.length ? `, the first ${shown.length} shown` : "";
    const sick = marked.length ? `, ${marked.length} marked` : "";
    write(this.#count, `${rows.length} ${rows.length === 1 ? "process" : "processes"}${sick}${more}`);
    this.#count.classList.toggle("problem", marked.length > 0);
    this.#explain(shown);
  }

  /** Say below the table what those marks say that it has. */
  #explain(rows) {
    const marks = Object.entries(SAID).filter(([state]) => rows.some((row) => row.state === state));
    if (rows.some(({ differs }) => differs.length)) marks.push([WORSE, "Worse than its siblings."]);
    const key = marks.map(([mark]) => mark).join();
    if (this.#notes.dataset.of === key) return;
    this.#notes.dataset.of = key;
    this.#notes.hidden = !marks.length;
    this.#notes.replaceChildren(...marks.map(([mark, text]) => make("div", {}, make("dt", {}, mark), make("dd", {}, text))));
  }

  #add(pid) {
    const [first, ...rest] = COLUMNS.map(({ key }) => make(key === "pid" ? "th" : "td", { "data-key": key }));
    first.setAttribute("scope", "row");
    const one = { element: make("tr", {}, first, ...rest), cells: [first, ...rest] };
    this.#rows.set(pid, one);
    return one;
  }
}

function isMarked({ state, differs }) {
  return !CALM.includes(state) || differs.length > 0;
}

function fill({ element, cells }, row) {
  element.classList.toggle("sick", !CALM.includes(row.state));
  COLUMNS.forEach(({ key, format }, index) => {
    const cell = cells[index];
    const differs = row.differs.includes(key);
    write(cell, row[key] === null ? NONE : `${differs ? `${WORSE} ` : ""}${format(row[key])}`);
    cell.classList.toggle("differs", differs);
  });
}

/** "3 s ago", "5 min ago". */
function ago(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds / 3600)} h ago`;
}
