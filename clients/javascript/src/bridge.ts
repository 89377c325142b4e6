/** A page's connection to a gateway: the parts together, and what the page calls. */

import { Commands } from "./commands.js";
import { Consent } from "./consent/consent.js";
import { EventQueue } from "./event_queue.js";
import { asJson, type Limits, MAX_MESSAGE_BYTES } from "./frames.js";
import type { ClientFrame, ConnectionFrame, ErrorFrame, ServerFrame } from "./frames.js";
import { Guidance } from "./guidance.js";
import { Identity } from "./connection/identity.js";
import { Link } from "./connection/link.js";
import { bridgeModelContext } from "./webmcp/model_context.js";
import { Offers } from "./offers.js";
import { pageMetadata, watchPage } from "./page.js";
import { Registration } from "./registration.js";
import { tokenSource } from "./connection/tokens.js";
import type * as Public from "./types.js";

const STOP_SECONDS = 60;
const MAX_STOP_SECONDS = 24 * 3600;
const MAX_ALLOWED = 64; // as many as a gateway remembers
const MAX_METADATA_BYTES = 20 * 1024; // as a message: 16 KiB, and some room
const NO_WEBSOCKET =
  "there is no WebSocket here: give `connect` that of the package ws, as in connect({ url, token, WebSocket })";

export class Bridge extends EventTarget implements Public.AgentBridge {
  state: Public.State = { phase: "stopped", clientId: null, reason: "" };
  agents: readonly Public.ActiveAgent[] = [];
  readonly #link: Link;
  readonly #identity: Identity;
  readonly #offers = new Offers(() => this.#registration.change("list"));
  readonly #events: EventQueue;
  readonly #commands: Commands;
  readonly #registration: Registration;
  readonly #guidance = new Guidance();
  readonly #limits: Limits = { maxMessageBytes: MAX_MESSAGE_BYTES };
  #metadata: Record<string, unknown> = {};
  #toldMetadata = "";
  #wantsAgents = false;
  #allowed = new Set<string>(); // told again over each new connection, because the former one may have lost it
  #resumable = false;
  #stopEnds: ReturnType<typeof setTimeout> | undefined;

