/**
 * Who this document is to the gateway: the token by which it comes back, and the commands that it has begun.
 *
 * Both lie in the tab's sessionStorage, so that they outlive a reload. A duplicated tab starts with a copy of it, and a
 * frame shares it. So a document holds a Web Lock on the id that lies there; if the lock is taken, it is somebody else.
 */

import { randomHex } from "../frames.js";

interface Entry {
  id: string;
  resumeToken: string | null;
  user: string | null;
  /** Commands that were begun here, and whether they may be begun again. */
  begun: Record<string, boolean>;
  /** Agents that the user has stopped, and until when; the empty name stands for all. */
  stopped: Record<string, number>;
}

const MAX_ENDED = 128; // commands that have been answered; the answer may have been lost
const MAX_STOPPED = 64; // as many as a gateway remembers
const MAX_FRAMES = 20;
/** The names of all connections of this document, also of those that another copy of the library has made. */
const namesHere: Set<string> = ((globalThis as any)[Symbol.for("agentbridge.names")] ??= new Set<string>());

export class Identity {
  #entry: Entry = fresh();
  readonly #name: string;
  #save: () => void = () => {};
  #storage: Storage | null = null;
  #release: () => void = () => {};

  constructor(name: string) {
    let unique = `agentbridge:${name}`;
    while (namesHere.has(unique)) unique += "+";
    namesHere.add(unique);
    this.#name = unique;
  }

  get resumeToken(): string | null {
    return this.#entry.resumeToken;
  }

  /** Take the identity that lies in this tab, or another one if a document holds it. */
  async acquire(): Promise<void> {
    const storage = tabStorage();
    if (storage === null || typeof navigator === "undefined" || !navigator.locks) return;
    const framed = window !== window.top;
    for (let attempt = 1; attempt <= MAX_FRAMES; attempt++) {
      const name = framed ? `${this.#name}:frame${placeOfFrame()}${"+".repeat(attempt - 1)}` : this.#name;
      if (await this.#take(storage, name, read(storage, name) ?? fresh())) return;
      if (!framed && (await this.#take(storage, name, fresh()))) return;
    }
  }

  /** Let another document of this tab have the identity: the same page after a reload, or when it comes back. */
  release(): void {
    this.#release();
    this.#storage = null;
  }

  /** Become somebody else, because another user is logged in. Returns whether there was one before. */
  belongTo(user: string | null): boolean {
    const changed = this.#entry.user !== null && this.#entry.user !== user;
    this.#entry = { ...this.#entry, user, ...(changed ? { resumeToken: null, begun: {}, stopped: {} } : {}) };
    this.#save();
    return changed;
  }

  keepToken(resumeToken: string | null): void {
    this.#entry.resumeToken = resumeToken;
    this.#save();
  }

  /** Forget whoever it was: the session has ended, or a new one has begun in its place. */
  forgetSession(): void {
    this.#entry.resumeToken = null;
    this.#entry.begun = {};
    this.#save();
  }

  /** Remember that the user has stopped an agent: a gateway that is new to this page must be told again. */
  stop(agentId: string, until: number): void {
    const kept = this.stops.slice(1 - MAX_STOPPED).filter(([id]) => id !== agentId);
    this.#entry.stopped = Object.fromEntries([...kept, [agentId, until]]);
    this.#save();
  }

  /** Forget about one that was stopped, or about all. */
  allow(agentId: string): void {
    if (agentId === "") this.#entry.stopped = {};
    else delete this.#entry.stopped[agentId];
    this.#save();
  }

  /** The agents that are stopped now, and until when. */
  get stops(): [string, number][] {
    return Object.entries(this.#entry.stopped).filter(([, until]) => until > Date.now());
  }

  /** Remember a command that begins. Those that still run are never forgotten, however many others have come and gone. */
  begin(requestId: string, repeatable: boolean, running: { has(requestId: string): boolean }): void {
    this.#entry.begun[requestId] = repeatable;
    const ended = Object.keys(this.#entry.begun).filter((id) => !running.has(id));
    for (const id of ended.slice(0, -MAX_ENDED)) delete this.#entry.begun[id];
    this.#save();
  }

  /** Tells whether a command was begun here that may not be begun again. */
  mayNotRepeat(requestId: string): boolean {
    return this.#entry.begun[requestId] === false;
  }

  async #take(storage: Storage, name: string, entry: Entry): Promise<boolean> {
    const release = await hold(`agentbridge:${entry.id}`);
    if (release === null) return false;
    this.#release = release;
    this.#storage = storage;
    this.#save = () => write(this.#storage, name, this.#entry);
    this.#entry = entry;
    this.#save();
    return true;
  }
}

function fresh(): Entry {
  return { id: randomHex(), resumeToken: null, user: null, begun: {}, stopped: {} };
}

/** Returns a frame's place in the page, such as `.0.2`: after a reload each frame is who it was, whichever loads first. */
function placeOfFrame(): string {
  let place = "";
  for (let frame: Window = window; frame !== frame.parent; frame = frame.parent) {
    const { parent } = frame;
    const siblings = Array.from({ length: parent.length }, (_, index) => parent[index]);
    place = `.${siblings.indexOf(frame)}${place}`;
  }
  return place;
}

/** Takes a lock if it is free, and returns what gives it back; null if it is taken. */
function hold(name: string): Promise<(() => void) | null> {
  return new Promise((resolve) => {
    const held = (lock: Lock | null) => {
      if (lock === null) return resolve(null);
      return new Promise<void>((release) => resolve(release));
    };
    navigator.locks.request(name, { ifAvailable: true }, held).catch(() => resolve(null)); // an opaque origin has none
  });
}

/** Returns the tab's storage; null in Node, in a sandboxed frame, or if the user allows none. */
function tabStorage(): Storage | null {
  try {
    return typeof window === "undefined" ? null : window.sessionStorage;
  } catch {
    return null;
  }
}

function read(storage: Storage, name: string): Entry | null {
  try {
    const entry = JSON.parse(storage.getItem(name) ?? "null");
    return entry && typeof entry.id === "string" ? { ...fresh(), ...entry } : null;
  } catch {
    return null;
  }
}

function write(storage: Storage | null, name: string, entry: Entry): void {
  try {
    storage?.setItem(name, JSON.stringify(entry));
  } catch {
    // The storage is full: the identity ends with the document, and everything else works.
  }
}
