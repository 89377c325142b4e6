/** What a developer should know, in the console, once for each cause. */

const LOCAL = ", or its user must allow this page to reach the local network, for which it has to come by https";

export class Guidance {
  #told = new Set<string>();

  tell(cause: string, sentence: string): void {
    if (this.#told.has(cause)) return;
    this.#told.add(cause);
    console.warn(`AgentBridge: ${sentence}`);
  }

  /** Let a cause be told again, because it has gone meanwhile. */
  forget(cause: string): void {
    this.#told.delete(cause);
  }
}

/** Warns of a page from which browsers open no connection, or not the whole of one. */
export function checkPlace(url: URL, guidance: Guidance): void {
  if (typeof location === "undefined") return;
  if (location.protocol === "https:" && url.protocol === "ws:" && !isLoopback(url.hostname)) {
    guidance.tell("mixed", `browsers block ${url.href} on a page of https: give the gateway a certificate, and a wss: URL`);
  }
  if (!isSecureContext) {
    const why = "so there is no WebMCP, and a reload makes a new client. Serve it by https, or from localhost";
    guidance.tell("insecure", `this page is no secure context, ${why}`);
  }
}

/** Finds out why a connection was not even opened, which a browser tells no script, and says what to do. */
export async function diagnose(url: URL, guidance: Guidance): Promise<void> {
  if (typeof location === "undefined") return;
  const about = new URL("agentbridge.json", url.href.replace(/^ws/, "http"));
  try {
    const { origin } = await (await fetch(about, { cache: "no-store" })).json();
    if (origin === "refused") {
      guidance.tell("origin", `the gateway refuses pages of ${location.origin}: add it to AGENTBRIDGE_ALLOWED_ORIGINS`);
    }
  } catch {
    const local = isPrivate(url.hostname) && !isPrivate(location.hostname) ? LOCAL : "";
    const causes = `the gateway does not run, or connect-src of the page's CSP does not name it${local}`;
    guidance.tell("unreachable", `${about.origin} cannot be reached: ${causes}`);
  }
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host.endsWith(".localhost") || host === "[::1]" || /^127\./.test(host);
}

function isPrivate(host: string): boolean {
  return isLoopback(host) || host.endsWith(".local") || /^(10|192\.168|172\.(1[6-9]|2\d|3[01])|169\.254)\./.test(host);
}
