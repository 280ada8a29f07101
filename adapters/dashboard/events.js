// What happened: the server's events, also from before the page was opened, and the page's own.

import { dated, make } from "./format.js";

const KINDS = { worker_lost: "bad", worker_joined: "good", alert: "bad", alert_over: "good" };
const MOST = 250;

export class Events {
  #list;
  #none;
  #rows = new Map(); // by id: {at, text, element}
  #own = 0;

  constructor({ list, none }) {
    this.#list = list;
    this.#none = none;
  }

  /** Rows as `/events` has them. A row that is known already may say more now. */
  show(rows) {
    for (const { id, timestamp, type, text } of rows) this.#put(id, Date.parse(timestamp), text, KINDS[type] ?? "info");
    this.#render();
  }

  /** Something that the page has seen itself, such as a lost connection. */
  add(text, kind, at) {
    this.#put(`own-${(this.#own += 1)}`, at, text, kind);
    this.#render();
  }

  #put(id, at, text, kind) {
    const known = this.#rows.get(id);
    if (known?.text === text) return;
    const moment = new Date(at);
    const stamp = make("time", { datetime: moment.toISOString(), title: moment.toString() }, dated(moment));
    const element = make("li", { class: kind }, stamp, make("span", {}, text));
    this.#rows.set(id, { at, text, element });
  }

  /** The latest first; an entry that is in its place is left alone, and so not read out again. */
  #render() {
    const rows = [...this.#rows].sort(([, a], [, b]) => b.at - a.at);
    for (const [id] of rows.splice(MOST)) this.#rows.delete(id);
    const wanted = new Set(rows.map(([, { element }]) => element));
    for (const element of [...this.#list.children]) if (!wanted.has(element)) element.remove();
    rows.forEach(([, { element }], index) => {
      const there = this.#list.children[index];
      if (there !== element) this.#list.insertBefore(element, there ?? null);
    });
    this.#none.hidden = rows.length > 0;
  }
}
