// The shape of latency, of all requests or of one route: over time, over the window, and the slowest themselves.

import { Distribution } from "./distribution.js";
import { HeatMap } from "./heatmap.js";
import { make } from "./format.js";
import { Question } from "./question.js";
import { Slowest } from "./slowest.js";

const SAME_MOMENT = 1000; // ms: one moment told twice by a wall clock

export class Shape {
  #question;
  #route;
  #marks;
  #heat;
  #distribution = new Distribution({ title: "Distribution in the window" });
  #slowest;
  #told = null; // as `/heatmap` tells it, with all steps of the window
  #isWhole = false; // they are all there
  #askedAt = 0;
  #zoom = null;

  /** `route`: {method, route}, or {} of all requests; `marks()` returns what the charts mark. */
  constructor({ base, route = {}, height, marks }) {
    this.#question = new Question(base);
    this.#route = new URLSearchParams(route);
    this.#marks = marks;
    this.#slowest = new Slowest({ base, route });
    this.#heat = new HeatMap({ title: "Latency over time", height, picked: (cell) => this.#slowest.pick(cell) });
    this.element = make("div", { class: "shape" }, this.#heat.element, this.#distribution.element, this.#slowest.element);
  }

  /** Ask for it as it is now: once for the whole window, then for the steps that are new. */
  async refresh(zoom) {
    this.show(zoom);
    this.#slowest.refresh();
    const asked = performance.now();
    const query = new URLSearchParams(this.#route);
    if (this.#isWhole) query.set("seconds", Math.ceil((asked - this.#askedAt) / 1000 + 3 * this.#told.step_seconds));
    const told = await this.#question.ask(`heatmap?${query}`);
    if (!told) return;
    this.#take(told);
    this.#askedAt = asked;
    this.show(this.#zoom);
  }

  #take(told) {
    const before = this.#told;
    this.#told = told;
    const wasWhole = this.#isWhole;
    this.#isWhole = true;
    if (!wasWhole) return;
    const moved = (field) => Math.abs(Date.parse(before[field] ?? 0) - Date.parse(told[field] ?? 0)) > SAME_MOMENT;
    this.#isWhole = !["started", "reset"].some(moved); // a reset, another server, or a clock that was set
    const oldest = Date.parse(told.timestamp) - 1000 * before.seconds;
    const kept = this.#isWhole ? before.steps.filter(({ timestamp }) => Date.parse(timestamp) >= oldest) : [];
    const steps = new Map([...kept, ...told.steps].map((step) => [step.step, step]));
    this.#told = { ...told, seconds: before.seconds, steps: [...steps.values()] };
  }

  /** Show what was loaded, or the part of it that was zoomed to. */
  show(zoom) {
    this.#zoom = zoom;
    if (!this.#told) return;
    const to = Date.parse(this.#told.timestamp) / 1000;
    const from = to - this.#told.seconds;
    const [begin, end] = zoom && zoom[1] > from && zoom[0] < to ? zoom : [from, to];
    this.#heat.show(this.#told, begin, end, this.#marks());
    this.#distribution.show(this.#told.distribution);
  }

  restyle() {
    for (const part of [this.#heat, this.#distribution]) part.restyle();
  }

  destroy() {
    for (const part of [this.#heat, this.#distribution]) part.destroy();
    this.element.remove();
  }
}
