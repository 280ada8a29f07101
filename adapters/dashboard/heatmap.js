// Latency over time as a heat map: the more requests a cell has, the stronger its colour.

import { brief, paint, placeOf, roundLatencies, surface, upper } from "./canvas.js";
import { drawMarks } from "./charts.js";
import { dated, full, make, tick, timed, write } from "./format.js";

const LEAST_ROWS = 12; // of buckets, so that few do not fill it
const FAINTEST = 0.14; // how strong the colour of a cell with one request is

/**
 * One figure. `picked(cell)` is told of a cell that was clicked: {from, to, low, high, count}, in
 * Unix seconds and milliseconds.
 *
 * Mouse and arrow keys move from cell to cell, a click or Enter picks one.
 */
export class HeatMap {
  #height;
  #picked;
  #canvas;
  #at = make("span", { class: "at" });
  #most = make("b", {}, "");
  #summary = make("p", { class: "hidden" });
  #told = null;
  #range = [0, 1];
  #marks = [];
  #steps = []; // {step, at, cells: Map of bucket -> count}
  #rows = [0, 1]; // the lowest bucket and the highest
  #cursor = null; // {place, bucket}: which step, and which bucket
  #box = null;

  constructor({ title, height = 220, picked }) {
    this.#height = height;
    this.#picked = picked;
    this.#canvas = make("canvas", { role: "slider", tabindex: "0", "aria-label": `${title}, cell by cell`, "aria-valuenow": "0" });
    const legend = make("ul", { class: "legend" }, make("li", {}, make("span", { class: "heat-key", "aria-hidden": "true" }), "1 to ", this.#most, " requests in a cell"));
    const caption = make("figcaption", {}, make("span", { class: "title" }, title, this.#at), legend);
    this.element = make("figure", { class: "heatmap" }, caption, make("div", { class: "plot" }, this.#canvas), this.#summary);
    this.#canvas.addEventListener("mousemove", (event) => this.#moveTo(this.#cellAt(event.offsetX, event.offsetY)));
    this.#canvas.addEventListener("mouseleave", () => this.#moveTo(null));
    this.#canvas.addEventListener("blur", () => this.#moveTo(null));
    this.#canvas.addEventListener("click", () => this.#pick());
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.observer = new ResizeObserver(() => this.#draw());
    this.observer.observe(this.element);
  }

  /** Show what `/heatmap` tells, between two moments (Unix seconds), with marks as charts have them. */
  show(told, from, to, marks = []) {
    this.#told = told;
    this.#range = [from, to];
    this.#marks = marks.filter(({ at }) => at >= from && at <= to);
    const under = this.#cursor && this.#steps[this.#cursor.place].step; // which has another place now
    const all = told.steps.map(({ step, timestamp, cells }) => ({ step, at: Date.parse(timestamp) / 1000, cells: new Map(cells) }));
    this.#steps = all.filter(({ at }) => at > from && at - told.step_seconds < to);
    const buckets = this.#steps.flatMap(({ cells }) => [...cells.keys()]);
    const low = buckets.reduce((one, other) => Math.min(one, other), Infinity);
    const high = buckets.reduce((one, other) => Math.max(one, other), -Infinity);
    const more = buckets.length ? Math.max(LEAST_ROWS - (high - low + 1), 0) : 0;
    this.#rows = buckets.length ? [low - 1 - Math.floor(more / 2), high + 1 + Math.ceil(more / 2)] : [-40, 0];
    if (this.#cursor) {
      const place = this.#steps.findIndex(({ step }) => step === under);
      this.#cursor = place < 0 ? null : { place, bucket: this.#cursor.bucket };
    }
    this.#describe();
    this.#draw();
  }

  restyle() {
    this.#draw();
  }

  destroy() {
    this.observer.disconnect();
    this.element.remove();
  }

  #describe() {
    const cells = this.#steps.flatMap((step, place) => [...step.cells].map(([bucket, count]) => ({ place, bucket, count })));
    const sum = cells.reduce((total, { count }) => total + count, 0);
    const most = cells.reduce((one, other) => (other.count > one.count ? other : one), { count: 0 });
    write(this.#most, full(most.count));
    this.#most.parentElement.hidden = !most.count;
    this.element.dataset.requests = String(sum);
    this.element.dataset.cells = String(cells.length);
    const words = sum ? [`${full(sum)} requests in ${full(cells.length)} cells.`, `The fullest: ${this.#said(most)}.`] : ["No requests yet."];
    const marks = this.#marks.map(({ label, at }) => `${label} at ${dated(at * 1000)}.`);
    write(this.#summary, [...words, ...marks].join(" "));
    this.#canvas.setAttribute("aria-valuemax", String(Math.max(this.#steps.length - 1, 0)));
  }

  /** What a cell has, of the step at a place. */
  #cell({ place, bucket }) {
    const { at, cells } = this.#steps[place];
    const { step_seconds: seconds, scale } = this.#told;
    return { from: at - seconds, to: at, low: upper(bucket - 1, scale), high: upper(bucket, scale), count: cells.get(bucket) ?? 0 };
  }

  #said(where) {
    const { from, low, high, count } = this.#cell(where);
    const [least, most] = [low, high].map((value) => timed(Math.round(100 * value) / 100));
    return `${dated(from * 1000)}, ${least} to ${most}: ${full(count)} ${count === 1 ? "request" : "requests"}`;
  }

  #moveTo(cursor) {
    this.#cursor = cursor;
    write(this.#at, cursor ? this.#said(cursor) : "");
    if (cursor) {
      this.#canvas.setAttribute("aria-valuenow", String(cursor.place));
      this.#canvas.setAttribute("aria-valuetext", this.#said(cursor));
    }
    this.#draw();
  }

  #pick() {
    if (this.#cursor) this.#picked?.(this.#cell(this.#cursor));
  }

  #key(event) {
    const last = this.#steps.length - 1;
    if (last < 0) return;
    const { place, bucket } = this.#cursor ?? this.#latest();
    const by = this.#cursor ? 1 : 0; // the first key shows where they begin
    const moved = {
      ArrowLeft: [place - by, bucket], ArrowRight: [place + by, bucket], ArrowUp: [place, bucket + by], ArrowDown: [place, bucket - by],
      Home: [0, bucket], End: [last, bucket], Enter: [place, bucket], " ": [place, bucket],
    }[event.key];
    if (!moved) return;
    event.preventDefault();
    const held = (value, low, high) => Math.min(Math.max(value, low), high);
    this.#moveTo({ place: held(moved[0], 0, last), bucket: held(moved[1], ...this.#rows) });
    if (event.key === "Enter" || event.key === " ") this.#pick();
  }

  /** The fullest cell of the latest step that has any. */
  #latest() {
    const found = this.#steps.findLastIndex(({ cells }) => cells.size);
    const place = found < 0 ? this.#steps.length - 1 : found;
    const cells = [...this.#steps[place].cells].sort(([, one], [, other]) => other - one);
    return { place, bucket: cells[0]?.[0] ?? this.#rows[0] };
  }

  #cellAt(x, y) {
    if (!this.#box || !this.#steps.length) return null;
    const { left, top, width, height } = this.#box;
    const [from, to] = this.#range;
    const [low, high] = this.#rows;
    const at = from + ((x - left) / width) * (to - from);
    const bucket = high - Math.floor(((y - top) / height) * (high - low + 1));
    const place = this.#steps.findIndex((step) => at > step.at - this.#told.step_seconds && at <= step.at);
    return place < 0 || bucket < low || bucket > high ? null : { place, bucket };
  }

  #draw() {
    const found = this.#told && surface(this.#canvas, this.#height);
    if (!found) return;
    const { ctx, box } = found;
    this.#box = box;
    const [from, to] = this.#range;
    const [low, high] = this.#rows;
    const { scale, step_seconds: seconds } = this.#told;
    const x = (at) => box.left + ((Math.min(Math.max(at, from), to) - from) / (to - from)) * box.width;
    const y = (place) => box.top + ((high - place) / (high - low + 1)) * box.height; // the top of a bucket
    const place = (each) => box.top + box.height - ((each - low + 1) / (high - low + 1)) * box.height;
    const bottom = box.top + box.height;
    ctx.fillStyle = paint("--quiet");
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    const lines = roundLatencies(low, high, scale);
    for (const at of lines) ctx.fillText(brief(at), box.left - 6, place(placeOf(at, scale)));
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    const apart = spacing((to - from) * (90 / box.width));
    for (let at = Math.ceil(from / apart) * apart; at <= to; at += apart) ctx.fillText(tick(at * 1000, apart), x(at), bottom + 6);
    ctx.fillStyle = paint("--grid");
    for (const at of lines) ctx.fillRect(box.left, place(placeOf(at, scale)), box.width, 1);
    ctx.fillRect(box.left, bottom, box.width, 1);
    const most = Math.max(...this.#steps.flatMap(({ cells }) => [...cells.values()]), 1);
    const tall = box.height / (high - low + 1);
    ctx.fillStyle = paint("--accent");
    for (const { at, cells } of this.#steps) {
      for (const [bucket, count] of cells) {
        ctx.globalAlpha = most === 1 ? 1 : FAINTEST + ((1 - FAINTEST) * Math.log(count)) / Math.log(most);
        ctx.fillRect(x(at - seconds), y(bucket), Math.max(x(at) - x(at - seconds) - 0.5, 1), Math.max(tall - 0.5, 1));
      }
    }
    ctx.globalAlpha = 1;
    drawMarks(ctx, box, this.#marks, x, 1);
    if (this.#cursor) {
      const { at } = this.#steps[this.#cursor.place];
      ctx.setLineDash([]);
      ctx.lineWidth = 1.5;
      ctx.strokeStyle = paint("--text");
      ctx.strokeRect(x(at - seconds), y(this.#cursor.bucket), x(at) - x(at - seconds), tall);
    }
  }
}

/** Seconds between the labels of a time axis, at least so many. */
function spacing(least) {
  return [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200].find((each) => each >= least) ?? 14_400;
}
