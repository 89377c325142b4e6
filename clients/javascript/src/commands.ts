/** Commands of agents: executed once, answered once, over lost connections and reloads. */

import { asJson, type CommandFrame, type ClientFrame, type Limits, type Send, ToolError } from "./frames.js";
import type { Consent } from "./consent/consent.js";
import type { Identity } from "./connection/identity.js";
import type { Offer } from "./offers.js";
import type { CommandInfo, ProgressDetails } from "./types.js";

const MAX_KEPT_CHARS = 2_000_000;
const INTERRUPTED = {
  code: "interrupted",
  message: "the page was reloaded while the command was under way; it may have run",
};

interface Running {
  abort: AbortController;
  info: CommandInfo;
}

export interface CommandsSetup {
  find(target: string, action: string | null): Offer | undefined;
  consent: Consent;
  identity: Identity;
  limits: Limits;
  send: Send;
  show(info: CommandInfo): void;
}

export class Commands {
  readonly #setup: CommandsSetup;
  #running = new Map<string, Running>();
  #answers = new Map<string, { frame: ClientFrame; chars: number }>();
  #keptChars = 0;

  constructor(setup: CommandsSetup) {
    this.#setup = setup;
  }

  async execute(frame: CommandFrame): Promise<void> {
    const { requestId, target, action = null, parameters: input, agent } = frame;
    if (this.#running.has(requestId)) return;
    const info: CommandInfo = {
      ...{ requestId, target, action, input, agent, status: "running", message: "" },
      ...{ startedAt: Date.now(), durationMs: 0 },
    };
    const running = { abort: new AbortController(), info };
    this.#running.set(requestId, running);
    this.#show(info);
    const answer = await this.#answer(running);
    if (running.abort.signal.aborted) return; // nobody waits for it any more
    this.#running.delete(requestId);
    this.#respond({ type: "response", requestId, ...answer });
    const error = answer.error as { code: string; message: string } | undefined;
    const failed = info.status === "declined" ? "declined" : "failed";
    this.#end(info, error ? failed : "done", error?.message ?? "");
  }

  cancel(requestId: string, reason: string): void {
    const running = this.#running.get(requestId);
    if (!running) return;
    this.#running.delete(requestId);
    this.#end(running.info, "cancelled", reason);
    running.abort.abort(new DOMException(reason, "AbortError"));
  }

  /** The session goes on over another connection: answer what the gateway still waits for. */
  resume(awaiting: string[]): void {
    const awaited = new Set(awaiting);
    for (const requestId of [...this.#running.keys()]) {
      if (!awaited.has(requestId)) this.cancel(requestId, "nobody waits for it any more");
    }
    for (const requestId of awaiting) this.#goOn(requestId);
  }

  /** The session is lost, and nobody waits for its commands. */
  drop(reason: string): void {
    for (const requestId of [...this.#running.keys()]) this.cancel(requestId, reason);
    this.#answers.clear();
    this.#keptChars = 0;
  }

  #goOn(requestId: string): void {
    const answer = this.#answers.get(requestId);
    if (answer) this.#setup.send(answer.frame);
    else if (this.#running.has(requestId)) return;
    else if (!this.#setup.identity.mayNotRepeat(requestId)) this.#setup.send({ type: "unknown", requestId });
    else this.#setup.send({ type: "response", requestId, status: "error", error: INTERRUPTED });
  }

  async #answer({ info, abort }: Running): Promise<Omit<ClientFrame, "type">> {
    try {
      const offer = this.#setup.find(info.target, info.action);
      const named = `${info.target} ${info.action ?? ""}`.trim();
      if (!offer) throw new ToolError("unknown_capability", `this page has no ${named}`);
      const confirmed = await this.#setup.consent.ask(offer, info, abort.signal, (status) => this.#become(info, status));
      if (abort.signal.aborted) return {};
      const { readOnlyHint, idempotentHint } = offer.annotations;
      const repeatable = Boolean(readOnlyHint || idempotentHint);
      this.#setup.identity.begin(info.requestId, repeatable, this.#running); // before it can have an effect
      const { agent, requestId } = info;
      const progress = (value: number, more: ProgressDetails = {}) => this.#progress(info, value, more);
      const result = await offer.execute(info.input, { signal: abort.signal, agent, requestId, progress });
      return { status: "success", result: asJson(checked(result), this.#setup.limits.maxMessageBytes), ...confirmed };
    } catch (error) {
      return { status: "error", error: faultOf(error, abort.signal) };
    }
  }

  /** Send an answer, and keep it for the case that the connection is lost with it on its way. */
  #respond(frame: ClientFrame): void {
    this.#setup.send(frame);
    const chars = JSON.stringify(frame).length;
    this.#answers.set(frame.requestId as string, { frame, chars });
    this.#keptChars += chars;
    for (const [requestId, kept] of this.#answers) {
      if (this.#keptChars <= MAX_KEPT_CHARS) return;
      this.#answers.delete(requestId);
      this.#keptChars -= kept.chars;
    }
  }

  /** Tell how far a command is, while somebody waits for it; callers who did not ask for that hear nothing of it. */
  #progress(info: CommandInfo, progress: number, { total, message, data }: ProgressDetails): void {
    if (!this.#running.has(info.requestId)) return;
    const frame = { type: "progress", requestId: info.requestId, progress, total, message, data };
    this.#setup.send(asJson(frame, this.#setup.limits.maxMessageBytes) as ClientFrame);
    info.message = message ?? "";
    this.#show(info);
  }

  #become(info: CommandInfo, status: CommandInfo["status"]): void {
    info.status = status;
    this.#show(info);
  }

  #end(info: CommandInfo, status: CommandInfo["status"], message: string): void {
    Object.assign(info, { status, message, durationMs: Date.now() - info.startedAt });
    this.#show(info);
  }

  #show(info: CommandInfo): void {
    this.#setup.show({ ...info });
  }
}

/** Returns a result; throws for one of MCP's form that says that it is an error. */
function checked(result: unknown): unknown {
  const { isError, content } = (result ?? {}) as { isError?: unknown; content?: { text?: string }[] };
  if (isError !== true || !Array.isArray(content)) return result;
  const text = content.map((part) => part?.text ?? "").filter(Boolean);
  throw new ToolError("tool_error", text.join("\n") || "the tool reported an error");
}

/** Tell the agent what the page said, by the error's own code or its name. */
function faultOf(thrown: unknown, signal: AbortSignal): { code: string; message: string; details?: unknown } {
  const error = thrown instanceof Error || thrown instanceof DOMException ? thrown : new Error(String(thrown));
  const { code, details } = error as { code?: unknown; details?: unknown };
  const isOwn = typeof code === "string";
  if (!isOwn && !signal.aborted) console.warn("AgentBridge: a tool has failed:", error);
  return { code: isOwn ? code : error.name, message: error.message, ...(isOwn && details !== undefined ? { details } : {}) };
}
