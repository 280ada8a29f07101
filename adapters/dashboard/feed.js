// The connection: a stream where the server has one, else polling; it finds out, and comes back.
//
// `onUpdate` is given {metrics, window_seconds?, started?, reset?, step_seconds?, series?, routes?,
// first_bytes?, alerts?, health?, events?}: `series` holds the steps that are new (all of them after a
// connect). `onState` is given "live" or "polling", "lost" with a reason, "unauthorised" with what is
// asked for ("bearer", "basic", ""), and "resting" where the page asks no more.

const POLL_EVERY = 1000;
const TABLE_EVERY = 5000;
const SILENCE = 6000; // without an event for so long, a stream is lost
const RETRY = 1500;
const MOST_LOOKS = 100; // of a page that nobody has signed in to: ten minutes

export class Feed {
  #base;
  #streams;
  #session;
  #onUpdate;
  #onState;
  #isLetIn = false;
  #looks = 0; // in vain, since somebody has done something
  #run = 0; // a later run ends the earlier ones
  #source = null;
  #watch = 0;

  /** `streams`: whether the server can; `session`: whether its own session may let in. */
  constructor({ base, streams, session, onUpdate, onState }) {
    this.#base = base;
    this.#streams = streams;
    this.#session = session;
    this.#onUpdate = onUpdate;
    this.#onState = onState;
  }

  /** Connect, or connect again. A first look tells whether one may, which a stream cannot. */
  start() {
    this.stop();
    this.#looks = 0;
    const run = this.#run;
    if (this.#streams) this.#probe(run);
    else this.#poll(run);
  }

  stop() {
    this.#run += 1;
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#watch);
  }

  #stream(run) {
    let heard = false; // ever
    let resuming = false; // since the last event
    const source = (this.#source = new EventSource(new URL("stream", this.#base)));
    const silent = () => {
      if (run !== this.#run) return;
      source.close();
      // A proxy that holds events back delivers none: the numbers can still be asked for.
      if (!heard) this.#poll(run);
      else this.#again(run, () => this.#stream(run));
    };
    const listen = () => {
      clearTimeout(this.#watch);
      this.#watch = setTimeout(silent, SILENCE);
    };
    source.addEventListener("update", (event) => {
      if (run !== this.#run) return;
      heard = true;
      resuming = false;
      listen();
      this.#onState("live");
      this.#onUpdate(JSON.parse(event.data));
    });
    source.addEventListener("error", () => {
      if (run !== this.#run) return;
      // A stream that ends after its time is taken up again by the browser, which says where it
      // was. But a server that cannot be reached, or refuses, is asked here, where the status can
      // be read.
      if (heard && !resuming && source.readyState === EventSource.CONNECTING) {
        resuming = true;
        return;
      }
      source.close();
      clearTimeout(this.#watch);
      this.#probe(run);
    });
    listen();
  }

  async #probe(run) {
    try {
      const update = await this.#ask("current");
      if (run !== this.#run) return;
      this.#onUpdate(update);
      this.#stream(run);
    } catch (problem) {
      if (run === this.#run) this.#failed(problem, run, () => this.#probe(run));
    }
  }

  async #poll(run) {
    let asked = 0;
    let tables = 0;
    while (run === this.#run) {
      const begun = performance.now();
      try {
        const update = await this.#ask("current");
        if (!asked || begun - tables >= TABLE_EVERY) {
          const seconds = asked ? Math.ceil((begun - asked) / 1000 + 3 * this.step) : "";
          const [series, { routes, first_bytes }, { alerts }, health, { events }] = await Promise.all([
            this.#ask(asked ? `series?seconds=${seconds}` : "series"),
            this.#ask("routes"),
            this.#ask("alerts"),
            this.#ask("health"),
            this.#ask(asked ? "events?limit=20" : "events"),
          ]);
          this.step = series.step_seconds;
          if (!asked) this.window = series.seconds;
          Object.assign(update, series, { window_seconds: this.window, routes, first_bytes, alerts, health, events });
          asked = tables = begun;
        }
        if (run !== this.#run) return;
        this.#onState("polling");
        this.#onUpdate(update);
      } catch (problem) {
        if (run === this.#run) this.#failed(problem, run, () => this.#poll(run));
        return;
      }
      const rest = POLL_EVERY - (performance.now() - begun);
      await new Promise((resolve) => setTimeout(resolve, Math.max(rest, 100)));
      if (document.hidden) await shown();
    }
  }

  async #ask(path) {
    // Before it is let in the browser may be asking for a password, which takes its time.
    const signal = this.#isLetIn ? AbortSignal.timeout?.(10_000) : undefined;
    const answer = await fetch(new URL(path, this.#base), { cache: "no-store", signal });
    this.#isLetIn = answer.ok || (this.#isLetIn && answer.status !== 401);
    // A server that is not healthy says so by its status, and why in the answer.
    if (!answer.ok && !(path === "health" && answer.status === 503)) throw answer;
    return answer.json();
  }

  #failed(problem, run, retry) {
    if (problem instanceof Response && [401, 429].includes(problem.status)) {
      const [scheme] = (problem.headers.get("WWW-Authenticate") ?? "").toLowerCase().split(" ");
      this.#onState("unauthorised", scheme);
      // Where the host has a session of its own, somebody may sign in there meanwhile. For Basic
      // the browser itself would ask again and again.
      if (!scheme || (scheme === "bearer" && this.#session)) {
        this.#looks += 1;
        if (this.#looks < MOST_LOOKS) this.#later(run, retry, 4 * RETRY);
        else this.#onState("resting");
      }
      return;
    }
    const reason = problem instanceof Response ? `It answers with ${problem.status}.` : "";
    this.#again(run, retry, reason);
  }

  #again(run, retry, reason = "") {
    this.#onState("lost", reason);
    this.#later(run, retry, RETRY);
  }

  #later(run, retry, wait) {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => run === this.#run && retry(), wait);
  }
}

function shown() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
  });
}
