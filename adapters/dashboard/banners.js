// What is wrong with the measuring itself, as /health tells it, a banner each.

import { full, make } from "./format.js";

const OPERATIONAL = "operational";
const KNOWN = {
  metrics_monitor: "The metrics",
  request_tracking: "Requests",
  resource_monitoring: "CPU and memory",
  websocket_tracking: "WebSockets",
};

/** `health` as `/health` has it; `requests`: how many were counted so far. */
export function showBanners(place, health, requests) {
  const found = [...partial(health), ...unmeasured(health, requests), ...components(health)];
  const text = JSON.stringify(found);
  if (place.dataset.of === text) return; // no screen reader is told the same thing twice
  place.dataset.of = text;
  place.replaceChildren(...found.map(([title, words]) =>
    make("p", { class: "banner warn" }, make("strong", {}, title), ` ${words}`)));
}

/** In private mode a worker knows its own numbers only; one that is alone knows all there are. */
function* partial({ mode, mode_reason: reason, server_processes: processes }) {
  if (mode !== "private" || processes === 1) return;
  const of = processes ? ` of ${full(processes)}` : " only";
  yield [`You see one worker${of}.`, `These numbers are those of the worker that answers: ${reason}.`];
}

function* unmeasured({ measured }, requests) {
  if (measured !== false || requests > 0) return;
  yield ["Nothing is measured here.", "No middleware records the requests of this application, and nothing else was recorded: wrap the application, or add the middleware."];
}

/** The page itself says already why the request for it was not measured. */
function* components({ components: states }) {
  for (const [name, state] of Object.entries(states)) {
    if (state === OPERATIONAL || state.startsWith("requests are not measured")) continue;
    yield [`${KNOWN[name] ?? name.replaceAll("_", " ")}:`, `${state}.`];
  }
}
