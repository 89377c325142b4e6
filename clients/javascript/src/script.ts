/**
 * The library as a classic script. With `data-` attributes it connects by itself, and `agentbridge` is the connection;
 * `agentbridge.connect` makes others.
 */

import { Bridge } from "./bridge.js";
import { ToolError } from "./frames.js";
import { connect } from "./index.js";
import type { Confirm } from "./types.js";

function connected(script: HTMLScriptElement): Bridge | null {
  const { gateway, token, tokenUrl, app, tools, confirm } = script.dataset;
  if (Object.keys(script.dataset).length === 0) return null;
  const bridge = new Bridge({
    url: new URL(gateway ?? ".", gateway === undefined ? script.src : document.baseURI),
    ...{ token, tokenUrl, app },
    confirm: confirm as Confirm | undefined,
  });
  if (tools) bridge.bridgeModelContext({ tools });
  return bridge;
}

const script = document.currentScript;
const bridge = script instanceof HTMLScriptElement ? connected(script) : null;
Object.assign(globalThis, { agentbridge: Object.assign(bridge ?? {}, { connect, ToolError }) });
