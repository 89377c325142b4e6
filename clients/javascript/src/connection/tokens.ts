/** Where tokens come from, and what they say about themselves. */

import type { Guidance } from "../guidance.js";
import type { ConnectOptions } from "../types.js";

export type TokenSource = () => Promise<string | null>;

const DEFAULT_TENANT = "default";
const ANSWER_WITHIN_MS = 10_000;
const OWN_ANSWER_WITHIN_MS = 60_000; // of the page's own function, which may ask its user to log in

/** The page's own server says that nobody is logged in. */
export class LoggedOut extends Error {}

export function tokenSource({ token, tokenUrl }: ConnectOptions, guidance: Guidance): TokenSource {
  if (tokenUrl !== undefined) return () => fetchToken(ownUrl(tokenUrl), guidance);
  if (typeof token !== "function") return async () => token ?? null;
  return async () => {
    try {
      return (await Promise.race([token(), lateness(OWN_ANSWER_WITHIN_MS)])) ?? null;
    } catch (error) {
      guidance.tell(`token-function ${error}`, `the page's own function gave no token: ${error}`);
      throw error;
    }
  };
}

/** Rejects after this time, so that a function that never ends does not end everything else. */
function lateness(ms: number): Promise<never> {
  const signal = AbortSignal.timeout(ms);
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(new Error(`it took longer than ${ms / 1000} seconds`)));
  });
}

/** Returns the URL of tokens. Throws for one of another origin: cookies of the login would not come along. */
function ownUrl(tokenUrl: string): URL {
  const url = new URL(tokenUrl, document.baseURI);
  if (url.origin !== location.origin) throw new TypeError(`the token URL ${url.href} is not of this page's origin`);
  return url;
}

async function fetchToken(url: URL, guidance: Guidance): Promise<string | null> {
  const signal = AbortSignal.timeout(ANSWER_WITHIN_MS);
  const unanswered = () => {
    throw new Error("this page's own server does not answer");
  };
  const answer = await fetch(url, { credentials: "same-origin", cache: "no-store", signal }).catch(unanswered);
  if (answer.status === 401 || answer.status === 403) throw new LoggedOut("nobody is logged in");
  const text = await answer.text().catch(unanswered);
  const { token, message } = readObject(text);
  if (answer.ok && (typeof token === "string" || token === null)) {
    guidance.forget("token-url");
    return token;
  }
  guidance.tell("token-url", `${url.pathname} answered ${answer.status} without a token: it should answer {"token": "…"}`);
  throw new Error(typeof message === "string" ? message : `no token: ${url.pathname} answered ${answer.status}`);
}

function readObject(text: string): { token?: unknown; message?: unknown } {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

interface Claims {
  exp?: number;
  iat?: number;
  sub?: string;
  tenant?: string;
}

/** Returns whose a token is. The same name in another tenant is somebody else. */
export function userOf(token: string | null): string | null {
  const { sub = null, tenant = DEFAULT_TENANT } = claimsOf(token);
  return tenant === DEFAULT_TENANT ? sub : `${tenant}\n${sub}`;
}

/** Returns what a JSON Web Token claims, nothing of one that cannot be read. */
export function claimsOf(token: string | null): Claims {
  try {
    const middle = token!.split(".")[1]!.replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(middle), (character) => character.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)) ?? {};
  } catch {
    return {};
  }
}
