/** Keeps the gateway's picture of the page current: the list of what it offers, and its metadata. */

import { bytesOf, PASSING_ERRORS, RESEND_AFTER_MS } from "./frames.js";
import type { ClientFrame, ErrorFrame, Limits, Send } from "./frames.js";
import type { Guidance } from "./guidance.js";

export interface Picture {
  capabilities: object[];
  app: { name: string; version?: string } | undefined;
  metadata: Record<string, unknown>;
  wants: string[];
}

const SETTLE_MS = 10; // a page registers its tools one after the other
const ROOM_BYTES = 32 * 1024; // for what stands in a frame beside the capabilities, such as 16 KiB of metadata

export class Registration {
  readonly #send: Send;
  readonly #picture: () => Picture;
  readonly #limits: Limits;
  readonly #guidance: Guidance;
  readonly #registered: () => void;
  #connected = false;
  #number = 0;
  #unanswered = "";
  #changed = { list: false, metadata: false };
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(send: Send, picture: () => Picture, limits: Limits, guidance: Guidance, registered: () => void) {
    this.#send = send;
    this.#picture = picture;
    this.#limits = limits;
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
    for (const { name, message: fault } of details?.refused ?? []) {
      this.#guidance.tell(`left out ${name} ${fault}`, `the gateway left out ${name}: ${fault}`);
    }
    const why = `the gateway refused what the page told of itself: ${message}`;
    if (!details?.refused) this.#guidance.tell(`refused ${message}`, why);
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
    const fitting = this.#fitting(capabilities);
    return { type: "capability", capabilities: fitting, app, metadata, id, ...(wants.length ? { wants } : {}) };
  }

  /** As many of these as the gateway takes in one frame; a larger frame would end each connection. */
  #fitting(capabilities: object[]): object[] {
    const { maxMessageBytes } = this.#limits;
    let roomBytes = maxMessageBytes - ROOM_BYTES;
    const end = capabilities.findIndex((each) => (roomBytes -= bytesOf(JSON.stringify(each)) + 1) < 0);
    if (end < 0) return capabilities;
    const left = `the last ${capabilities.length - end} of ${capabilities.length} are left out`;
    this.#guidance.tell(`list ${left}`, `the list of tools has more than ${maxMessageBytes} bytes: ${left}`);
    return capabilities.slice(0, end);
  }
}
