// A question to a route of the sub-app that is asked again from time to time, once at a time.

export class Question {
  #base;
  #asking = false;

  constructor(base) {
    this.#base = base;
  }

  /** The answer; null where an earlier one is awaited, or there is none: the feed says what is wrong, and comes back. */
  async ask(path) {
    if (this.#asking) return null;
    this.#asking = true;
    try {
      const answer = await fetch(new URL(path, this.#base), { cache: "no-store" });
      return answer.ok ? await answer.json() : null;
    } catch {
      return null;
    } finally {
      this.#asking = false;
    }
  }
}
