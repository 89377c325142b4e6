/** What a page offers: its tools and components by name, and the list of them that the gateway gets. */

import { asJson } from "./frames.js";
import type { Action, Component, RegisterOptions, Tool, ToolAnnotations } from "./types.js";

/** One thing that a command may name, with what it takes to execute it. */
export interface Offer {
  title: string;
  description: string;
  annotations: ToolAnnotations;
  execute: Action["execute"];
}

interface Entry {
  capability: object;
  find(action: string | null): Offer | undefined;
}

const NAME = /^[\w.-]{1,128}$/;

export class Offers {
  #entries = new Map<string, Entry>();
  readonly #changed: () => void;

  /** `changed` is called after each change of the list. */
  constructor(changed: () => void) {
    this.#changed = changed;
  }

  get capabilities(): object[] {
    return [...this.#entries.values()].map(({ capability }) => capability);
  }

  has(name: string): boolean {
    return this.#entries.has(name);
  }

  find(target: string, action: string | null): Offer | undefined {
    return this.#entries.get(target)?.find(action);
  }

  /** Throws `InvalidStateError` in the cases in which WebMCP does. */
  addTool(tool: Tool, { signal }: RegisterOptions = {}): void {
    checkTool(tool);
    const capability = asJson({ ...described(tool, tool.name), type: "function" }) as object;
    const offer = offerOf(tool, tool.title ?? tool.name);
    this.#add(tool.name, { capability, find: () => offer }, signal);
  }

  addComponent(component: Component, { signal }: RegisterOptions = {}): () => void {
    const { id, actions, ...rest } = component;
    const named = Object.entries(actions);
    const told = Object.fromEntries(named.map(([name, action]) => [name, described(action)]));
    const offers = new Map(named.map(([name, action]) => [name, offerOf(action, `${id}.${name}`)]));
    const capability = asJson({ ...rest, type: "component", id, actions: told }) as object;
    return this.#add(id, { capability, find: (action) => offers.get(action ?? "") }, signal);
  }

  #add(name: string, entry: Entry, signal?: AbortSignal): () => void {
    if (this.#entries.has(name)) throw invalidState(`Duplicate tool name: ${name}`);
    if (signal?.aborted) return () => {};
    const remove = () => {
      if (this.#entries.get(name) !== entry) return;
      this.#entries.delete(name);
      this.#changed();
    };
    this.#entries.set(name, entry);
    signal?.addEventListener("abort", remove, { once: true });
    this.#changed();
    return remove;
  }
}

/** Throws for a tool that WebMCP would not take. */
export function checkTool(tool: Tool): void {
  if (typeof tool?.execute !== "function") throw new TypeError("a tool needs an `execute` function");
  if (!NAME.test(tool.name)) {
    throw invalidState(`Invalid tool name ${JSON.stringify(tool.name)}: 1 to 128 of letters, digits, "_", "-" and "."`);
  }
  if (!tool.description) throw invalidState(`The tool ${tool.name} needs a description`);
  JSON.stringify([tool.inputSchema, tool.outputSchema]); // throws for a circle
}

function invalidState(message: string): DOMException {
  return new DOMException(message, "InvalidStateError");
}

function offerOf(source: Action & { title?: string }, title: string): Offer {
  const { description, annotations, execute } = source;
  return { title, description: description ?? "", annotations: annotations ?? {}, execute: execute.bind(source) };
}

/** Returns what the gateway is told of a tool or an action, by the gateway's own names. */
function described(source: Action | Tool, name?: string): object {
  const { execute: _, inputSchema, outputSchema, ...rest } = source as Tool;
  const parameters = asSchema(inputSchema) ?? (name === undefined ? undefined : { type: "object" });
  return { ...rest, parameters, result: asSchema(outputSchema) };
}

function asSchema(schema: object | string | undefined): object | undefined {
  return typeof schema === "string" ? JSON.parse(schema) : schema;
}
