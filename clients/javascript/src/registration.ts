/** Keeps the gateway's picture of the page current: the list of what it offers, and its metadata. */

import { type ClientFrame, type ErrorFrame, PASSING_ERRORS, RESEND_AFTER_MS, type Send } from "./frames.js";
import type { Guidance } from "./guidance.js";

export interface Picture {
  capabilities: object[];
  app: { name: string; version?: string } | undefined;
  metadata: Record<string, unknown>;
  wants: string[];
}

const SETTLE_MS = 10; // a page registers its tools one after the other

export class Registration {
  readonly #send: Send;
  readonly #picture: () => Picture;
  readonly #guidance: Guidance;
  readonly #registered: () => void;
  #connected = false;
  #number = 0;
  #unanswered = "";
  #changed = { list: false, metadata: false };
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(send: Send, picture: () => Picture, guidance: Guidance, registered: () => void) {
    this.#send = send;
    this.#picture = picture;
    this.#guidance = guidance;
    this.#registered = registered;
  }

  /** Send the whole picture at once: the gateway has just let the client in. */
  begin(): void {
    this.#connected = true;
    this.#unanswered = "";
    this.#changed = { list: true, metadata: false };
    this.#flush();
  }

  lost(): void {
    this.#connected = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  change(what: "list" | "metadata"): void {
    this.#changed[what] = true;
    this.#flushAfter(SETTLE_MS);
  }

  /** Tells whether an acknowledgement was of a frame of these. */
  acknowledged(id: string): boolean {
    if (id !== this.#unanswered) return false;
    this.#unanswered = "";
    this.#registered();
    this.#flushAfter(SETTLE_MS);
    return true;
  }

  /** Go on with what is registered of a list; send it again if it came too early. */
  refused({ id, code, message, details }: ErrorFrame): boolean {
    if (!id || id !== this.#unanswered) return false;
    if (PASSING_ERRORS.has(code)) {
      this.#unanswered = "";
      this.#changed.list = true;
      clearTimeout(this.#timer);
      this.#timer = undefined;
      this.#flushAfter(details?.retryAfterMs ?? RESEND_AFTER_MS);
      return true;
    }
    for (const { name, message: why } of details?.refused ?? []) {
      this.#guidance.tell(`left out ${name} ${why}`, `the gateway left out ${name}: ${why}`);
    }
    if (!details?.refused) this.#guidance.tell(`refused ${message}`, `the gateway refused the list of tools: ${message}`);
    return this.acknowledged(id);
  }

  #flushAfter(ms: number): void {
    if (this.#timer !== undefined || !this.#connected) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#flush();
    }, ms);
  }

  #flush(): void {
    const { list, metadata } = this.#changed;
    if (!this.#connected || this.#unanswered || !(list || metadata)) return; // else the acknowledgement comes first
    this.#changed = { list: false, metadata: false };
    this.#unanswered = `registration-${++this.#number}`;
    this.#send(this.#frame(list));
  }

  #frame(list: boolean): ClientFrame {
    const { capabilities, app, metadata, wants } = this.#picture();
    const id = this.#unanswered;
    if (!list) return { type: "metadata", metadata, id };
    return { type: "capability", capabilities, app, metadata, id, ...(wants.length ? { wants } : {}) };
  }
}
