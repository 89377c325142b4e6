/** `document.modelContext` for browsers without WebMCP, with the standard's errors and events. */

import type { ListedTool, ModelContext } from "./model_context.js";
import { checkTool } from "../offers.js";
import type { RegisterOptions, Tool } from "../types.js";

type Handler = ((event: Event) => void) | null;
type ShimOptions = RegisterOptions & { exposedTo?: string[] };

class ModelContextShim extends EventTarget implements ModelContext {
  #tools = new Map<string, Tool>();
  #handlers = new Map<string, Handler>();

  async registerTool(tool: Tool, { signal, exposedTo = [] }: ShimOptions = {}): Promise<void> {
    checkTool(tool);
    if (!exposedTo.every(isTrustworthy)) throw new DOMException("An origin in exposedTo is not trustworthy", "SecurityError");
    if (this.#tools.has(tool.name)) throw new DOMException("Duplicate tool name", "InvalidStateError");
    if (signal?.aborted) throw signal.reason;
    this.#tools.set(tool.name, tool);
    signal?.addEventListener("abort", () => this.#remove(tool), { once: true });
    await new Promise((resolve) => setTimeout(resolve));
    this.dispatchEvent(new Event("toolchange"));
  }

  async getTools(): Promise<ListedTool[]> {
    const tools = [...this.#tools.values()].sort((one, other) => (one.name < other.name ? -1 : 1));
    return tools.map(({ name, title = "", description, inputSchema, annotations }) => ({
      ...{ name, title, description, inputSchema, annotations },
      window,
    }));
  }

  async executeTool({ name }: ListedTool, input: unknown = {}, { signal }: RegisterOptions = {}): Promise<string | null> {
    const tool = this.#tools.get(name);
    if (!tool) throw new DOMException(`There is no tool ${name}`, "NotFoundError");
    if (typeof input !== "object" || input === null) throw new TypeError("invalid input object: value is not an object");
    signal?.throwIfAborted();
    this.dispatchEvent(new Event("toolactivated"));
    signal?.addEventListener("abort", () => this.dispatchEvent(new Event("toolcancel")), { once: true });
    try {
      const context = { signal: signal ?? new AbortController().signal } as Parameters<Tool["execute"]>[1];
      return JSON.stringify((await tool.execute(input, context)) ?? null);
    } catch (error) {
      signal?.throwIfAborted();
      throw new DOMException(`Tool was executed but the invocation failed: ${error}`, "UnknownError");
    }
  }

  get ontoolchange(): Handler { return this.#handlers.get("toolchange") ?? null; }
  set ontoolchange(handler: Handler) { this.#handle("toolchange", handler); }
  get ontoolactivated(): Handler { return this.#handlers.get("toolactivated") ?? null; }
  set ontoolactivated(handler: Handler) { this.#handle("toolactivated", handler); }
  get ontoolcancel(): Handler { return this.#handlers.get("toolcancel") ?? null; }
  set ontoolcancel(handler: Handler) { this.#handle("toolcancel", handler); }

  #handle(name: string, handler: Handler): void {
    const former = this.#handlers.get(name) ?? null;
    if (former) this.removeEventListener(name, former);
    if (handler) this.addEventListener(name, handler);
    this.#handlers.set(name, handler);
  }

  #remove(tool: Tool): void {
    if (this.#tools.get(tool.name) !== tool) return;
    this.#tools.delete(tool.name);
    this.dispatchEvent(new Event("toolchange"));
  }
}

/** Define `document.modelContext`; a polyfill that comes later may replace it. */
export function defineModelContext(page: Document): void {
  Object.defineProperty(page, "modelContext", { value: new ModelContextShim(), configurable: true, enumerable: true });
}

function isTrustworthy(origin: string): boolean {
  try {
    const { protocol, hostname } = new URL(origin);
    return protocol === "https:" || hostname === "localhost" || hostname === "[::1]" || hostname.startsWith("127.");
  } catch {
    return false;
  }
}
