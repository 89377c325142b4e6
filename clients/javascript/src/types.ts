/** What a page calls and hears: the public interface of the library. It has no code, so that it is the types, too. */

/** What WebMCP says about a tool, and MCP's `idempotentHint`; others are passed on to agents as they are. */
export interface ToolAnnotations {
  readOnlyHint?: boolean;
  idempotentHint?: boolean;
  consequentialHint?: boolean;
  untrustedContentHint?: boolean;
  debugging?: boolean;
  [name: string]: unknown;
}

/** Who sends a command: `id` is the `sub` of the agent's token, `name` its `name` claim. */
export interface AgentIdentity {
  id: string;
  name?: string;
}

export interface ProgressDetails {
  total?: number;
  message?: string;
  data?: unknown;
}

/** The second argument of `execute`. The signal aborts if nobody waits for the result any more. */
export interface ToolContext {
  signal: AbortSignal;
  agent: AgentIdentity;
  requestId: string;
  progress(value: number, details?: ProgressDetails): void;
}

/** A tool as WebMCP's `registerTool` takes it; `permissions`, `rateLimit` and `approval` are AgentBridge's own. */
export interface Tool<Input = any> {
  name: string;
  title?: string;
  description: string;
  inputSchema?: object | string;
  outputSchema?: object | string;
  annotations?: ToolAnnotations;
  permissions?: string[];
  rateLimit?: number | { limit: number; perSeconds?: number };
  approval?: "required";
  execute(input: Input, context: ToolContext): unknown;
}

export interface Action<Input = any> {
  description?: string;
  inputSchema?: object | string;
  annotations?: ToolAnnotations;
  execute(input: Input, context: ToolContext): unknown;
}

export interface Component {
  id: string;
  componentType: string;
  description?: string;
  properties?: Record<string, unknown>;
  actions: Record<string, Action>;
}

/** A component that is offered. `update` sets some of its properties in what agents read, and keeps the others. */
export interface ComponentHandle {
  update(properties: Record<string, unknown>): void;
  remove(): void;
}

export interface RegisterOptions {
  /** Abort to take it back; a command that runs goes on. */
  signal?: AbortSignal;
}

/** What a user is asked before a consequential tool runs. */
export interface ConfirmQuestion {
  agent: AgentIdentity;
  title: string;
  description: string;
  input: unknown;
  /** Aborts if the question needs no answer any more. */
  signal: AbortSignal;
}

/** Which tools ask the user first, or a function that asks in its own way. */
export type Confirm = "consequential" | "always" | "never" | ((question: ConfirmQuestion) => boolean | Promise<boolean>);

export interface ConnectOptions {
  /** The gateway, such as `https://gateway.example.com`, or the whole URL of its WebSocket. */
  url: string | URL;
  /** A token of the role `app`, or a function that gets a fresh one. Leave both out if the gateway needs none. */
  token?: string | (() => string | null | Promise<string | null>);
  /** A path of your own server that answers `{token}` for whoever is logged in. */
  tokenUrl?: string;
  app?: string | { name: string; version?: string };
  metadata?: Record<string, unknown>;
  /** Default: `consequential`. */
  confirm?: Confirm;
  /** Keep the client's id over lost connections and reloads, if the gateway can. Default: true. */
  resume?: boolean;
  /** For Node before 22, which has no WebSocket: that of the package `ws`. */
  WebSocket?: unknown;
}

/** `waiting`: another attempt follows by itself. `stopped`: none does until `reconnect()`. */
export interface State {
  phase: "connecting" | "ready" | "waiting" | "stopped";
  clientId: string | null;
  reason: string;
}

/** A command from its begin to its end, for pages that show what is done in them. */
export interface CommandInfo {
  requestId: string;
  target: string;
  action: string | null;
  input: unknown;
  agent: AgentIdentity;
  status: "asking" | "running" | "done" | "failed" | "declined" | "cancelled";
  message: string;
  startedAt: number;
  durationMs: number;
}

/** An agent that has had a command within a minute; `since` is when it came. */
export interface ActiveAgent extends AgentIdentity {
  inFlight: number;
  since: string;
}

/** An agent that the user has stopped here, all agents without an `id`; `until` is in milliseconds since 1970. */
export interface StoppedAgent {
  id?: string;
  until: number;
}

export interface BridgeEventMap {
  state: CustomEvent<State>;
  command: CustomEvent<CommandInfo>;
  agents: CustomEvent<readonly ActiveAgent[]>;
}

export interface EmitOptions {
  /** What the event is about: the id of a component, or any other name. */
  source?: string;
  /** An id of your own: an event that is sent twice within two minutes is stored once. */
  id?: string;
}

// Programs of Node have no types of the DOM, so these are taken from what is there.
type PageDocument = typeof globalThis extends { document: infer Page } ? Page : object;
type Listener = Parameters<EventTarget["addEventListener"]>[1];
type ListenerOptions = Parameters<EventTarget["addEventListener"]>[2];

export interface ModelContextOptions {
  /** The names of the tools that may leave the page; `*` stands for any text. */
  tools: string | string[];
  document?: PageDocument;
}

/** A page's connection to a gateway. */
export interface AgentBridge extends EventTarget {
  readonly state: State;
  /** The agents that work here now; kept current from the first listener to `agents` on. */
  readonly agents: readonly ActiveAgent[];
  /** Who was stopped and is not allowed again, also before a reload; `agents` events tell of each change. */
  readonly stoppedAgents: readonly StoppedAgent[];
  /** Offer a tool. Rejects with `InvalidStateError` as WebMCP does, for a name that is taken or none. */
  registerTool(tool: Tool, options?: RegisterOptions): Promise<void>;
  /** Offer a component with actions. Throws `InvalidStateError` for an id that is taken. */
  component(component: Component, options?: RegisterOptions): ComponentHandle;
  /** Tell an event; it is kept until the gateway has stored it. Returns its id; throws if `data` is not JSON. */
  emit(event: string, data?: unknown, options?: EmitOptions): string;
  /** Replace your metadata; `url`, `title` and `visible` are added unless yours has them. */
  setMetadata(metadata: Record<string, unknown>): void;
  /** Offer the tools of `document.modelContext` that are named here; make one if the browser has none. */
  bridgeModelContext(options: ModelContextOptions): void;
  /** Cancel what an agent does here, all agents without an id, and refuse its next commands (60 seconds). */
  stop(agentId?: string, options?: { seconds?: number }): void;
  /** End a `stop`. */
  allow(agentId?: string): void;
  /** Connect now: after `close()`, or instead of waiting. */
  reconnect(): void;
  /** Leave, and stay away until `reconnect()`. */
  close(): void;
  addEventListener<Name extends keyof BridgeEventMap>(
    name: Name,
    listener: (event: BridgeEventMap[Name]) => void,
    options?: ListenerOptions,
  ): void;
  addEventListener(name: string, listener: Listener, options?: ListenerOptions): void;
}
