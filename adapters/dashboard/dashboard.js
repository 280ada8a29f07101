// The page: takes what the feed brings, and shows it.

import { Alerts } from "./alerts.js";
import { showBanners } from "./banners.js";
import { byClass, Chart, CLASSES, FIRST_BYTE, hasCharts, markers, withFirstBytes } from "./charts.js";
import { Custom } from "./custom.js";
import { liveSteps } from "./detail.js";
import { Errors } from "./errors.js";
import { Events } from "./events.js";
import { Feed } from "./feed.js";
import { dated, measured, write, zoned } from "./format.js";
import { Routes } from "./routes.js";
import { inAddress, keep, recall } from "./settings.js";
import { Shape } from "./shape.js";
import { signIn, signInByAddress } from "./signin.js";
import { Spans } from "./spans.js";
import { Looks } from "./theme.js";
import { Workers } from "./workers.js";

const root = document.documentElement;
const find = (id) => document.getElementById(id);
// This file is at <mount>/static/<hash>/dashboard.js.
const base = new URL("../../", import.meta.url);
const SAME_MOMENT = 1000; // ms: one moment told twice by a wall clock

const state = {
  connection: "loading",
  metrics: null,
  first: null, // the time to first byte, as it was told last
  steps: new Map(), // number of the step -> the step
  window: 300,
  started: null,
  age: null, // ms since the start, and since the last reset, as they were told last
  sinceReset: null,
  wasAway: false, // not connected since the last series
  markers: [], // {at, label}
  zoom: null, // the span that was dragged in a chart
  told: 0, // the server's clock at the last update
  toldAt: 0, // the browser's monotonic clock then
};

// --- charts --------------------------------------------------------------------------------------

const percentiles = [
  { field: "latency_p50_ms", label: "P50", colour: "one" },
  { field: "latency_p95_ms", label: "P95", colour: "two", dash: "dashed" },
  { field: "latency_p99_ms", label: "P99", colour: "three", dash: "dotted" },
];
const charts = [
  { title: "Request rate", unit: "a minute", wide: true, lines: [{ field: "request_rate_rpm", label: "Requests", colour: "accent", fill: true }] },
  { title: "Latency", unit: "ms", wide: true, lines: [...percentiles, FIRST_BYTE], logarithmic: true },
  { title: "Statuses", unit: "a minute", stacked: true, lines: CLASSES },
  { title: "Error rate", unit: "%", lines: [{ field: "error_rate_pct", label: "Errors", colour: "one", dash: "dotted" }, { field: "server_error_rate_pct", label: "by the server", colour: "three", fill: true }] },
  { title: "CPU", unit: "%", lines: [{ field: "cpu_usage_pct", label: "CPU", colour: "one", fill: true, spanGaps: true }] },
  { title: "Memory", unit: "MB", lines: [{ field: "memory_usage_mb", label: "Memory", colour: "two", fill: true, spanGaps: true }] },
].map((options) => new Chart({ ...options, sync: "page", onZoom: zoomTo, height: options.wide ? 200 : 160 }));
find("charts").append(...charts.map((chart) => chart.element));
find("no-charts").hidden = hasCharts;

function showCharts() {
  if (!state.told) return;
  const { minutes } = spans;
  const rows = minutes ? (spans.rows ?? []) : [...state.steps.values()];
  // Who polls asks for the steps after the numbers: one may have ended in between.
  const now = Math.max(state.told / 1000, rows.at(-1)?.at ?? 0);
  const [from, to] = state.zoom ?? [now - (minutes ? 60 * minutes : state.window), now];
  const told = withFirstBytes(rows);
  for (const chart of charts) chart.show(told, from, to, [...state.markers, ...alerts.marks(chart.fields)]);
}

// --- the span ------------------------------------------------------------------------------------

const spans = new Spans({
  place: find("spans"), window: find("span-window"), note: find("no-history"),
  kept: Number(root.dataset.minutes), base, isFed,
  changed(isOther) {
    showTiles();
    routes.over(spans.routes, spans.name);
    if (!isOther) return showCharts();
    zoomTo(null);
    routes.reload();
  },
});

