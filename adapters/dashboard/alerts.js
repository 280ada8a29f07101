// The alert rules: what fires or is about to, the tiles that it is about, what changed, the marks in
// the charts, and silences.

import { dated, make, ofField, write } from "./format.js";

const SHOWN = { firing: "Firing", pending: "Pending" };

export class Alerts {
  #section;
  #list;
  #count;
  #happened;
  #fires;
  #base;
  #dialog;
  #states = null; // by rule, as they were told last
  #seen = ""; // the states of which the past alerts were asked for
  #past = [];
  #items = new Map(); // by rule: {element, of}, what it was made of
  #unfocused = null; // the item in whose place the focus was

  /** `happened(text, kind)` notes what changed; `fires(count)` that so many rules fire; `toErrors(route)` leads to the errors, those of clients included. */
  constructor({ section, list, count, happened, fires, base, dialog, toErrors }) {
    this.#section = section;
    this.#list = list;
    this.#count = count;
    this.#happened = happened;
    this.#fires = fires;
    this.#base = base;
    this.#dialog = dialog;
    list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.dataset.errors !== undefined) toErrors(button.dataset.errors);
      else if (button) this.#ask(button.dataset.type, button.dataset.end !== undefined);
    });
    dialog.querySelector("#silence-confirm").addEventListener("click", () => this.#confirm());
  }

  /**
   * What a chart of these fields marks: where an alert on one of them began, and where it ended.
   *
   * `route`: {method, route} of a chart of one route, which has no marks of others; {} of all requests.
   */
  marks(fields, { method, route } = {}) {
    const kinds = new Set(fields.map(kindOf));
    const isOf = (other) => !route || !other || [route, `${method} ${route}`].includes(other);
    return this.#past.filter((row) => kinds.has(kindOf(row.field)) && isOf(row.route)).flatMap(({ type, since, ended }) => [
      { at: Date.parse(since) / 1000, label: type, bad: true },
      ...(ended ? [{ at: Date.parse(ended) / 1000, label: `${type} over` }] : []),
    ]);
  }

  async #remember(rows) {
    const seen = JSON.stringify(rows.map(({ rule, state }) => [rule, state]));
    if (seen === this.#seen) return;
    this.#seen = seen;
    try {
      const answer = await fetch(new URL("alerts/history", this.#base), { cache: "no-store" });
      if (answer.ok) this.#past = (await answer.json()).alerts;
    } catch {
      this.#seen = ""; // the feed says what is wrong; asked again with the next table
    }
  }

  #ask(type, isEnd) {
    if (isEnd) {
      this.#silence({ type, for: "0s" });
      return;
    }
    this.#dialog.dataset.type = type;
    write(this.#dialog.querySelector("#silence-type"), type);
    write(this.#dialog.querySelector("#silence-error"), "");
    this.#dialog.showModal();
  }

  async #confirm() {
    const length = this.#dialog.querySelector("#silence-for").value;
    const problem = await this.#silence({ type: this.#dialog.dataset.type, for: length });
    if (problem) write(this.#dialog.querySelector("#silence-error"), problem);
    else this.#dialog.close();
  }

  async #silence(query) {
    const url = new URL(`alerts/silence?${new URLSearchParams(query)}`, this.#base);
    const answer = await fetch(url, { method: "POST" }).catch(() => null);
    if (!answer) return "The server does not answer.";
    if (!answer.ok) return (await answer.json().catch(() => ({}))).error ?? `The server answers with ${answer.status}.`;
    this.#happened(`${query.for === "0s" ? "Silence ended" : `Silenced for ${query.for}`}: ${query.type}`, "info");
    return "";
  }

  show(rows) {
    const before = this.#states;
    this.#states = new Map(rows.map((row) => [`${row.type} ${row.rule}`, row.state]));
    for (const row of rows) {
      const was = before?.get(`${row.type} ${row.rule}`);
      // Beginning and end are among the server's events.
      if (row.state === "pending" && was && was !== "pending") this.#happened(`Alert pending: ${row.type}, ${said(row)}`, "info");
    }
    const known = rows.filter(({ state }) => state in SHOWN);
    const firing = known.filter(({ state }) => state === "firing");
    this.#fires(firing.length);
    this.#remember(rows);
    const about = new Set(firing.filter(({ route }) => !route).map(({ field }) => field));
    for (const element of document.querySelectorAll("[data-field]")) {
      element.closest("dd").classList.toggle("raised", about.has(element.dataset.field));
    }
    this.#section.hidden = !rows.length;
    const pending = known.length - firing.length;
    const counts = `${firing.length} firing${pending ? `, ${pending} pending` : ""}`;
    write(this.#count, `${known.length ? counts : "none firing"} · ${rows.length} ${rows.length === 1 ? "rule" : "rules"}`);
    const shown = new Map(known.map((row) => [`${row.type} ${row.rule}`, this.#item(row)]));
    for (const [key, { element }] of this.#items) if (shown.get(key)?.element !== element) element.remove();
    this.#items = shown;
    [...shown.values()].forEach(({ element }, place) => {
      // One that is in its place is left alone: moving it would take the focus away.
      if (this.#list.children[place] !== element) this.#list.insertBefore(element, this.#list.children[place] ?? null);
    });
    if (this.#unfocused) [...this.#unfocused.querySelectorAll("button")].at(-1).focus();
    this.#unfocused = null;
  }

  /** The item of a rule: the one that it has, unless more than its value is another one. */
  #item(row) {
    const { value, detail, checked, ...rest } = row;
    const of = JSON.stringify(rest);
    const before = this.#items.get(`${row.type} ${row.rule}`);
    const one = before?.of === of ? before : { of, element: item(row) };
    write(one.element.querySelector(".said"), said(row));
    write(one.element.querySelector(".detail"), detail);
    one.element.querySelector(".detail").hidden = !detail;
    if (before && before !== one && before.element.contains(document.activeElement)) this.#unfocused = one.element;
    return one;
  }
}

function item(row) {
  return make(
    "li", { class: row.state },
    make("b", { class: "badge" }, SHOWN[row.state]),
    make("span", { class: "rule" }, make("b", {}, row.type), ` ${row.severity}`),
    make("bdi", { class: "said", title: row.rule }),
    make("bdi", { class: "said detail" }),
    ...(kindOf(row.field) === "error" ? [make("button", { type: "button", class: "link", "data-errors": row.route ?? "" }, "Errors")] : []),
    make("span", { class: "since" }, "since ", make("time", { datetime: row.since }, dated(row.since))),
    row.silenced_until
      ? make("span", { class: "silence" }, `silenced until ${dated(row.silenced_until)} `, make("button", { type: "button", class: "link", "data-type": row.type, "data-end": "" }, "End"))
      : make("button", { type: "button", class: "link", "data-type": row.type, "aria-label": `Silence ${row.type}` }, "Silence…"),
  );
}

/** What a field is about: a chart shows one of these. */
function kindOf(field) {
  if (field.endsWith("burn_rate") || field.startsWith("server_error") || field === "new_errors") return "error";
  return field === "requests" ? "request" : field.split("_")[0];
}

/** What the rule is about, its value and its threshold. */
function said({ field, route, value, comparison, threshold }) {
  const of = route ? ` of ${route}` : "";
  return `${field}${of} ${value === null ? "has no value" : `is ${ofField(field, value)}`} (threshold ${comparison} ${ofField(field, threshold)})`;
}
