// What drawings of our own share: a canvas of the right size, the theme's colours, and axes.

import { compact } from "./format.js";

/** The room around a drawing for its axes, as the charts have it. */
const ROOM = { left: 46, right: 22, top: 10, bottom: 22 };
const FONT = "11px system-ui, sans-serif";

/** A colour of the theme. */
export function paint(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * A canvas that is as wide as its place: cleared, in units of the page. Null where it is not seen.
 *
 * Returns {ctx, box}: `box` is what is left of it beside the axes: {left, top, width, height}.
 */
export function surface(canvas, height) {
  const width = canvas.parentElement?.clientWidth ?? 0;
  if (width <= ROOM.left + ROOM.right) return null;
  const scale = devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const ctx = canvas.getContext("2d");
  ctx.setTransform(scale, 0, 0, scale, 0, 0);
  ctx.font = FONT;
  const box = { left: ROOM.left, top: ROOM.top, width: width - ROOM.left - ROOM.right, height: height - ROOM.top - ROOM.bottom };
  return { ctx, box };
}

/** The largest latency of a bucket in milliseconds. */
export function upper(bucket, scale) {
  return 1000 * 2 ** (bucket / 2 ** scale);
}

/** The bucket of a latency in milliseconds, with the share of it that lies below. */
export function placeOf(milliseconds, scale) {
  return Math.log2(milliseconds / 1000) * 2 ** scale;
}

// Of each power of ten: what an axis has, the first of these that has two labels.
const MULTIPLES = [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]];

/** Round latencies between two buckets, in milliseconds: powers of ten, and more where these are few. */
export function roundLatencies(first, last, scale) {
  const [from, to] = [upper(first - 1, scale), upper(last, scale)];
  const [low, high] = [from, to].map((end) => Math.floor(Math.log10(end)));
  const powers = Array.from({ length: high - low + 1 }, (_, place) => 10 ** (low + place));
  const choices = MULTIPLES.map((multiples) =>
    powers.flatMap((power) => multiples.map((each) => each * power)).filter((at) => at >= from && at <= to));
  return choices.find((found) => found.length > 1) ?? choices.at(-1);
}

/** A latency for an axis. */
export function brief(milliseconds) {
  if (milliseconds >= 1000) return `${compact(milliseconds / 1000)} s`;
  return milliseconds >= 1 ? `${compact(milliseconds)} ms` : `${compact(1000 * milliseconds)} µs`;
}
