// <metrics-widget>: a few live numbers on a page of one's own.
//
//   <script type="module" src="/api/metrics/widget.js"></script>
//   <metrics-widget></metrics-widget>
//
// Attributes: `fields`, names of the snapshot's fields parted by blanks or commas; `interval`,
// seconds between two looks, 1 to 3600; `href`, where the metrics are (default: where this file is).
// Colours and font are the page's own; `--metrics-widget-accent` and `--metrics-widget-edge` tune it.

const HERE = new URL("./", import.meta.url);
const FIELDS = "request_rate_rpm error_rate_pct latency_p95_ms active_users";
const NAMES = {
  request_rate_rpm: ["Request rate", "RPM"],
  error_rate_pct: ["Error rate", "%"],
  latency_p50_ms: ["P50 latency", "ms"],
  latency_p95_ms: ["P95 latency", "ms"],
  latency_p99_ms: ["P99 latency", "ms"],
  latency_max_ms: ["Slowest", "ms"],
  active_users: ["Active users", "users"],
  memory_usage_pct: ["Memory", "%"],
  memory_usage_mb: ["Memory", "MB"],
  cpu_usage_pct: ["CPU", "%"],
  websocket_connections: ["WebSockets", "open"],
  total_requests: ["Requests", "in total"],
  total_errors: ["Errors", "in total"],
  requests_in_flight: ["In flight", "requests"],
  workers: ["Workers", ""],
};
const format = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

const style = new CSSStyleSheet();
style.replaceSync(`
  :host { display: block; container-type: inline-size; }
  :host([hidden]) { display: none; }
  dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 130px), 1fr)); gap: 12px; margin: 0; }
  div { padding: 12px 14px; border: 1px solid var(--metrics-widget-edge, color-mix(in srgb, currentcolor 22%, transparent)); border-radius: 10px; min-width: 0; }
  dt { font-size: 0.8em; }
  dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
  b { font-size: 1.6em; font-weight: 600; letter-spacing: -0.02em; color: var(--metrics-widget-accent, inherit); }
  span { font-size: 0.8em; }
  p { margin: 8px 0 0; font-size: 0.8em; }
  p:empty { display: none; }
`);

class MetricsWidget extends HTMLElement {
  static observedAttributes = ["fields", "interval", "href"];

  #values = new Map();
  #note = document.createElement("p");
  #timer = 0;
  #look = 0;

  constructor() {
    super();
    this.attachShadow({ mode: "open" }).adoptedStyleSheets = [style];
    this.#note.setAttribute("role", "status");
  }

  connectedCallback() {
    this.#build();
    this.#begin();
  }

  disconnectedCallback() {
    clearTimeout(this.#timer);
    this.#look += 1;
  }

  attributeChangedCallback() {
    if (!this.isConnected) return;
    this.#build();
    this.#begin();
  }

  #build() {
    const list = document.createElement("dl");
    this.#values.clear();
    for (const field of (this.getAttribute("fields") || FIELDS).split(/[\s,]+/).filter(Boolean)) {
      const [label, unit] = NAMES[field] ?? [field, ""];
      const [box, term, detail, value, after] = ["div", "dt", "dd", "b", "span"].map((name) => document.createElement(name));
      term.textContent = label;
      value.textContent = "–";
      value.dataset.field = field;
      after.textContent = unit && ` ${unit}`;
      detail.append(value, after);
      box.append(term, detail);
      list.append(box);
      this.#values.set(field, value);
    }
    this.shadowRoot.replaceChildren(list, this.#note);
  }

  #begin() {
    clearTimeout(this.#timer);
    const look = (this.#look += 1);
    const seconds = Number(this.getAttribute("interval") ?? 5);
    const interval = 1000 * Math.min(Math.max(Number.isFinite(seconds) ? seconds : 5, 1), 3600);
    const go = async () => {
      if (!document.hidden) await this.#show(look);
      if (look === this.#look) this.#timer = setTimeout(go, interval);
    };
    go();
  }

  async #show(look) {
    let note = "";
    try {
      const href = this.getAttribute("href");
      const base = href ? new URL(href.endsWith("/") ? href : `${href}/`, document.baseURI) : HERE;
      const answer = await fetch(new URL("current", base), { cache: "no-store" });
      if (look !== this.#look) return;
      if (answer.ok) {
        const { metrics } = await answer.json();
        for (const [field, value] of this.#values) {
          const number = metrics[field];
          value.textContent = typeof number === "number" ? format.format(number) : String(number ?? "–");
        }
      } else note = answer.status === 401 ? "Sign in to see the numbers." : `No numbers: status ${answer.status}.`;
    } catch {
      note = "No connection. Trying again…";
    }
    if (this.#note.textContent !== note) this.#note.textContent = note;
  }
}

customElements.get("metrics-widget") ?? customElements.define("metrics-widget", MetricsWidget);
