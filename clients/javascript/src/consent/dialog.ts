/** The question to the user, made so that a strict CSP and Trusted Types let it pass: no markup, no inline style. */

import type { ConfirmQuestion } from "../types.js";

const MAX_SHOWN_CHARS = 2_000;
const STYLE = `
dialog {
  box-sizing: border-box; width: min(30rem, calc(100vw - 2rem)); max-height: calc(100dvh - 2rem); padding: 1.25rem;
  flex-direction: column; overflow: auto; border: 1px solid color-mix(in srgb, CanvasText 20%, Canvas); border-radius: 14px;
  background: Canvas; color: CanvasText; color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif;
  box-shadow: 0 20px 60px rgb(0 0 0 / 35%);
}
dialog[open] { display: flex; }
dialog::backdrop { background: rgb(0 0 0 / 45%); }
h2, p, div { flex: none; }
h2 { margin: 0 0 .5rem; font-size: 1.1rem; overflow-wrap: anywhere; }
p { margin: 0 0 .75rem; overflow-wrap: anywhere; }
section { min-height: 0; margin-bottom: 1rem; overflow: auto; }
section > :last-child { margin-bottom: 0; }
pre {
  margin: 0; padding: .6rem .75rem; border-radius: 8px; font-size: .85rem;
  background: color-mix(in srgb, CanvasText 8%, Canvas); white-space: pre-wrap; overflow-wrap: anywhere;
}
div { display: flex; flex-wrap: wrap; gap: .5rem; justify-content: flex-end; }
button {
  min-height: 2.75rem; padding: 0 1rem; border: 1px solid color-mix(in srgb, CanvasText 30%, Canvas); border-radius: 10px;
  background: transparent; color: inherit; font: inherit; font-weight: 600; cursor: pointer;
}
button[value=allow] { border-color: #0f766e; background: #0f766e; color: #fff; }
button[value=never] {
  margin-right: auto; padding: 0; border: 0; font-weight: 400; text-decoration: underline; text-underline-offset: .2em;
}
:focus-visible { outline: 3px solid #14b8a6; outline-offset: 2px; }
`;

/** Ask, and return the answer: yes, no, or never for this agent. Closed by the question's signal, it is a no. */
export function askInDialog(question: ConfirmQuestion): Promise<boolean | "never"> {
  const host = document.createElement("agentbridge-question");
  const dialog = dialogOf(question);
  const root = host.attachShadow({ mode: "open" });
  root.adoptedStyleSheets = [styleSheet()];
  root.append(dialog);
  document.documentElement.append(host);
  const close = () => dialog.close();
  question.signal.addEventListener("abort", close, { once: true });
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      question.signal.removeEventListener("abort", close);
      host.remove();
      resolve(dialog.returnValue === "never" ? "never" : dialog.returnValue === "allow");
    });
    dialog.showModal();
  });
}

function dialogOf({ agent, title, description, input }: ConfirmQuestion): HTMLDialogElement {
  const dialog = document.createElement("dialog");
  const name = agent.name ? `${agent.name} (${agent.id})` : agent.id;
  const heading = element("h2", title);
  heading.id = "question";
  dialog.setAttribute("aria-labelledby", heading.id);
  const buttons = element("div", "");
  const answers = [["never", "Decline all from this agent"], ["decline", "Decline"], ["allow", "Allow"]] as const;
  buttons.append(...answers.map(([value, label]) => button(dialog, value, label)));
  const text = JSON.stringify(input, null, 2) ?? "";
  const shown = text === "{}" ? [] : [element("pre", shortened(text))];
  const what = element("section", ""); // what does not fit is scrolled; who asks and the answers stay in sight
  what.append(element("p", description), ...shown);
  dialog.append(heading, element("p", `${name} wants to do this for you.`), what, buttons);
  return dialog;
}

/** Returns as much of a text as can be read; a user who allows something must know that there is more of it. */
function shortened(text: string): string {
  const more = text.length - MAX_SHOWN_CHARS;
  return more > 0 ? `${text.slice(0, MAX_SHOWN_CHARS)}…\n(and ${more} characters more)` : text;
}

function button(dialog: HTMLDialogElement, value: string, label: string): HTMLElement {
  const made = element("button", label) as HTMLButtonElement;
  made.value = value;
  made.autofocus = value === "decline"; // a key that was meant for the page does no harm
  made.addEventListener("click", () => dialog.close(value));
  return made;
}

function element(name: string, text: string): HTMLElement {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function styleSheet(): CSSStyleSheet {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  return sheet;
}
