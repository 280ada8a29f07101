// The alert rules: what fires or is about to, the tiles that it is about, and what changed.

import { dated, full, make, write } from "./format.js";

const SHOWN = { firing: "Firing", pending: "Pending" };
const CHANGES = {
  firing: ["Alert", "bad"],
  pending: ["Alert pending", "info"],
  resolved: ["Alert over", "good"],
};

export class Alerts {
  #section;
  #list;
  #count;
  #happened;
  #states = null; // by rule, as they were told last

  /** `happened(text, kind)` notes what changed. */
  constructor({ section, list, count, happened }) {
    this.#section = section;
    this.#list = list;
    this.#count = count;
    this.#happened = happened;
  }

  show(rows) {
    const before = this.#states;
    this.#states = new Map(rows.map((row) => [`${row.type} ${row.rule}`, row.state]));
    for (const row of rows) {
      const was = before?.get(`${row.type} ${row.rule}`);
      const [word, kind] = CHANGES[row.state] ?? [];
      if (word && was && was !== row.state) this.#happened(`${word}: ${row.type}, ${said(row)}`, kind);
    }
    const known = rows.filter(({ state }) => state in SHOWN);
    const firing = known.filter(({ state }) => state === "firing");
    const about = new Set(firing.filter(({ route }) => !route).map(({ field }) => field));
    for (const element of document.querySelectorAll("[data-field]")) {
      element.closest("dd").classList.toggle("raised", about.has(element.dataset.field));
    }
    this.#section.hidden = !rows.length;
    const pending = known.length - firing.length;
    const counts = `${firing.length} firing${pending ? `, ${pending} pending` : ""}`;
    write(this.#count, `${known.length ? counts : "none firing"} · ${rows.length} ${rows.length === 1 ? "rule" : "rules"}`);
    const text = JSON.stringify(known);
    if (this.#list.dataset.of !== text) {
      this.#list.dataset.of = text;
      this.#list.replaceChildren(...known.map(item));
    }
  }
}

function item(row) {
  return make(
    "li", { class: row.state },
    make("b", { class: "badge" }, SHOWN[row.state]),
    make("span", { class: "rule" }, make("b", {}, row.type), ` ${row.severity}`),
    make("bdi", { class: "said", title: row.rule }, said(row)),
    make("span", { class: "since" }, "since ", make("time", { datetime: row.since }, dated(row.since))),
  );
}

/** What the rule is about, its value and its threshold. */
function said({ field, route, value, comparison, threshold }) {
  const of = route ? ` of ${route}` : "";
  return `${field}${of} ${value === null ? "has no value" : `is ${full(value)}`} (threshold ${comparison} ${full(threshold)})`;
}
