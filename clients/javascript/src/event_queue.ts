/** Events that are kept until the gateway has stored them, over lost connections. */

import { asJson, bytesOf, PASSING_ERRORS, randomHex, RESEND_AFTER_MS } from "./frames.js";
import type { ClientFrame, ErrorFrame, Limits, Send } from "./frames.js";
import type { Guidance } from "./guidance.js";
import type { EmitOptions } from "./types.js";

const MAX_KEPT = 200;
const MAX_IN_FLIGHT = 32;

export class EventQueue {
  readonly #send: Send;
  readonly #limits: Limits;
  readonly #guidance: Guidance;
  #kept = new Map<string, ClientFrame>();
  #sent = new Set<string>();
  #ready = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #prefix = randomHex();
  #next = 1;

  constructor(send: Send, limits: Limits, guidance: Guidance) {
    this.#send = send;
    this.#limits = limits;
    this.#guidance = guidance;
  }

  /** Keep an event and send it if there is room; of more than 200 that wait, the oldest is given up. */
  add(event: string, data: unknown, { source, id = `${this.#prefix}-${this.#next++}` }: EmitOptions): string {
    this.#kept.set(id, asJson({ type: "event", event, source, data, id }) as ClientFrame);
    if (this.#kept.size > MAX_KEPT) this.#forget(this.#kept.keys().next().value!);
    this.#sendSome();
    return id;
  }

  connected(): void {
    this.#ready = true;
    this.#sendSome();
  }

  lost(): void {
    this.#ready = false;
    this.#sent.clear();
    clearTimeout(this.#timer);
  }

  clear(): void {
    this.#kept.clear();
    this.#sent.clear();
  }

  stored(id: string): void {
    this.#forget(id);
    this.#sendSome();
  }

  /** Send a refused event again if that can help; tells whether it was one of these. */
  refused({ id = "", code, details }: ErrorFrame): boolean {
    if (!this.#kept.has(id)) return false;
    if (!PASSING_ERRORS.has(code)) {
      this.#forget(id);
      return false;
    }
    this.#sent.delete(id);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#sendSome(), details?.retryAfterMs ?? RESEND_AFTER_MS);
    return true;
  }

  #sendSome(): void {
    if (!this.#ready) return;
    for (const [id, frame] of this.#kept) {
      if (this.#sent.size >= MAX_IN_FLIGHT) return;
      if (this.#sent.has(id) || this.#isTooLarge(id, frame)) continue;
      this.#sent.add(id);
      this.#send(frame);
    }
  }

  /** An event that this gateway does not take would end each connection, so it is given up. */
  #isTooLarge(id: string, frame: ClientFrame): boolean {
    const { maxMessageBytes } = this.#limits;
    if (bytesOf(JSON.stringify(frame)) <= maxMessageBytes) return false;
    this.#guidance.tell(`event ${frame.event}`, `the event ${frame.event} has more than ${maxMessageBytes} bytes`);
    this.#forget(id);
    return true;
  }

  #forget(id: string): void {
    this.#kept.delete(id);
    this.#sent.delete(id);
  }
}
