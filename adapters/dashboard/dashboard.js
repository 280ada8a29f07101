// The page: takes what the feed brings, and shows it.

import { Chart, hasCharts } from "./charts.js";
import { Feed } from "./feed.js";
import { full, make, span, time, write } from "./format.js";
import { Routes } from "./routes.js";

const root = document.documentElement;
const find = (id) => document.getElementById(id);
// This file is at <mount>/static/<hash>/dashboard.js.
const base = new URL("../../", import.meta.url);
const SAME_MOMENT = 1000; // ms: one moment told twice by a wall clock
const HOUR = 3600;
const MOST_EVENTS = 50;

const state = {
  connection: "loading",
  metrics: null,
  steps: new Map(), // number of the step -> the step
  window: 300,
  started: null,
  reset: null,
  markers: [], // {at, label}
  hour: false,
  history: [],
  told: 0, // when the last update came, by the server's clock
};

// --- charts --------------------------------------------------------------------------------------

// CPU and memory are known where somebody looked: at least once a minute.
const percentiles = [
  { field: "latency_p50_ms", label: "P50", colour: "one" },
  { field: "latency_p95_ms", label: "P95", colour: "two", dash: "dashed" },
  { field: "latency_p99_ms", label: "P99", colour: "three", dash: "dotted" },
];
const charts = [
  { title: "Request rate", unit: "a minute", wide: true, lines: [{ field: "request_rate_rpm", label: "Requests", colour: "accent", fill: true }] },
  { title: "Latency", unit: "ms", wide: true, lines: percentiles },
  { title: "Error rate", unit: "%", lines: [{ field: "error_rate_pct", label: "Errors", colour: "three", fill: true }] },
  { title: "CPU", unit: "%", lines: [{ field: "cpu_usage_pct", label: "CPU", colour: "one", fill: true, spanGaps: true }] },
  { title: "Memory", unit: "MB", lines: [{ field: "memory_usage_mb", label: "Memory", colour: "two", fill: true, spanGaps: true }] },
].map((options) => new Chart({ ...options, sync: "page", height: options.wide ? 200 : 160 }));
find("charts").append(...charts.map((chart) => chart.element));
find("no-charts").hidden = hasCharts;

function showCharts() {
  const now = state.told / 1000;
  const rows = state.hour ? state.history : [...state.steps.values()];
  const from = now - (state.hour ? HOUR : state.window);
  for (const chart of charts) chart.show(rows, from, now, state.markers);
  find("no-history").hidden = !(state.hour && !state.history.length);
}

async function loadHistory() {
  try {
    const answer = await fetch(new URL("history?minutes=60", base), { cache: "no-store" });
    if (!answer.ok) return;
    const { history } = await answer.json();
    state.history = history.map((row) => ({ ...row, at: Date.parse(row.timestamp) / 1000 }));
    if (state.hour) showCharts();
  } catch {
    // The feed says what is wrong, and comes back.
  }
}

function choose(hour) {
  state.hour = hour;
  find("span-window").setAttribute("aria-pressed", String(!hour));
  find("span-hour").setAttribute("aria-pressed", String(hour));
  showCharts();
  if (hour) loadHistory();
}
find("span-window").addEventListener("click", () => choose(false));
find("span-hour").addEventListener("click", () => choose(true));
setInterval(() => state.hour && state.connection !== "lost" && loadHistory(), 30_000);

// --- routes --------------------------------------------------------------------------------------

const routes = new Routes({
  place: find("routes-table"),
  filter: find("filter"),
  count: find("routes-count"),
  async ask(method, route) {
    const answer = await fetch(new URL(`series?${new URLSearchParams({ method, route })}`, base), { cache: "no-store" });
    if (!answer.ok) throw answer;
    return answer.json();
  },
});

// --- updates -------------------------------------------------------------------------------------

const fields = [...document.querySelectorAll("[data-field]")];

function onUpdate(update) {
  const { metrics } = update;
  state.told = Date.parse(metrics.timestamp);
  const before = state.metrics;
  state.metrics = metrics;
  for (const element of fields) write(element, full(metrics[element.dataset.field]));
  find("tile-errors").classList.toggle("raised", metrics.error_rate_pct >= 5);
  find("empty").hidden = metrics.total_requests > 0;
  write(find("updated"), time(state.told));
  find("updated").dateTime = metrics.timestamp;
  find("updated-line").hidden = false;
  if (before && before.workers !== metrics.workers) {
    const lost = metrics.workers < before.workers;
    happened(`${lost ? "Worker lost" : "Worker joined"}: ${before.workers} → ${metrics.workers}`, lost ? "bad" : "good");
  }
  if (update.series) {
    if (update.window_seconds) setWindow(update.window_seconds);
    onSeries(update);
  }
  if (update.routes) routes.show(update.routes);
  showCharts();
}

function onSeries({ started, reset, series }) {
  const restarted = state.started !== null && moved(state.started, started);
  const wasReset = reset !== null && (state.started !== null || state.reset !== null) && moved(state.reset, reset);
  if (restarted || wasReset) {
    state.steps.clear();
    state.history = [];
    loadHistory();
  }
  if (restarted) happened("Server restarted", "info", Date.parse(started));
  else if (wasReset) happened("Counts were reset", "info", Date.parse(reset));
  state.started = started;
  state.reset = reset;
  state.markers = [{ at: Date.parse(started) / 1000, label: "start" }];
  if (reset) state.markers.push({ at: Date.parse(reset) / 1000, label: "reset" });
  for (const step of series) state.steps.set(step.step, { ...step, at: Date.parse(step.timestamp) / 1000 });
  const oldest = state.told / 1000 - state.window;
  for (const [number, { at }] of state.steps) if (at < oldest) state.steps.delete(number);
}

