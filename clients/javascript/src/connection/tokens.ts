/** Where tokens come from, and what they say about themselves. */

import type { Guidance } from "../guidance.js";
import type { ConnectOptions } from "../types.js";

export type TokenSource = () => Promise<string | null>;

/** The page's own server says that nobody is logged in. */
export class LoggedOut extends Error {}

export function tokenSource({ token, tokenUrl }: ConnectOptions, guidance: Guidance): TokenSource {
  if (tokenUrl !== undefined) return () => fetchToken(ownUrl(tokenUrl), guidance);
  return async () => (typeof token === "function" ? await token() : token) ?? null;
}

/** Returns the URL of tokens. Throws for one of another origin: cookies of the login would not come along. */
function ownUrl(tokenUrl: string): URL {
  const url = new URL(tokenUrl, document.baseURI);
  if (url.origin !== location.origin) throw new TypeError(`the token URL ${url.href} is not of this page's origin`);
  return url;
}

async function fetchToken(url: URL, guidance: Guidance): Promise<string | null> {
  const answer = await fetch(url, { credentials: "same-origin", cache: "no-store" }).catch(() => {
    throw new Error("this page's own server does not answer");
  });
  if (answer.status === 401 || answer.status === 403) throw new LoggedOut("nobody is logged in");
  const { token, message } = await answer.json().catch(() => ({}));
  if (answer.ok && (typeof token === "string" || token === null)) {
    guidance.forget("token-url");
    return token;
  }
  guidance.tell("token-url", `${url.pathname} answered ${answer.status} without a token: it should answer {"token": "…"}`);
  throw new Error(typeof message === "string" ? message : `no token: ${url.pathname} answered ${answer.status}`);
}

/** Returns what a JSON Web Token claims, nothing of one that cannot be read. */
export function claimsOf(token: string | null): { exp?: number; sub?: string } {
  try {
    const middle = token!.split(".")[1]!.replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(middle), (character) => character.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)) ?? {};
  } catch {
    return {};
  }
}