/** A span that was dragged in a chart, or null for all that there is. */
function zoomTo(range) {
  state.zoom = range;
  find("unzoom").hidden = !range;
  routes.zoomTo(range);
  shape.show(range);
  showCharts();
}
find("unzoom").addEventListener("click", () => zoomTo(null));

// --- the shape of latency ------------------------------------------------------------------------

const shapeOf = (route, height = 150) => new Shape({ base, route, height, marks: () => [...state.markers, ...alerts.marks(["latency_p95_ms"], route)] });
const shape = shapeOf({}, 220);
find("shape-place").append(shape.element);

function showShape() {
  if (find("shape").open) shape.refresh(state.zoom);
}
find("shape").addEventListener("toggle", showShape);

// --- routes --------------------------------------------------------------------------------------

const routes = new Routes({
  place: find("routes-table"),
  filter: find("filter"),
  count: find("routes-count"),
  async ask(method, route) {
    if (spans.minutes) return { ...(await spans.ofRoute(method, route, serverTime() / 1000)), marks: state.markers };
    const answer = await fetch(new URL(`series?${new URLSearchParams({ method, route })}`, base), { cache: "no-store" });
    if (!answer.ok) throw answer;
    return liveSteps(await answer.json());
  },
  zoomed: zoomTo,
  shapeOf,
});

// --- errors, workers, the app's own numbers ------------------------------------------------------

const custom = new Custom({ section: find("custom"), count: find("custom-count"), table: find("custom-table"), place: find("custom-chart"), base });

const workers = new Workers({ card: find("workers"), count: find("workers-count"), table: find("workers-table"), base });

const errors = new Errors({ section: find("errors"), count: find("errors-count"), list: find("errors-list"), base });

// --- updates -------------------------------------------------------------------------------------

const alerts = new Alerts({ section: find("alerts"), list: find("alerts-list"), count: find("alerts-count"), happened, fires, base, dialog: find("silence-dialog"), toErrors: (route) => errors.goTo(route) || routes.goToErrors(route) });
const events = new Events({ list: find("events"), none: find("no-events") });
const fields = [...document.querySelectorAll("[data-field]")];
const spanNames = [...document.querySelectorAll(".of-window")];

const NAME = `Live metrics · ${location.host}`;
const icon = document.querySelector("link[rel=icon]");
const QUIET = icon.href;
const ALARMING = new URL("icon-alert.svg", QUIET).href;

/** Title and icon tell of what fires, also where the page is one of many tabs. */
function fires(count) {
  document.title = count ? `(${count}) Alert · ${NAME}` : NAME;
  const href = count ? ALARMING : QUIET;
  if (icon.href !== href) icon.href = href;
}

function onUpdate(update) {
  const { metrics } = update;
  state.told = Date.parse(metrics.timestamp);
  state.toldAt = performance.now();
  state.metrics = metrics;
  state.first = update.first_bytes ?? state.first;
  find("empty").hidden = metrics.total_requests > 0;
  write(find("updated"), zoned(state.told));
  find("updated").dateTime = metrics.timestamp;
  find("updated-line").hidden = false;
  if (update.series) {
    if (update.window_seconds) setWindow(update.window_seconds);
    onSeries(update);
  }
  showTiles();
  if (update.routes) {
    routes.show(update.routes);
    custom.refresh(); // as often, and no more where nobody looks
    workers.refresh();
    errors.refresh();
    showShape();
  }
  if (update.alerts) alerts.show(update.alerts);
  if (update.events) events.show(update.events);
  if (update.health) showBanners(find("banners"), update.health, metrics.total_requests);
  showCharts();
}

