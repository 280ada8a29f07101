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

/** The powers of ten, in milliseconds, between two buckets. */
export function decades(first, last, scale) {
  const low = Math.ceil(Math.log10(upper(first - 1, scale)));
  const high = Math.floor(Math.log10(upper(last, scale)));
  return Array.from({ length: Math.max(high - low + 1, 0) }, (_, place) => 10 ** (low + place));
}

/** A latency for an axis. */
export function brief(milliseconds) {
  if (milliseconds >= 1000) return `${compact(milliseconds / 1000)} s`;
  return milliseconds >= 1 ? `${compact(milliseconds)} ms` : `${compact(1000 * milliseconds)} µs`;
}
