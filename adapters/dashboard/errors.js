// The errors by kind, the latest first: what, where, how often, minute by minute, and one traceback.

import { dated, full, make, write } from "./format.js";
import { Question } from "./question.js";

const MOST_ROWS = 100;

export class Errors {
  #section;
  #count;
  #list;
  #question;
  #rows = new Map(); // by fingerprint: {element, told, parts}

  constructor({ section, count, list, base }) {
    this.#section = section;
    this.#count = count;
    this.#list = list;
    this.#question = new Question(base);
  }

  /** Ask for those of now. */
  async refresh() {
    const told = await this.#question.ask(`errors?limit=${MOST_ROWS}`);
    if (told) this.#show(told);
  }

  /** Lead to the latest exception, of a route where one is given, and open it; return whether there is any. */
  goTo(route) {
    const rows = [...this.#list.children].map((element) => this.#rows.get(element.dataset.key));
    const fitting = rows.filter(({ told }) => !route || told.routes.some((name) => name.endsWith(` ${route}`)));
    const one = fitting.find(({ told }) => told.where) ?? fitting[0];
    if (!one) return false;
    one.element.querySelector("details").open = true;
    one.element.querySelector("summary").focus({ preventScroll: true });
    one.element.scrollIntoView({ block: "start" });
    return true;
  }

  #show({ errors, kinds }) {
    const wanted = new Set(errors.map(({ fingerprint }) => fingerprint));
    for (const [key, { element }] of this.#rows) {
      if (wanted.has(key)) continue;
      element.remove();
      this.#rows.delete(key);
    }
    errors.forEach((told, place) => {
      const one = this.#rows.get(told.fingerprint) ?? this.#add(told.fingerprint);
      fill(one, told);
      // One that is in its place is left alone: moving it would take the focus away.
      if (this.#list.children[place] !== one.element) this.#list.insertBefore(one.element, this.#list.children[place] ?? null);
    });
    this.#section.hidden = !errors.length;
    const more = kinds > errors.length ? `, the latest ${errors.length} shown` : "";
    write(this.#count, `${kinds} ${kinds === 1 ? "kind" : "kinds"}${more}`);
  }

  #add(key) {
    const parts = {
      type: make("bdi", { class: "type" }),
      fresh: make("b", { class: "badge new" }, "New"),
      where: make("bdi", { class: "where" }),
      times: make("span", { class: "times" }),
      bars: make("span", { class: "bars", "aria-hidden": "true" }, ...Array.from({ length: 60 }, () => make("i"))),
      last: make("span", { class: "since" }),
      facts: make("div"),
      trace: make("div"),
    };
    const { facts, trace, ...shown } = parts;
    const more = make("div", { class: "more" }, facts, trace);
    const details = make("details", {}, make("summary", {}, ...Object.values(shown)), more);
    // The innermost line is the last one, and what is asked for.
    details.addEventListener("toggle", () => trace.firstChild?.scrollTo(0, trace.firstChild.scrollHeight));
    const element = make("li", { "data-key": key }, details);
    const one = { element, told: null, parts };
    this.#rows.set(key, one);
    return one;
  }
}

function fill(one, told) {
  const { parts } = one;
  const before = one.told;
  one.told = told;
  write(parts.type, told.type);
  parts.fresh.hidden = !told.new;
  write(parts.where, told.where ? placeOf(told.where) : told.routes.join(", "));
  const hour = told.bars.reduce((sum, count) => sum + count, 0);
  write(parts.times, `${full(told.count)} in total, ${full(hour)} in the last hour`);
  write(parts.last, `last ${dated(told.last_seen)}`);
  const high = Math.max(...told.bars, 1);
  told.bars.forEach((count, minute) => {
    const bar = parts.bars.children[minute];
    const height = count ? `${Math.max((100 * count) / high, 12)}%` : "0";
    if (bar.style.height !== height) bar.style.height = height;
  });
  // Made anew where it changes, and not under the reader's eyes else.
  if (isOther(factsOf, told, before)) parts.facts.replaceChildren(facts(told));
  if (isOther(traceOf, told, before)) parts.trace.replaceChildren(...trace(told));
}

function factsOf({ message, status, first_seen, last_seen, routes, workers }) {
  return { message, status, first_seen, last_seen, routes, workers };
}

function traceOf({ traceback, cut, cut_at }) {
  return { traceback, cut, cut_at };
}

function isOther(part, told, before) {
  return JSON.stringify(part(told)) !== JSON.stringify(before && part(before));
}

function placeOf({ module, function: name, line }) {
  return `${module}.${name}:${line}`;
}

function facts(told) {
  const rows = [
    ["Message", told.message],
    ["Status", told.status],
    ["First seen", make("time", { datetime: told.first_seen }, dated(told.first_seen))],
    ["Last seen", make("time", { datetime: told.last_seen }, dated(told.last_seen))],
    ["Routes", listed(told.routes)],
    ["Workers", told.workers.join(", ")],
  ];
  const list = make("dl", {});
  for (const [name, value] of rows) {
    if (value === null) continue;
    list.append(make("div", {}, make("dt", {}, name), make("dd", {}, typeof value === "object" ? value : String(value))));
  }
  return list;
}

/** The traceback as a list, none where there is none. */
function trace(told) {
  const lines = told.traceback.map(frame);
  if (told.cut) lines.splice(told.cut_at, 0, make("li", { class: "gap" }, `… ${told.cut} ${told.cut === 1 ? "line" : "lines"} left out`));
  const list = make("ol", { class: "trace", "aria-label": "Traceback of the first time, the innermost line last", tabindex: "0" }, ...lines);
  return lines.length ? [list] : [];
}

function listed(routes) {
  const items = routes.map((route) => make("li", {}, make("bdi", {}, route)));
  return make("ul", {}, ...items);
}

function frame({ file, line, module, function: name, own }) {
  return make("li", own ? { class: "own-line" } : {}, make("bdi", {}, `${file}:${line}`), " ", make("bdi", { class: "in" }, `${module}.${name}`));
}
