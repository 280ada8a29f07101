// The page's theme: the system's, light or dark; and the latency charts' scale.

import { hasCharts, looks } from "./charts.js";
import { write } from "./format.js";
import { inAddress, keep, putInAddress, recall } from "./settings.js";

const root = document.documentElement;
const THEMES = { system: "System", light: "Light", dark: "Dark" };

/** `theme`, `log`: their buttons; `restyle` draws the charts anew. */
export class Looks {
  #theme;
  #log;
  #restyle;

  constructor({ theme, log, restyle }) {
    this.#theme = theme;
    this.#log = log;
    this.#restyle = restyle;
    theme.addEventListener("click", () => {
      const names = Object.keys(THEMES);
      const next = names[(names.indexOf(root.dataset.theme ?? "system") + 1) % names.length];
      this.#setTheme(next);
      keep("theme", next);
      putInAddress("theme", next === "system" ? null : next);
    });
    log.hidden = !hasCharts;
    log.addEventListener("click", () => {
      this.#setLog(!looks.log);
      keep("log", looks.log ? "yes" : "no");
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
    this.#setLog(recall("log") === "yes");
    this.apply();
  }

  /** Take the theme of the address; where that names none, the one that was chosen last. */
  apply() {
    const name = [inAddress("theme"), recall("theme")].find((each) => each in THEMES);
    this.#setTheme(name ?? "system");
  }

  #setTheme(name) {
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
    write(this.#theme.querySelector("#theme-text"), THEMES[name]);
    this.#theme.setAttribute("aria-label", `Theme: ${name === "system" ? "as the system" : name}`);
    this.#restyle();
  }

  #setLog(on) {
    looks.log = on;
    this.#log.setAttribute("aria-pressed", String(on));
    this.#restyle();
  }
}