function moved(before, now) {
  if (before === null || now === null) return before !== now;
  return Math.abs(Date.parse(before) - Date.parse(now)) > SAME_MOMENT;
}

function setWindow(seconds) {
  state.window = seconds;
  write(find("span-window"), `Live, ${span(seconds)}`);
}

function happened(text, kind, at = state.told || Date.now()) {
  const moment = new Date(at);
  const entry = make("li", { class: kind }, make("time", { datetime: moment.toISOString() }, time(moment)), make("span", {}, text));
  find("events").prepend(entry);
  find("no-events").hidden = true;
  while (find("events").children.length > MOST_EVENTS) find("events").lastChild.remove();
}

// --- the connection ------------------------------------------------------------------------------

const SAID = { loading: "Connecting…", live: "Live", polling: "Live, polling", lost: "Connection lost", unauthorised: "Signed out" };

function onState(now, detail) {
  const before = state.connection;
  if (now === "lost") {
    const last = state.metrics ? ` These are the numbers of ${time(state.told)}.` : "";
    write(find("lost-text"), `${detail || "The server does not answer."}${last} Trying again…`);
  }
  if (now === before) return;
  state.connection = now;
  document.body.dataset.state = now;
  write(find("connection-text"), SAID[now]);
  find("lost").hidden = now !== "lost";
  const out = now === "unauthorised";
  find("signin").hidden = !out;
  find("content").hidden = out;
  if (out) {
    find("signin-form").hidden = !detail;
    find("signin-host").hidden = Boolean(detail);
    remember(false);
    if (detail) find("token").focus();
  }
  if (now === "lost" && state.metrics) happened("Connection lost", "bad", Date.now());
  if (before === "lost" && !out && state.metrics) happened("Connection restored", "good", Date.now());
}

const feed = new Feed({ base, streams: root.dataset.streams === "yes", onUpdate, onState });

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
    feed.start();
  }
});

// --- signing in and out --------------------------------------------------------------------------

function remember(signedIn) {
  // The cookie itself cannot be seen from here.
  if (signedIn) localStorage.setItem("metricsmw-signed-in", base.href);
  else localStorage.removeItem("metricsmw-signed-in");
  find("signout").hidden = !signedIn;
}
find("signout").hidden = localStorage.getItem("metricsmw-signed-in") !== base.href;

find("signin-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = find("token");
  write(find("signin-error"), "");
  // Headers take bytes, and a token may be any text.
  const bytes = String.fromCharCode(...new TextEncoder().encode(input.value.trim()));
  const problem = await fetch(new URL("signin", base), { method: "POST", headers: { Authorization: `Bearer ${bytes}` } })
    .then((answer) => (answer.ok ? "" : refusal(answer)), () => "The server does not answer. Try again in a moment.");
  if (problem) {
    write(find("signin-error"), problem);
    input.setAttribute("aria-invalid", "true");
    input.select();
    return;
  }
  input.value = "";
  input.removeAttribute("aria-invalid");
  remember(true);
  feed.start();
  find("main").focus();
});

function refusal(answer) {
  if (answer.status === 401) return "That is not the token of this server.";
  if (answer.status === 429) return `Too many failed tries. Try again in ${answer.headers.get("Retry-After")} seconds.`;
  return `The server answers with ${answer.status}.`;
}

find("signout").addEventListener("click", async () => {
  find("menu").open = false;
  await fetch(new URL("signout", base), { method: "POST" }).catch(() => null);
  remember(false);
  feed.start();
});

// --- reset ---------------------------------------------------------------------------------------

const dialog = find("reset-dialog");
find("reset").addEventListener("click", () => {
  find("menu").open = false;
  write(find("reset-error"), "");
  dialog.showModal();
});
find("reset-confirm").addEventListener("click", async () => {
  const done = await fetch(new URL("reset", base), { method: "POST" }).catch(() => null);
  if (done?.ok) dialog.close();
  else write(find("reset-error"), done ? `The server answers with ${done.status}.` : "The server does not answer.");
});

// --- theme ---------------------------------------------------------------------------------------

const THEMES = { system: "System", light: "Light", dark: "Dark" };

function setTheme(theme) {
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  write(find("theme-text"), THEMES[theme]);
  find("theme").setAttribute("aria-label", `Theme: ${theme === "system" ? "as the system" : theme}`);
  localStorage.setItem("metricsmw-theme", theme);
  restyle();
}

function restyle() {
  for (const chart of charts) chart.restyle();
  routes.restyle();
}

find("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(root.dataset.theme ?? "system") + 1) % names.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);

// --- and go --------------------------------------------------------------------------------------

const stored = localStorage.getItem("metricsmw-theme");
setTheme(stored in THEMES ? stored : "system");
document.addEventListener("click", (event) => {
  if (!find("menu").contains(event.target)) find("menu").open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && find("menu").open) {
    find("menu").open = false;
    find("menu").querySelector("summary").focus();
  }
  const typing = event.target.closest("input, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    find("filter").focus();
  }
});
write(find("host"), location.host);
document.title = `Live metrics · ${location.host}`;
feed.start();
