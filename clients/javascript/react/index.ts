/**
 * Tools and components of a React application: offered while the component that names them is mounted.
 *
 * A tool is registered anew only if what agents read of it has changed; the function that runs is always that of the
 * last render, so it sees the state of now and needs no list of dependencies.
 */

import { createContext, useContext, useEffect, useRef, useState } from "react";
import type { Action, ActiveAgent, AgentBridge, Component, ComponentHandle, State, Tool, ToolContext } from "../src/types.js";

/** The connection that the hooks use; without a provider, that of the script tag. */
export const AgentBridgeContext = createContext<AgentBridge | undefined>(undefined);

export function useAgentBridge(): AgentBridge | undefined {
  const given = useContext(AgentBridgeContext);
  return given ?? (globalThis as { agentbridge?: AgentBridge }).agentbridge;
}

/** Offer a tool for as long as this component is mounted. */
export function useTool<Input = any>(tool: Tool<Input>): void {
  const bridge = useAgentBridge();
  const latest = useRef(tool);
  useEffect(() => void (latest.current = tool));
  const { execute: _, ...described } = tool;
  useEffect(() => {
    const mounted = new AbortController();
    const execute = (input: Input, context: ToolContext) => latest.current.execute(input, context);
    void bridge?.registerTool({ ...latest.current, execute }, { signal: mounted.signal });
    return () => mounted.abort();
  }, [bridge, JSON.stringify(described)]);
}

/** Offer a component with actions for as long as this one is mounted; changed properties are told. */
export function useComponent(component: Component): void {
  const bridge = useAgentBridge();
  const latest = useRef(component);
  const handle = useRef<ComponentHandle>(undefined);
  useEffect(() => void (latest.current = component));
  const { properties = {}, actions, ...described } = component;
  const told = Object.entries(actions).map(([name, { execute: _, ...action }]) => [name, action]);
  useEffect(() => {
    const run = (name: string): Action["execute"] => (input, context) => latest.current.actions[name]!.execute(input, context);
    const named = Object.entries(latest.current.actions).map(([name, action]) => [name, { ...action, execute: run(name) }]);
    try {
      handle.current = bridge?.component({ ...latest.current, actions: Object.fromEntries(named) });
    } catch (error) {
      reportError(error); // thrown, it would take the whole application away
    }
    return () => {
      handle.current?.remove();
      handle.current = undefined;
    };
  }, [bridge, JSON.stringify([described, told])]);
  const now = JSON.stringify(properties);
  const known = useRef(now); // an effect runs twice in React's strict mode
  useEffect(() => {
    if (known.current !== now) handle.current?.update(latest.current.properties ?? {});
    known.current = now;
  }, [now]);
}

/** Whether the page is connected, and which agents work here now. */
export function useBridgeState(): { state: State | undefined; agents: readonly ActiveAgent[] } {
  const bridge = useAgentBridge();
  const [, render] = useState(0);
  useEffect(() => {
    const again = () => render((count) => count + 1);
    bridge?.addEventListener("state", again);
    bridge?.addEventListener("agents", again);
    again(); // something may have changed between the first render and now
    return () => {
      bridge?.removeEventListener("state", again);
      bridge?.removeEventListener("agents", again);
    };
  }, [bridge]);
  return { state: bridge?.state, agents: bridge?.agents ?? [] };
}
