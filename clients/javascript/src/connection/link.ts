/** The connection to a gateway: opened, kept alive, and opened again; what crosses it is the business of others. */

import { BackOff, isAboutTokens, sentenceOf } from "./back_off.js";
import type { ClientFrame, ServerFrame } from "../frames.js";
import { checkPlace, diagnose, type Guidance } from "../guidance.js";
import type { Identity } from "./identity.js";
import { claimsOf, LoggedOut, type TokenSource, userOf } from "./tokens.js";
import type { State } from "../types.js";

const SUBPROTOCOL = "agentbridge.v1";
const PAGE_LEFT = 4900; // a code of our own
const ANSWER_WITHIN_MS = 10_000;
const BEAT_MS = 15_000;
const MAX_TIMER_MS = 2 ** 31 - 1;
const EARLIEST_REFRESH_MS = 1_000;
const FIRST_REFRESH_AT = 0.8; // of the time that is left
const NEXT_REFRESH_AT = 0.3; // after one that has failed
const UNKNOWN_LIFETIME_MS = 60_000;

export interface LinkOwner {
  /** A frame of the gateway's. */
  received(frame: ServerFrame): void;
  /** The link is being opened, is open, waits or has stopped. */
  became(phase: "connecting" | "waiting" | "stopped", reason: string): void;
  /** Another user is logged in: nothing of the former one's may be sent any more. */
  changedUser(): void;
}

export interface LinkSetup {
  url: URL;
  token: TokenSource;
  resume: boolean;
  socket: typeof WebSocket;
  identity: Identity;
  guidance: Guidance;
}

