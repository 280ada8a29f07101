// Numbers and times as the page writes them, and elements made of text alone.

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const little = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const hundredths = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const thousandths = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" });
const MINUTES = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const minutes = new Intl.DateTimeFormat([], MINUTES);
const clock = new Intl.DateTimeFormat([], { ...MINUTES, second: "2-digit" });
const day = new Intl.DateTimeFormat([], { month: "short", day: "numeric" });
const zone = new Intl.DateTimeFormat([], { ...MINUTES, second: "2-digit", timeZoneName: "short" });

export const NONE = "–";

/** A number in full, as the API tells it; of less than a tenth, as own ones in seconds may be, three digits. */
export function full(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
  return (Math.abs(value) < 0.1 ? little : number).format(value);
}

/** The same with two decimals, for columns in which points stand below each other. */
export function fixed(value) {
  return typeof value === "number" && Number.isFinite(value) ? hundredths.format(value) : NONE;
}

/** A number and its unit: of milliseconds from 1,000 on seconds, to the millisecond. */
export function measured(value, unit) {
  if (unit === "ms" && value >= 1000) return [thousandths.format(value / 1000), "s"];
  return [full(value), unit];
}

/** The same of milliseconds as one text. */
export function timed(value) {
  return measured(value, "ms").join(" ");
}

const UNITS = { _pct: "%", _rpm: "a minute", _mb: "MB", " rate": "a minute", _rate: "times" };

/** The value of a field with its unit, by the end of the field's name, as alerts say it. */
export function ofField(field, value) {
  if (field.endsWith("_ms")) return timed(value);
  const end = Object.keys(UNITS).find((each) => field.endsWith(each));
  return end ? `${full(value)} ${UNITS[end]}` : full(value);
}

/** Milliseconds for a column that has "ms" in its head: from 1,000 on with their unit. */
export function fixedTime(value) {
  return value >= 1000 ? timed(value) : fixed(value);
}

/** A text cut in its middle: the end of a template says most. */
export function cut(text, most) {
  if (text.length <= most) return text;
  const head = Math.floor((most - 1) / 2);
  return `${text.slice(0, head)}…${text.slice(text.length - (most - 1 - head))}`;
}

/** A number for an axis: three digits. */
export function compact(value) {
  return typeof value === "number" && Number.isFinite(value) ? short.format(value) : NONE;
}

/** A time of day, of what Date understands. */
export function time(moment) {
  return clock.format(new Date(moment));
}

/** A time of day with its time zone. */
export function zoned(moment) {
  return zone.format(new Date(moment));
}

/** A time of day, with the date where that is not today's. */
export function dated(moment) {
  const date = new Date(moment);
  const today = date.toDateString() === new Date().toDateString();
  return today ? time(date) : `${day.format(date)}, ${time(date)}`;
}

/** A label of a time axis whose labels are so many seconds apart. */
export function tick(moment, apart) {
  const date = new Date(moment);
  if (apart < 60) return time(date);
  return date.getHours() || date.getMinutes() ? minutes.format(date) : day.format(date);
}

/** "5 min", "45 s", "1 h", "7 days". */
export function span(seconds) {
  if (seconds % 86_400 === 0 && seconds > 86_400) return `${full(seconds / 86_400)} days`;
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