/** The numbers of now; in a longer span those of it as a whole, as far as the server tells them. */
function showTiles() {
  if (!state.metrics) return;
  const summary = spans.summary ?? {};
  // The time to first byte is known of the live window only.
  const numbers = { ...(spans.summary ? {} : state.first), ...state.metrics, ...summary };
  for (const element of fields) {
    const { field } = element.dataset;
    const [text, unit] = measured(numbers[field], field.endsWith("_ms") ? "ms" : "");
    write(element, text);
    if (unit) write(element.nextElementSibling, unit);
  }
  for (const element of spanNames) write(element, `over the ${spans.summary ? spans.name : spans.liveName}`);
}

function onSeries({ started, reset, series }) {
  // A server's start is told by a wall clock, which may jump; its age only grows.
  const age = state.told - Date.parse(started);
  const sinceReset = reset === null ? null : state.told - Date.parse(reset);
  const known = state.age !== null;
  const restarted = known && (shrank(state.age, age) || isAnother(started, series));
  const wasReset = known && !restarted && sinceReset !== null && shrank(state.sinceReset ?? Infinity, sinceReset);
  Object.assign(state, { started, age, sinceReset, wasAway: false });
  if (restarted || wasReset) {
    state.steps.clear();
    spans.forget();
    spans.load();
  }
  state.markers = markers({ started, reset });
  for (const step of series) state.steps.set(step.step, { ...step, ...byClass(step), at: Date.parse(step.timestamp) / 1000 });
  const oldest = state.told / 1000 - state.window;
  for (const [number, { at }] of state.steps) if (at < oldest) state.steps.delete(number);
}

function shrank(before, now) {
  return now < before - SAME_MOMENT;
}

/** Whether the server that is found again is another one, which does not know the steps that it told. */
function isAnother(started, series) {
  const moved = Math.abs(Date.parse(state.started) - Date.parse(started)) > SAME_MOMENT;
  const last = Math.max(...state.steps.keys());
  return state.wasAway && moved && !series.some(({ step }) => step === last);
}

function setWindow(seconds) {
  state.window = seconds;
  spans.setWindow(seconds);
}

/** The server's clock, also where it is not heard of any more. */
function serverTime() {
  return state.told ? state.told + performance.now() - state.toldAt : Date.now();
}

function happened(text, kind) {
  events.add(text, kind, serverTime());
}

// --- the connection ------------------------------------------------------------------------------

const SAID = { loading: "Connecting…", live: "Live", polling: "Live, polling", paused: "Paused", lost: "Connection lost", unauthorised: "Signed out" };

function onState(now, detail) {
  const before = state.connection;
  if (now === "lost") {
    const last = state.metrics ? ` These are the numbers of ${dated(state.told)}.` : "";
    write(find("lost-text"), `${detail || "The server does not answer."}${last} Trying again…`);
  }
  find("signin-rested").hidden = now !== "resting";
  if (now === before || now === "resting") return;
  state.connection = now;
  document.body.dataset.state = now;
  write(find("connection-text"), SAID[now]);
  find("lost").hidden = now !== "lost";
  const out = now === "unauthorised";
  find("signin").hidden = !out;
  find("content").hidden = out;
  if (out) askToSignIn(detail);
  if (now === "lost" && state.metrics) happened("Connection lost", "bad");
  state.wasAway ||= !isFed();
  if (before === "lost" && (now === "live" || now === "polling") && state.metrics) happened("Connection restored", "good");
  if (isFed()) spans.load();
}

const session = root.dataset.session === "yes";
const feed = new Feed({ base, streams: root.dataset.streams === "yes", session, onUpdate, onState });
let paused = false;

function isFed() {
  return !paused && !asleep && (state.connection === "live" || state.connection === "polling");
}

function go() {
  pause(false);
  feed.start();
}

function pause(on) {
  paused = on;
  find("pause").setAttribute("aria-pressed", String(on));
  if (!on) return;
  feed.stop();
  onState("paused");
}
find("pause").addEventListener("click", () => (paused ? go() : pause(true)));

