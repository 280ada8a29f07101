// The span that the page shows: the live window, or so many minutes of the history, which it loads.

import { minuteOf } from "./charts.js";
import { make, span, write } from "./format.js";
import { inAddress, putInAddress } from "./settings.js";

const RANGES = { 60: "Last hour", 1440: "Last day" }; // minutes of history, beside 7 and 30 days
const NOT_KEPT = "The history of single routes is not kept here: that takes a lasting history (history=…).";
const POINTS = 300; // that a chart of the history has at most, about

export class Spans {
  minutes = 0; // 0: the live window
  rows = null; // of the history; null until they came
  summary = null; // the numbers of the span as a whole, where the server can tell them
  routes = null; // the per-route table over the span, where a lasting history keeps it
  names = new Map(); // of the spans, by minutes
  #place;
  #note;
  #base;
  #isFed;
  #changed;
  #load = 0; // a later one ends the earlier ones
  #next = 0;
  #window;

  /**
   * `place` gets the buttons beside `window`, that of the live window; `note` says what is missing.
   * `kept`: minutes of history that the server has; `isFed()`: whether the page is up to date;
   * `changed(isOther)` is called when there is something else to show: of another span, or more of it.
   */
  constructor({ place, window, note, kept, base, isFed, changed }) {
    this.#place = place;
    this.#window = window;
    this.#note = note;
    this.#base = base;
    this.#isFed = isFed;
    this.#changed = changed;
    const ranges = [60, 1440, 7 * 1440, 30 * 1440].filter((minutes) => minutes < kept);
    for (const minutes of [...ranges, kept]) {
      const label = RANGES[minutes] ?? `Last ${span(60 * minutes)}`;
      this.names.set(minutes, label.toLowerCase());
      place.append(make("button", { type: "button", "data-minutes": minutes, "aria-pressed": "false" }, label));
    }
    place.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const minutes = Number(button.dataset.minutes);
      putInAddress("span", minutes || null);
      this.choose(minutes);
    });
  }

  /** Take the span of the address. */
  apply() {
    const minutes = Number(inAddress("span") ?? 0);
    const wanted = this.names.has(minutes) ? minutes : 0;
    if (wanted !== this.minutes) this.choose(wanted);
  }

  /** Name the live window. */
  setWindow(seconds) {
    write(this.#window, `Live, ${span(seconds)}`);
    this.names.set(0, `last ${span(seconds)}`);
  }

  /** The name of the span: "last day". */
  get name() {
    return this.names.get(this.minutes) ?? "live window";
  }

  /** The name of the live window. */
  get liveName() {
    return this.names.get(0) ?? "live window";
  }

  choose(minutes) {
    this.minutes = minutes;
    this.forget();
    for (const button of this.#place.children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.minutes) === minutes));
    }
    this.#say(minutes ? "Loading…" : "");
    this.#changed(true);
    this.load(true); // once, also where the page is paused
  }

  /** What was loaded is of another server, or of before a reset. */
  forget() {
    this.rows = this.summary = this.routes = null;
  }

  /** Load the history, and again from time to time; `asked`: also where the page is not up to date. */
  async load(asked = false) {
    clearTimeout(this.#next);
    const mine = (this.#load += 1);
    const { minutes } = this;
    if (!minutes) return;
    const step = stepOf(minutes);
    let again = 30_000 * step;
    if (asked || this.#isFed()) {
      const found = await this.#ask(minutes, step);
      if (mine !== this.#load) return;
      if (found) {
        this.rows = withGaps(found.rows, 60 * step);
        this.summary = found.summary;
        this.routes = found.routes;
        this.#say(found.rows.length ? "" : "No minute has passed yet. This fills with one point a minute.");
        this.#changed(false);
      } else {
        again = 5000;
        if (!this.rows) this.#say("The history cannot be loaded. Trying again…");
      }
    }
    this.#next = setTimeout(() => this.load(), again);
  }

  /**
   * One route over the span, as `Detail` shows it: from a lasting history, where single routes are kept.
   *
   * `now`: the server's clock in seconds.
   */
  async ofRoute(method, route, now) {
    const { minutes } = this;
    const step = stepOf(minutes);
    const asked = new URLSearchParams({ method, route, minutes, step_minutes: step });
    const answer = await fetch(new URL(`history?${asked}`, this.#base), { cache: "no-store" });
    if (!answer.ok) throw answer;
    const { history, kept } = await answer.json();
    const note = kept ? "" : kept === null ? "The history cannot be read now." : NOT_KEPT;
    const rows = history.map((row) => ({ ...row, at: Date.parse(row.timestamp) / 1000 }));
    return { rows: withGaps(rows, 60 * step), from: now - 60 * minutes, to: now, note, again: 30_000 * step };
  }

  #say(text) {
    write(this.#note, text);
    this.#note.hidden = !text;
  }

  async #ask(minutes, step) {
    try {
      const asked = new URLSearchParams({ minutes, step_minutes: step, summary: 1 });
      const answer = await fetch(new URL(`history?${asked}`, this.#base), { cache: "no-store" });
      if (!answer.ok) return null;
      const { history, summary } = await answer.json();
      const table = await fetch(new URL(`history?${new URLSearchParams({ minutes, by: "route" })}`, this.#base), { cache: "no-store" });
      const { kept, routes } = table.ok ? await table.json() : {};
      return { summary: summary ?? null, rows: history.map(minuteOf), routes: kept ? routes : null };
    } catch {
      return null; // the feed says what is wrong, and comes back
    }
  }
}

/** The minutes of each point. */
function stepOf(minutes) {
  return Math.ceil(minutes / POINTS);
}

/** Rows so many seconds apart, with a gap where some are missing: nothing was measured there. */
function withGaps(rows, apart) {
  return rows.flatMap((row, index) => {
    const before = rows[index - 1];
    const missing = before && row.at - before.at > 2.5 * apart;
    return missing ? [{ at: before.at + apart, gap: true }, row] : [row];
  });
}