export class Link {
  readonly #setup: LinkSetup;
  readonly #owner: LinkOwner;
  readonly #backOff = new BackOff();
  #socket: WebSocket | null = null;
  #phase: State["phase"] = "stopped";
  #attempt = 0;
  #openedAt = 0;
  #waitsForLogin = false;
  #awaitsFrame = false;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #beatTimer: ReturnType<typeof setTimeout> | undefined;
  #refreshTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(setup: LinkSetup, owner: LinkOwner) {
    this.#setup = setup;
    this.#owner = owner;
  }

  /** Open the connection, now; also after having stopped, and instead of waiting for the next attempt. */
  open(): void {
    if (this.#phase === "stopped" || this.#phase === "waiting") void this.#open();
  }

  get isOpen(): boolean {
    return this.#socket?.readyState === 1;
  }

  /** Leave for good; the gateway ends the session. */
  close(reason = "disconnected"): void {
    this.#socket?.close(1000);
    this.#leave("stopped", reason);
  }

  /** The page goes into the browser's cache, which breaks connections with an error in the console. */
  suspend(): void {
    if (this.#phase === "stopped") return;
    this.#socket?.close(PAGE_LEFT); // the session waits
    this.#leave("waiting", "the page was left");
  }

  send(frame: ClientFrame): void {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  /** Something may have changed that connections depend on: the page is seen again, or the network is back. */
  wake(): void {
    if (this.#phase === "waiting" || this.#waitsForLogin) void this.#open();
    else if (this.#socket?.readyState === 1 && !this.#awaitsFrame) this.#beat();
    else if (this.#socket !== null && this.#socket.readyState > 1) this.#retryLater("the connection was lost");
  }

  async #open(): Promise<void> {
    const attempt = ++this.#attempt;
    const { url, token: source, guidance } = this.#setup;
    clearTimeout(this.#retryTimer);
    this.#waitsForLogin = false;
    this.#become("connecting", "");
    checkPlace(url, guidance);
    try {
      const token = await source();
      if (attempt !== this.#attempt) return;
      this.#takeUser(token);
      this.#attach(this.#newSocket(token), token);
    } catch (error) {
      if (attempt === this.#attempt) this.#withoutSocket(error);
    }
  }

  #newSocket(token: string | null): WebSocket {
    const { url, socket: Socket, resume, identity, guidance } = this.#setup;
    const asked = new URL(url);
    const subprotocols = token === null ? [SUBPROTOCOL] : [SUBPROTOCOL, `bearer.${token}`];
    if (resume && identity.resumeToken !== null) subprotocols.push(`resume.${identity.resumeToken}`);
    else if (resume) asked.searchParams.set("resume", "");
    try {
      return new Socket(asked, subprotocols);
    } catch (error) {
      if (!isForbidden(error)) guidance.tell("socket", `no WebSocket can be made of what was given: ${error}`);
      throw error;
    }
  }

  #withoutSocket(error: unknown): void {
    const sentence = error instanceof Error ? error.message : String(error);
    if (error instanceof LoggedOut) this.#logOut(sentence);
    else if (isForbidden(error)) this.#leave("stopped", sentence);
    else this.#retryLater(sentence);
  }

  #logOut(sentence: string): void {
    if (this.#setup.identity.belongTo(null)) this.#owner.changedUser();
    this.close(sentence);
    this.#waitsForLogin = true;
  }

  /** Whose token it is decides whose session and events these are. */
  #takeUser(token: string | null): void {
    if (this.#setup.identity.belongTo(userOf(token))) this.#owner.changedUser();
  }

  #attach(socket: WebSocket, token: string | null): void {
    this.#socket = socket;
    this.#awaitsFrame = true; // whatever it says first, it must say something soon
    this.#beatTimer = setTimeout(() => this.#beat(), ANSWER_WITHIN_MS);
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#closed(code, reason);
    socket.onerror = () => {}; // `close` follows; in Node an error that nobody hears would end the process
    socket.onopen = () => {
      this.#openedAt = Date.now();
      this.#refreshLater(token);
    };
  }

  #receive(data: unknown): void {
    this.#awaitsFrame = false;
    this.#owner.received(JSON.parse(String(data)));
  }

  #closed(code: number, given: string): void {
    const opened = this.#openedAt > 0;
    const reason = given || sentenceOf(code, opened);
    const afterMs = this.#backOff.after(code, this.#lastedMs());
    if (isAboutTokens(code)) this.#setup.guidance.tell(`token ${reason}`, `the gateway refused the token: ${reason}`);
    if (!opened) void diagnose(this.#setup.url, this.#setup.guidance);
    if (afterMs === null) this.#leave("stopped", reason);
    else this.#retryLater(reason, afterMs);
  }

  #retryLater(reason: string, afterMs = this.#backOff.pause()): void {
    this.#leave("waiting", reason);
    this.#retryTimer = setTimeout(() => void this.#open(), afterMs);
  }

  #lastedMs(): number {
    return this.#openedAt ? Date.now() - this.#openedAt : 0;
  }

  #leave(phase: "waiting" | "stopped", reason: string): void {
    this.#attempt++;
    this.#socket = null;
    this.#openedAt = 0;
    for (const timer of [this.#retryTimer, this.#beatTimer, this.#refreshTimer]) clearTimeout(timer);
    this.#become(phase, reason);
  }

  #become(phase: "connecting" | "waiting" | "stopped", reason: string): void {
    this.#phase = phase;
    this.#owner.became(phase, reason);
  }

  /** Notice a connection that is dead without having been closed: pages cannot see WebSocket pongs, so frames are sent. */
  #beat(): void {
    clearTimeout(this.#beatTimer);
    if (this.#awaitsFrame) {
      this.#socket?.close();
      this.#retryLater("the gateway does not answer");
      return;
    }
    this.#awaitsFrame = true;
    this.send({ type: "ping" });
    this.#beatTimer = setTimeout(() => this.#beat(), BEAT_MS);
  }

  /** Begin the regular pings: the gateway has let the client in. */
  keepAlive(): void {
    this.#beat();
  }

  /** Replace the token well before it expires: a gateway closes the socket at that very moment. */
  #refreshLater(token: string | null, part = FIRST_REFRESH_AT): void {
    clearTimeout(this.#refreshTimer);
    const leftMs = lifetimeMs(token);
    if (leftMs === null) return;
    const afterMs = Math.min(MAX_TIMER_MS, Math.max(EARLIEST_REFRESH_MS, leftMs * part));
    this.#refreshTimer = setTimeout(() => void this.#refresh(token), afterMs);
  }

  async #refresh(former: string | null): Promise<void> {
    const socket = this.#socket;
    let fresh: string | null;
    try {
      fresh = await this.#setup.token();
    } catch (error) {
      if (socket !== this.#socket) return;
      if (error instanceof LoggedOut) return this.#logOut(error.message);
      return this.#refreshLater(former, NEXT_REFRESH_AT);
    }
    if (socket !== this.#socket) return;
    if (userOf(fresh) !== userOf(former)) return this.#beginAnew();
    if (fresh !== former) this.send({ type: "auth", token: fresh, id: "token" });
    this.#refreshLater(fresh);
  }

  /** Somebody else is logged in: end the session of the former user, and begin one of the other's. */
  #beginAnew(): void {
    this.close("another user is logged in");
    void this.#open();
  }
}

/** Returns how long a token lives from now on; null for ever. One that looks expired shows that the clock here is wrong. */
function lifetimeMs(token: string | null): number | null {
  const { exp, iat } = claimsOf(token);
  if (exp === undefined) return null;
  const leftMs = exp * 1000 - Date.now();
  const wholeMs = iat === undefined ? null : (exp - iat) * 1000;
  return leftMs > 0 ? Math.min(leftMs, wholeMs ?? leftMs) : (wholeMs ?? UNKNOWN_LIFETIME_MS);
}

/** Tells whether a browser has refused to make a WebSocket, as one of `ws:` on a page of https: it always will. */
function isForbidden(error: unknown): boolean {
  return error instanceof DOMException && error.name === "SecurityError";
}
