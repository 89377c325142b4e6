/** What crosses the WebSocket, and values as they travel in it. */

import type { ActiveAgent, AgentIdentity } from "./types.js";

export interface CommandFrame {
  type: "command";
  requestId: string;
  target: string;
  action?: string | null;
  parameters: Record<string, unknown>;
  timeoutMs: number;
  agent: AgentIdentity;
}

export interface ConnectionFrame {
  type: "connection";
  clientId: string;
  limits?: { maxMessageBytes?: number };
  resumeToken?: string;
  resumed?: boolean;
  awaiting?: string[];
}

export interface ErrorFrame {
  type: "error";
  code: string;
  message: string;
  id?: string;
  requestId?: string;
  details?: { retryAfterMs?: number; refused?: { name: string; message: string }[] };
}

export type ServerFrame =
  | ConnectionFrame
  | CommandFrame
  | ErrorFrame
  | { type: "cancel"; requestId: string; reason: string }
  | { type: "ack"; id: string }
  | { type: "agents"; agents: ActiveAgent[] }
  | { type: "pong" };

export type ClientFrame = { type: string; [field: string]: unknown };
export type Send = (frame: ClientFrame) => void;

/** Errors of frames that may be sent again as they are. */
export const PASSING_ERRORS = new Set(["rate_limited", "overloaded", "unavailable"]);
export const RESEND_AFTER_MS = 1_000;
/** Of a frame; a gateway closes the connection for a larger one. This is the usual setting. */
export const MAX_MESSAGE_BYTES = 960 * 1024;
const ROOM_BYTES = 4 * 1024; // for what stands beside a value in its frame

/** What the gateway of the moment takes. */
export interface Limits {
  maxMessageBytes: number;
}

/** An error with a code of the page's own, which agents read in `details.code`. */
export class ToolError extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly details?: unknown,
  ) {
    super(message);
    this.name = "ToolError";
  }
}

/** Returns a value as it travels; throws for one that cannot, while somebody can still be told. */
export function asJson(value: unknown, maxMessageBytes = MAX_MESSAGE_BYTES): unknown {
  const text = JSON.stringify(value === undefined ? null : value) ?? "null";
  if (bytesOf(text) > maxMessageBytes - ROOM_BYTES) {
    throw new ToolError("too_large", "this is too large to be sent in one piece");
  }
  return JSON.parse(text);
}

export function bytesOf(text: string): number {
  return new TextEncoder().encode(text).length;
}

export function randomHex(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
