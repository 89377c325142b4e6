/** The tools of the browser's own API, WebMCP, offered to agents behind the gateway: `document.modelContext`. */

import { ToolError } from "../frames.js";
import type { Guidance } from "../guidance.js";
import { defineModelContext } from "./model_context_shim.js";
import type { Offers } from "../offers.js";
import type { RegisterOptions, Tool } from "../types.js";

/** What `getTools` gives; since Chrome 160 an object without properties of its own, so fields are read one by one. */
export interface ListedTool {
  name: string;
  title?: string;
  description: string;
  inputSchema?: object | string;
  outputSchema?: object;
  annotations?: Tool["annotations"];
  window?: unknown;
  source?: unknown;
}

export interface ModelContext extends EventTarget {
  registerTool(tool: Tool, options?: RegisterOptions): Promise<void>;
  getTools(): Promise<ListedTool[]>;
  executeTool(tool: ListedTool, input: unknown, options?: { signal?: AbortSignal }): Promise<string | null>;
}

type WithContext = Document & { modelContext?: ModelContext };

/** Offer what is registered at the page's model context from now on, and what was registered there before. */
export function bridgeModelContext(offers: Offers, page: WithContext, tools: string | string[], guidance: Guidance): void {
  const wanted = namedBy(tools);
  if (!page.modelContext) defineModelContext(page);
  const context = page.modelContext!;
  const own = new OwnTools(offers, context, wanted, guidance);
  own.wrap();
  own.watch(page.defaultView);
}

/** Returns whether a tool may leave the page by what its author has named; a debugging tool by its full name alone. */
export function namedBy(tools: string | string[]): (tool: { name: string; annotations?: Tool["annotations"] }) => boolean {
  const names = (typeof tools === "string" ? tools.split(/[\s,]+/) : tools).filter(Boolean);
  const patterns = names.map((name) => new RegExp(`^${name.split("*").map(escape).join(".*")}$`));
  return ({ name, annotations }) =>
    annotations?.debugging ? names.includes(name) : patterns.some((pattern) => pattern.test(name));
}

function escape(text: string): string {
  return text.replace(/[.+?^${}()|[\]\\]/g, "\\$&");
}

class OwnTools {
  readonly #offers: Offers;
  readonly #context: ModelContext;
  readonly #wanted: ReturnType<typeof namedBy>;
  readonly #guidance: Guidance;
  #wrapped = new Set<string>();
  #listed = new Map<string, AbortController>();

  constructor(offers: Offers, context: ModelContext, wanted: ReturnType<typeof namedBy>, guidance: Guidance) {
    this.#offers = offers;
    this.#context = context;
    this.#wanted = wanted;
    this.#guidance = guidance;
  }

  /** Keep the page's own functions of the tools that it registers: the browser tells no reason of a failure. */
  wrap(): void {
    const context = this.#context;
    const prototype = Object.getPrototypeOf(context) as ModelContext;
    const { registerTool } = prototype;
    const keep = (tool: Tool, options: RegisterOptions) => this.#keep(tool, options);
    prototype.registerTool = function (this: ModelContext, tool: Tool, options: RegisterOptions = {}): Promise<void> {
      const registering = registerTool.call(this, tool, options);
      if (this === context) registering.then(() => keep(tool, options), () => {}); // the page hears of it by the original
      return registering;
    };
  }

  /** Offer the tools that were registered before, and look again when the list changes. */
  watch(own: unknown): void {
    const look = async () => this.#take((await this.#context.getTools()).filter((tool) => isOf(tool, own)));
    const lookAgain = () => void look().catch((error) => this.#guidance.tell("get-tools", `getTools failed: ${error}`));
    this.#context.addEventListener("toolchange", lookAgain);
    lookAgain();
  }

  #keep(tool: Tool, { signal }: RegisterOptions): void {
    if (!this.#wanted(tool) || signal?.aborted) return;
    this.#unlist(tool.name);
    this.#wrapped.add(tool.name);
    signal?.addEventListener("abort", () => this.#wrapped.delete(tool.name), { once: true });
    this.#add(tool, signal);
  }

  #take(tools: ListedTool[]): void {
    const names = new Set(tools.map(({ name }) => name));
    for (const name of this.#listed.keys()) if (!names.has(name)) this.#unlist(name);
    for (const tool of tools) {
      if (this.#wrapped.has(tool.name) || this.#listed.has(tool.name) || !this.#wanted(tool)) continue;
      const end = new AbortController();
      this.#listed.set(tool.name, end);
      this.#add(this.#asTool(tool), end.signal);
    }
  }

  #unlist(name: string): void {
    this.#listed.get(name)?.abort();
    this.#listed.delete(name);
  }

  #add(tool: Tool, signal?: AbortSignal): void {
    if (this.#offers.has(tool.name)) return this.#guidance.tell(`twice ${tool.name}`, `${tool.name} is offered already`);
    try {
      this.#offers.addTool(tool, { signal });
    } catch (error) {
      this.#guidance.tell(`unusable ${tool.name}`, `${tool.name} is not offered: ${(error as Error).message}`);
    }
  }

  #asTool({ name, title, description, inputSchema, annotations }: ListedTool): Tool {
    const execute = (input: unknown, { signal }: { signal: AbortSignal }) => this.#execute(name, input, signal);
    return { name, title, description, inputSchema, annotations, execute };
  }

  /** Execute through the browser, by a descriptor that is fresh. A text of JSON is for Chrome before 155. */
  async #execute(name: string, input: unknown, signal: AbortSignal): Promise<unknown> {
    const tool = (await this.#context.getTools()).find((each) => each.name === name);
    if (!tool) throw new ToolError("unknown_capability", `this page has no ${name}`);
    let text: string | null;
    try {
      text = await this.#context.executeTool(tool, input, { signal });
    } catch (error) {
      if (!String((error as Error)?.message).startsWith("Failed to parse input")) throw error;
      text = await this.#context.executeTool(tool, JSON.stringify(input), { signal });
    }
    if (text === null) throw new ToolError("interrupted", "the page was left while the tool ran; it may have run");
    return JSON.parse(text);
  }
}

/** Tells whether a tool is of this document; `window` was renamed in Chrome 160. */
function isOf({ window, source }: ListedTool, own: unknown): boolean {
  const of = window ?? source;
  return of === undefined || of === null || of === own;
}
