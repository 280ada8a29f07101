// The shape of latency, of all requests or of one route: over time and over the window.

import { Distribution } from "./distribution.js";
import { HeatMap } from "./heatmap.js";
import { make } from "./format.js";

export class Shape {
  #base;
  #route;
  #marks;
  #heat;
  #distribution = new Distribution({ title: "Distribution in the window" });
  #told = null;
  #zoom = null;
  #asking = false;

  /** `route`: {method, route}, or {} of all requests; `marks()` returns what the charts mark. */
  constructor({ base, route = {}, height, marks }) {
    this.#base = base;
    this.#route = new URLSearchParams(route);
    this.#marks = marks;
    this.#heat = new HeatMap({ title: "Latency over time", height });
    this.element = make("div", { class: "shape" }, this.#heat.element, this.#distribution.element);
  }

  /** Ask for it as it is now. */
  async refresh(zoom) {
    this.show(zoom);
    if (this.#asking) return;
    this.#asking = true;
    try {
      const answer = await fetch(new URL(`heatmap?${this.#route}`, this.#base), { cache: "no-store" });
      if (!answer.ok) return;
      this.#told = await answer.json();
      this.show(this.#zoom);
    } catch {
      // The feed says what is wrong, and comes back.
    } finally {
      this.#asking = false;
    }
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