  constructor(options: Public.ConnectOptions) {
    super();
    const url = socketUrl(options.url);
    const app = typeof options.app === "string" ? { name: options.app } : options.app;
    const send = this.#send;
    this.#keepMetadata(options.metadata ?? {});
    this.#identity = new Identity(`${url.href} ${app?.name ?? ""}`);
    this.#events = new EventQueue(send, this.#limits, this.#guidance);
    this.#commands = new Commands({
      find: (target, action) => this.#offers.find(target, action),
      consent: new Consent(options.confirm ?? "consequential", this.#guidance),
      identity: this.#identity,
      limits: this.#limits,
      send,
      show: (info) => this.dispatchEvent(new CustomEvent("command", { detail: info })),
    });
    const picture = () => ({
      capabilities: this.#offers.capabilities,
      app,
      metadata: this.#tellMetadata(),
      wants: this.#wantsAgents ? ["agents"] : [],
    });
    this.#registration = new Registration(send, picture, this.#limits, this.#guidance, () => this.#registered());
    this.#link = new Link(
      {
        url,
        token: tokenSource(options, this.#guidance),
        resume: options.resume !== false,
        socket: socketClass(options.WebSocket),
        identity: this.#identity,
        guidance: this.#guidance,
      },
      {
        received: (frame) => this.#receive(frame),
        became: (phase, reason) => this.#linkBecame(phase, reason),
        changedUser: () => this.#changedUser(),
      },
    );
    watchPage(
      (force) => this.#pageChanged(force),
      () => this.#link.wake(),
    );
    void this.#begin();
  }

  // --- what a page calls ---

  async registerTool(tool: Public.Tool, options: Public.RegisterOptions = {}): Promise<void> {
    this.#offers.addTool(tool, options);
  }

  component(component: Public.Component, options: Public.RegisterOptions = {}): Public.ComponentHandle {
    const remove = this.#offers.addComponent(component, options);
    const update = (properties: Record<string, unknown>) => {
      this.emit("state_changed", { properties }, { source: component.id });
    };
    return { update, remove };
  }

  emit(event: string, data?: unknown, options: Public.EmitOptions = {}): string {
    return this.#events.add(event, data, options);
  }

  setMetadata(metadata: Record<string, unknown>): void {
    this.#keepMetadata(metadata);
    this.#registration.change("metadata");
  }

  bridgeModelContext({ tools, document: page = document }: Public.ModelContextOptions): void {
    bridgeModelContext(this.#offers, page, tools, this.#guidance);
  }

  stop(agentId?: string, options: { seconds?: number } = {}): void {
    const seconds = Math.min(options.seconds ?? STOP_SECONDS, MAX_STOP_SECONDS);
    if (!(seconds >= 0)) throw new RangeError("`seconds` is 0 or more");
    this.#allowed.delete(agentId || "");
    this.#identity.stop(agentId || "", Date.now() + seconds * 1000);
    this.#send({ type: "stop", agentId: agentId || undefined, seconds });
    this.#showStops();
  }

  allow(agentId?: string): void {
    if (!agentId || this.#allowed.size >= MAX_ALLOWED) this.#allowed.clear();
    this.#allowed.add(agentId || "");
    this.#identity.allow(agentId || "");
    this.#send({ type: "allow", agentId: agentId || undefined });
    this.#showStops();
  }

  get stoppedAgents(): readonly Public.StoppedAgent[] {
    return this.#identity.stops.map(([id, until]) => (id === "" ? { until } : { id, until }));
  }

  reconnect(): void {
    this.#link.open();
  }

  close(): void {
    this.#link.close();
  }

  override addEventListener(name: string, ...rest: [any, any?]): void {
    super.addEventListener(name, ...rest);
    if (name !== "agents" || this.#wantsAgents) return;
    this.#wantsAgents = true;
    this.#registration.change("list");
  }

  // --- the connection ---

  /** Connect once the page's scripts have run, so that the first list is whole: a shorter one would take tools away. */
  async #begin(): Promise<void> {
    this.#become("connecting", "");
    await Promise.all([this.#identity.acquire(), scriptsRun()]);
    if (typeof window !== "undefined") this.#liveInTab();
    if (this.state.phase === "connecting") this.#link.open(); // unless it was closed meanwhile
  }

  /** A page that goes may come back: out of the browser's cache, or by a reload, which needs the lock. */
  #liveInTab(): void {
    addEventListener("pagehide", ({ persisted }) => {
      if (persisted) this.#link.suspend();
      this.#identity.release();
    });
    addEventListener("pageshow", ({ persisted }) => {
      if (persisted) void this.#identity.acquire().then(() => this.#link.wake());
    });
  }

  #linkBecame(phase: "connecting" | "waiting" | "stopped", reason: string): void {
    this.#events.lost();
    this.#registration.lost();
    if (phase === "stopped") this.#endSession(reason);
    else if (phase === "waiting" && !this.#resumable) this.#commands.drop("the connection was lost");
    this.#showAgents([]);
    this.#become(phase, reason);
  }

  #endSession(reason: string): void {
    this.#identity.forgetSession();
    this.#commands.drop(reason || "the connection was closed");
  }

  #changedUser(): void {
    this.#events.clear();
    this.#commands.drop("another user is logged in");
  }

  #become(phase: Public.State["phase"], reason: string, clientId: string | null = null): void {
    this.state = { phase, clientId, reason };
    this.dispatchEvent(new CustomEvent("state", { detail: this.state }));
  }

  readonly #send = (frame: ClientFrame): void => this.#link.send(frame);

  #receive(frame: ServerFrame): void {
    switch (frame.type) {
      case "connection":
        return this.#connected(frame);
      case "command":
        return void this.#commands.execute(frame);
      case "cancel":
        return this.#commands.cancel(frame.requestId, frame.reason);
      case "ack":
        if (!this.#registration.acknowledged(frame.id)) this.#events.stored(frame.id);
        return;
      case "error":
        return this.#refused(frame);
      case "agents":
        return this.#showAgents(frame.agents);
      default: // a pong, or a frame of a newer gateway
        return;
    }
  }

  #connected({ clientId, limits, resumeToken, resumed, awaiting = [] }: ConnectionFrame): void {
    this.#become("connecting", "", clientId);
    if (!this.#link.isOpen) return; // a listener has closed the connection
    this.#resumable = resumeToken !== undefined;
    this.#limits.maxMessageBytes = limits?.maxMessageBytes ?? MAX_MESSAGE_BYTES;
    if (!resumed) this.#endSession("the session was lost");
    this.#identity.keepToken(resumeToken ?? null);
    this.#stopAgain(); // before there is anything that an agent could call
    this.#registration.begin(); // before any answer: after a reload the gateway must know what is here now
    if (resumed) this.#commands.resume(awaiting);
  }

  #stopAgain(): void {
    for (const agentId of this.#allowed) this.#send({ type: "allow", agentId: agentId || undefined });
    for (const [agentId, until] of this.#identity.stops) {
      this.#send({ type: "stop", agentId: agentId || undefined, seconds: (until - Date.now()) / 1000 });
    }
    this.#showStops();
  }

  /** Tell who is stopped, now and when the next one is let in again. */
  #showStops(): void {
    this.dispatchEvent(new CustomEvent("agents", { detail: this.agents }));
    clearTimeout(this.#stopEnds);
    const next = Math.min(...this.stoppedAgents.map(({ until }) => until));
    if (next === Infinity) return;
    this.#stopEnds = setTimeout(() => this.#showStops(), next - Date.now());
    (this.#stopEnds as { unref?(): void }).unref?.(); // in Node it keeps no process alive that has nothing else to do
  }

  #registered(): void {
    if (this.state.phase === "ready") return;
    this.#become("ready", "", this.state.clientId);
    if (!this.#link.isOpen) return; // a listener has closed the connection
    this.#link.keepAlive();
    this.#events.connected();
  }

  #refused(frame: ErrorFrame): void {
    if (this.#registration.refused(frame) || this.#events.refused(frame)) return;
    this.#guidance.tell(`frame ${frame.code} ${frame.message}`, `the gateway refused a frame: ${frame.message}`);
  }

  // --- the page ---

  #pageChanged(force: boolean): void {
    if (force || JSON.stringify(this.#allMetadata()) !== this.#toldMetadata) this.#registration.change("metadata");
  }

  /** Throws for metadata that no gateway takes, because it would refuse the tools that come along, too. */
  #keepMetadata(metadata: Record<string, unknown>): void {
    asJson({ ...pageMetadata(), ...metadata }, MAX_METADATA_BYTES);
    this.#metadata = asJson(metadata) as Record<string, unknown>;
  }

  #allMetadata(): Record<string, unknown> {
    return { ...pageMetadata(), ...this.#metadata };
  }

  #tellMetadata(): Record<string, unknown> {
    const metadata = this.#allMetadata();
    this.#toldMetadata = JSON.stringify(metadata);
    return metadata;
  }

  #showAgents(agents: readonly Public.ActiveAgent[]): void {
    if (agents.length === 0 && this.agents.length === 0) return;
    this.agents = agents;
    this.dispatchEvent(new CustomEvent("agents", { detail: agents }));
  }
}

/** Returns the URL of a gateway's WebSocket by that of the gateway. */
export function socketUrl(given: string | URL): URL {
  const base = typeof location === "undefined" ? undefined : location.href;
  const url = new URL(given, base);
  url.protocol = url.protocol.replace(/^http/, "ws");
  if (!/\/(ws|agent-bridge)$/.test(url.pathname)) url.pathname = url.pathname.replace(/\/?$/, "/ws");
  return url;
}

function socketClass(given: unknown): typeof WebSocket {
  const found = given ?? globalThis.WebSocket;
  if (typeof found !== "function") throw new TypeError(NO_WEBSOCKET);
  return found as typeof WebSocket;
}

/** Resolves when the scripts of the page that is being loaded have run, and those of this turn. */
async function scriptsRun(): Promise<void> {
  if (typeof document !== "undefined" && document.readyState === "loading") {
    await new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve, { once: true }));
  }
  await new Promise((resolve) => setTimeout(resolve));
}