// A page that nobody sees rests: browsers have few connections for all tabs of a site.
const REST_AFTER = 10_000;
let resting = 0;
let asleep = false;
document.addEventListener("visibilitychange", () => {
  clearTimeout(resting);
  if (document.hidden) {
    resting = setTimeout(() => {
      asleep = true;
      feed.stop();
    }, REST_AFTER);
  } else if (asleep) {
    asleep = false;
    state.wasAway = true;
    if (!paused) feed.start();
    spans.load();
  }
});

// --- signing in and out --------------------------------------------------------------------------

/** `scheme`: what the server asks for, "bearer", "basic", or "" where only its own session lets in. */
function askToSignIn(scheme) {
  find("signin-form").hidden = scheme !== "bearer";
  find("signin-basic").hidden = scheme !== "basic";
  find("signin-host").hidden = scheme === "basic" || (scheme === "bearer" && !session);
  const sign = scheme === "bearer" ? "Or sign" : "These numbers are private. Sign";
  write(find("signin-host"), `${sign} in to the application itself, then come back: this page goes on by itself.`);
  remember(false);
  if (scheme === "bearer") find("token").focus();
}

for (const id of ["signin-again", "signin-look"]) find(id).addEventListener("click", go);

function remember(signedIn) {
  // The cookie itself cannot be seen from here.
  keep("signed-in", signedIn ? base.href : "");
  find("signout").hidden = !signedIn;
}
find("signout").hidden = recall("signed-in") !== base.href;

find("signin-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = find("token");
  write(find("signin-error"), "");
  const answer = await signIn(base, input.value);
  if (!answer?.ok) {
    write(find("signin-error"), refusal(answer));
    input.setAttribute("aria-invalid", "true");
    input.select();
    return;
  }
  input.value = "";
  input.removeAttribute("aria-invalid");
  remember(true);
  go();
  find("main").focus();
});

function refusal(answer) {
  if (!answer) return "The server does not answer. Try again in a moment.";
  if (answer.status === 401) return "That is not the token of this server.";
  if (answer.status === 429) return `Too many failed tries. Try again in ${answer.headers.get("Retry-After")} seconds.`;
  return `The server answers with ${answer.status}.`;
}

find("signout").addEventListener("click", async () => {
  find("menu").open = false;
  await fetch(new URL("signout", base), { method: "POST" }).catch(() => null);
  remember(false);
  go();
});

// --- reset ---------------------------------------------------------------------------------------

const dialog = find("reset-dialog");
find("reset").addEventListener("click", () => {
  find("menu").open = false;
  write(find("reset-error"), "");
  dialog.showModal();
});
// The button that opened it is in a menu that has closed.
dialog.addEventListener("close", () => find("menu").querySelector("summary").focus());
find("reset-confirm").addEventListener("click", async () => {
  const done = await fetch(new URL("reset", base), { method: "POST" }).catch(() => null);
  if (done?.ok) dialog.close();
  else write(find("reset-error"), (await done?.json().catch(() => null))?.error ?? "The server does not answer.");
});

// --- theme ---------------------------------------------------------------------------------------

function restyle() {
  for (const chart of charts) chart.restyle();
  routes.restyle();
  shape.restyle();
  custom.restyle();
}

const look = new Looks({ theme: find("theme"), log: find("log"), restyle });

// --- and go --------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  if (!find("menu").contains(event.target)) find("menu").open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && find("menu").open) {
    find("menu").open = false;
    find("menu").querySelector("summary").focus();
  }
  const typing = event.target.closest("input, dialog") || find("content").hidden;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    find("filter").focus();
  }
});
write(find("host"), location.host);
document.title = NAME;
async function enter(event) {
  if (event && !inAddress("token")) {
    for (const part of [look, routes, spans]) part.apply();
    return;
  }
  const answer = await signInByAddress(base);
  if (answer?.ok) remember(true);
  else if (answer !== undefined) write(find("signin-error"), refusal(answer));
  if (answer?.ok || !event) feed.start();
}
addEventListener("hashchange", enter);
enter().then(() => spans.apply());
