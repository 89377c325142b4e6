// A program that uses the library: it prints what it hears, and offers tools of every kind. The constants before it
// name the library's file, the gateway, the token and the options of `connect`.
import WebSocket from "ws";

const { connect, ToolError } = await import(library);
const tell = (...words) => console.log(JSON.stringify(words));
const bridge = connect({ url, token, app: "test", WebSocket, ...options });
bridge.addEventListener("state", ({ detail }) => tell("state", detail.phase, detail.clientId, detail.reason));
bridge.addEventListener("command", ({ detail }) => tell("command", detail.status, detail.message));
bridge.addEventListener("agents", ({ detail }) => tell("agents", detail));

const fault = (error) => () => {
  throw error;
};
const once = new AbortController();
const offer = (name, execute, more = {}) => bridge.registerTool({ name, description: `The tool ${name}.`, execute, ...more });
const untilAborted = (_, { signal }) =>
  new Promise((done) => {
    signal.addEventListener("abort", () => {
      tell("aborted", signal.reason.name);
      done("too late");
    });
  });
const acts = {
  unregister: () => once.abort(),
  emit: () => bridge.emit("said", { hello: "world" }, { source: "test", id: "my-id" }),
  metadata: () => bridge.setMetadata({ room: "kitchen" }),
  stop: () => bridge.stop("agent-1"),
  allow: () => bridge.allow("agent-1"),
};

await bridge.registerTool(
  {
    name: "add",
    description: "Adds.",
    inputSchema: { type: "object", properties: { by: { type: "number" } } },
    execute: ({ by }, { progress, agent, requestId }) => {
      progress(1, { total: 2, message: "half" });
      return { by, agent, hasId: requestId.length > 0 };
    },
  },
  { signal: once.signal },
);
await offer("wait", untilAborted);
await offer("fail", fault(new ToolError("no_ink", "there is no ink", { tray: 2 })));
await offer("slip", fault(new RangeError("out of range")));
await offer("mcp", () => ({ isError: true, content: [{ type: "text", text: "as MCP" }] }));
await offer("risky", () => "done", { annotations: { consequentialHint: true } });
await offer("act", ({ what }) => acts[what]() ?? null);
tell("taken", await offer("add", () => {}).catch((error) => error.name));
const lamp = bridge.component({
  id: "lamp",
  componentType: "lamp",
  properties: { on: false, colour: "red" },
  actions: {
    toggle: {
      description: "Toggles.",
      execute: () => {
        lamp.update({ on: true });
        return true;
      },
    },
  },
});
