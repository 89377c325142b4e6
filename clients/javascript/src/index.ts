/** The library as an ES module. */

import { Bridge } from "./bridge.js";
import type { AgentBridge, ConnectOptions } from "./types.js";

export { ToolError } from "./frames.js";
export type * from "./types.js";

/** Connect a page, or a process of Node, to a gateway; it goes on by itself. */
export function connect(options: ConnectOptions): AgentBridge {
  return new Bridge(options);
}
