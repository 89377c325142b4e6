/** What the page tells of itself: its address, its title, and whether its user sees it. */

const SETTLE_MS = 200;
const MAX_URL_CHARS = 2_000;
const MAX_TITLE_CHARS = 300;

/** Returns what agents may know of the page; nothing in Node. */
export function pageMetadata(): Record<string, unknown> {
  if (typeof document === "undefined") return {};
  return {
    url: shortUrl(location.href),
    title: document.title.slice(0, MAX_TITLE_CHARS),
    visible: document.visibilityState === "visible",
  };
}

/** Calls `changed` when the metadata may be others, with true if they must be told anyhow, and `seen` when the user is back. */
export function watchPage(changed: (force: boolean) => void, seen: () => void): void {
  if (typeof document === "undefined") return;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const settle = () => {
    clearTimeout(timer);
    timer = setTimeout(() => changed(false), SETTLE_MS);
  };
  for (const name of ["popstate", "hashchange"]) addEventListener(name, settle);
  const { navigation } = globalThis as { navigation?: EventTarget };
  navigation?.addEventListener("currententrychange", settle); // pushState has no event of its own
  const options = { childList: true, subtree: true, characterData: true };
  new MutationObserver(settle).observe(document.head ?? document.documentElement, options);
  document.addEventListener("visibilitychange", () => {
    changed(false);
    if (document.visibilityState === "visible") seen();
  });
  addEventListener("focus", () => {
    changed(true); // whose page the user looked at last, the gateway notes at each `visible: true`
    seen();
  });
  addEventListener("online", seen);
}

/** Returns an address without its fragment, which may hold secrets, unless it is a route of the page's own. */
function shortUrl(href: string): string {
  const [address, ...fragment] = href.split("#");
  const route = fragment.join("#");
  return (/^[/!]/.test(route) ? href : address!).slice(0, MAX_URL_CHARS);
}
