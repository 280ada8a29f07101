// How many requests took how long, over the window: a bar for each bucket, and the percentiles.

import { brief, paint, placeOf, roundLatencies, surface, upper } from "./canvas.js";
import { full, make, NONE, timed, write } from "./format.js";

const MOST_BARS = 64; // of more, neighbours are joined
const HEIGHT = 150;
const MARKS = [
  ["P50", "latency_p50_ms", "--line-1"],
  ["P95", "latency_p95_ms", "--line-2"],
  ["P99", "latency_p99_ms", "--line-3"],
];

export class Distribution {
  #canvas;
  #at = make("span", { class: "at" });
  #values = new Map();
  #told = null;
  #bars = []; // {first, last, count}: buckets of the scale that was told
  #box = null;

  constructor({ title }) {
    this.#canvas = make("canvas", { role: "img", "aria-label": title });
    const legend = make("ul", { class: "legend" });
    for (const [name, field, colour] of MARKS) {
      const value = make("b", {}, NONE);
      const key = make("span", { class: "key", "aria-hidden": "true" });
      key.style.color = `var(${colour})`;
      this.#values.set(field, value);
      legend.append(make("li", {}, key, `${name} `, value));
    }
    const caption = make("figcaption", {}, make("span", { class: "title" }, title, this.#at), legend);
    this.element = make("figure", { class: "distribution" }, caption, make("div", { class: "plot" }, this.#canvas));
    this.#canvas.addEventListener("mousemove", (event) => this.#hover(event.offsetX));
    this.#canvas.addEventListener("mouseleave", () => write(this.#at, ""));
    this.observer = new ResizeObserver(() => this.#draw());
    this.observer.observe(this.element);
  }

  /** Show a distribution as `/heatmap` tells it. */
  show(told) {
    this.#told = told;
    this.#bars = barsOf(told.buckets);
    for (const [field, value] of this.#values) write(value, told[field] === null ? NONE : timed(told[field]));
    this.#canvas.setAttribute("aria-label", this.#described());
    this.element.dataset.requests = String(told.requests);
    this.#draw();
  }

  restyle() {
    this.#draw();
  }

  destroy() {
    this.observer.disconnect();
    this.element.remove();
  }

  #described() {
    const { requests, buckets, scale } = this.#told;
    if (!requests) return "No requests in the window.";
    const [first, last] = [buckets[0][0], buckets.at(-1)[0]];
    const most = this.#bars.reduce((one, other) => (other.count > one.count ? other : one));
    const percentiles = MARKS.map(([name, field]) => `${name} ${timed(this.#told[field])}`);
    return [
      `${full(requests)} ${requests === 1 ? "request" : "requests"}, from ${brief(upper(first - 1, scale))} to ${brief(upper(last, scale))}.`,
      `Most of them, ${full(most.count)}, took ${this.#range(most)}.`,
      `${percentiles.join(", ")}.`,
    ].join(" ");
  }

  #range({ first, last }) {
    const { scale } = this.#told;
    return `${timed(Math.round(100 * upper(first - 1, scale)) / 100)} to ${timed(Math.round(100 * upper(last, scale)) / 100)}`;
  }

  #hover(x) {
    if (!this.#box || !this.#bars.length) return;
    const { left, width } = this.#box;
    const bar = this.#bars[Math.floor(((x - left) / width) * this.#bars.length)];
    write(this.#at, bar ? `${this.#range(bar)}: ${full(bar.count)} ${bar.count === 1 ? "request" : "requests"}` : "");
  }

  #draw() {
    const found = this.#told && surface(this.#canvas, HEIGHT);
    if (!found) return;
    const { ctx, box } = found;
    this.#box = box;
    const { scale } = this.#told;
    const bars = this.#bars;
    ctx.fillStyle = paint("--quiet");
    ctx.textBaseline = "middle";
    if (!bars.length) {
      ctx.textAlign = "center";
      ctx.fillText("No requests in the window", box.left + box.width / 2, box.top + box.height / 2);
      return;
    }
    const [first, last] = [bars[0].first, bars.at(-1).last];
    const x = (place) => box.left + ((place - first + 1) / (last - first + 1)) * box.width;
    const most = Math.max(...bars.map(({ count }) => count));
    const bottom = box.top + box.height;
    ctx.textAlign = "right";
    ctx.fillText(full(most), box.left - 6, box.top);
    ctx.fillText("0", box.left - 6, bottom);
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    for (const at of roundLatencies(first, last, scale)) ctx.fillText(brief(at), x(placeOf(at, scale)), bottom + 6);
    ctx.fillStyle = paint("--accent");
    for (const { first: from, last: to, count } of bars) {
      const tall = Math.max((count / most) * box.height, count ? 1 : 0);
      ctx.fillRect(x(from - 1), bottom - tall, Math.max(x(to) - x(from - 1) - 1, 1), tall);
    }
    ctx.fillStyle = paint("--grid");
    ctx.fillRect(box.left, bottom, box.width, 1);
    MARKS.forEach(([name, field, colour], line) => {
      const at = x(placeOf(this.#told[field], scale));
      ctx.strokeStyle = ctx.fillStyle = paint(colour);
      ctx.setLineDash([[], [7, 4], [2, 3]][line]);
      ctx.lineWidth = 1.75;
      ctx.beginPath();
      ctx.moveTo(at, box.top);
      ctx.lineTo(at, bottom);
      ctx.stroke();
      const isLeft = box.left + box.width - at < 30;
      ctx.textAlign = isLeft ? "right" : "left";
      ctx.fillText(name, at + (isLeft ? -4 : 4), box.top + 12 * line);
    });
  }
}

/** Buckets as bars without gaps, in which neighbours are joined where there are too many. */
function barsOf(buckets) {
  if (!buckets.length) return [];
  // Room for a line on either side.
  const [low, high] = [buckets[0][0] - 1, buckets.at(-1)[0] + 1];
  const each = Math.ceil((high - low + 1) / MOST_BARS);
  const bars = Array.from({ length: Math.ceil((high - low + 1) / each) }, (_, place) => ({
    first: low + place * each, last: low + (place + 1) * each - 1, count: 0,
  }));
  for (const [bucket, count] of buckets) bars[Math.floor((bucket - low) / each)].count += count;
  return bars;
}
