/** When to connect again, by how a connection has ended. */

/** Close codes after which trying again would not help: left, policy, replaced. */
const FINAL_CODES = new Set([1000, 1008, 4009]);
/** No token, or one that is refused: the next one may do, because a server that is being replaced gives some bad ones. */
const TOKEN_CODES = new Set([4001, 4003]);
/** The gateway is going away: another one, or its successor, is there soon. */
const MOVING_CODES = new Set([1001, 1012]);

const MOVE_WITHIN_MS = 1_000;
const FIRST_MS = 500;
const MAX_MS = 15_000;
const STABLE_AFTER_MS = 5_000;

export class BackOff {
  #failures = 0;
  #tokenRefused = false; // since the last connection that lasted

  /** Returns after how many milliseconds to connect again; null for never. */
  after(code: number, lastedMs: number): number | null {
    this.#forgive(lastedMs);
    if (FINAL_CODES.has(code)) return null;
    if (MOVING_CODES.has(code)) return Math.random() * MOVE_WITHIN_MS;
    const pauseMs = this.pause();
    if (!TOKEN_CODES.has(code) || this.#tokenRefused) return pauseMs;
    this.#tokenRefused = true; // a token that has merely expired costs no pause
    return 0;
  }

  /** Returns a pause: doubled each time, and half of it random, so that thousands of pages don't come at once. */
  pause(): number {
    const wholeMs = Math.min(MAX_MS, FIRST_MS * 2 ** this.#failures++);
    return wholeMs * (0.5 + Math.random() / 2);
  }

  #forgive(lastedMs: number): void {
    if (lastedMs <= STABLE_AFTER_MS) return;
    this.#failures = 0;
    this.#tokenRefused = false;
  }
}

export function isAboutTokens(code: number): boolean {
  return TOKEN_CODES.has(code);
}

/** Says in words why a connection has ended whose other side gave no reason. */
export function sentenceOf(code: number, opened: boolean): string {
  if (FINAL_CODES.has(code)) return `closed by the gateway (${code})`;
  if (TOKEN_CODES.has(code)) return "the gateway refused the token";
  if (MOVING_CODES.has(code)) return "the gateway restarts";
  return opened ? "the connection was lost" : "the gateway cannot be reached";
}
