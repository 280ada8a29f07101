// Numbers and times as the page writes them, and elements made of text alone.

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" });
const clock = new Intl.DateTimeFormat([], {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false,
});

export const NONE = "–";

/** A number in full, as the API tells it. */
export function full(value) {
  return typeof value === "number" && Number.isFinite(value) ? number.format(value) : NONE;
}

/** A number for an axis: three digits. */
export function compact(value) {
  return typeof value === "number" && Number.isFinite(value) ? short.format(value) : NONE;
}

/** A time of day, of what Date understands. */
export function time(moment) {
  return clock.format(new Date(moment));
}

/** "5 min", "45 s", "1 h". */
export function span(seconds) {
  if (seconds % 3600 === 0) return `${seconds / 3600} h`;
  if (seconds % 60 === 0) return `${seconds / 60} min`;
  return `${seconds} s`;
}

/** An element with attributes and children; strings become text, never markup. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Set the text, where it differs: no screen reader is told the same thing twice. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
