/** Whether a command may run: the page's user is asked about consequential ones. */

import { askInDialog } from "./dialog.js";
import { ToolError } from "../frames.js";
import type { Guidance } from "../guidance.js";
import type { Offer } from "../offers.js";
import type { CommandInfo, Confirm, ConfirmQuestion } from "../types.js";

type Answer = boolean | "never";

export class Consent {
  readonly #confirm: Confirm;
  readonly #guidance: Guidance;
  #declined = new Set<string>();
  #last: Promise<unknown> = Promise.resolve();

  constructor(confirm: Confirm, guidance: Guidance) {
    this.#confirm = confirm;
    this.#guidance = guidance;
  }

  /** Ask about a command if that is wanted; `become` hears that the question is open. Throws if it is declined. */
  async ask(
    offer: Offer,
    info: CommandInfo,
    signal: AbortSignal,
    become: (status: CommandInfo["status"]) => void,
  ): Promise<{ confirmed?: "user" }> {
    const always = this.#confirm === "always";
    if (this.#confirm === "never" || !(always || offer.annotations.consequentialHint)) return {};
    try {
      become("asking");
      await this.#askInTurn(questionOf(offer, info, signal));
    } catch (error) {
      become("declined");
      throw error;
    }
    become("running");
    return { confirmed: "user" };
  }

  /** One question at a time; one that is no longer needed is never shown. */
  async #askInTurn(question: ConfirmQuestion): Promise<void> {
    const before = this.#last;
    let done = () => {};
    this.#last = new Promise<void>((resolve) => (done = resolve));
    await before;
    try {
      if (!question.signal.aborted) await this.#askNow(question);
    } finally {
      done();
    }
  }

  async #askNow(question: ConfirmQuestion): Promise<void> {
    const { id } = question.agent;
    if (this.#declined.has(id)) throw declined("declined", "the user has declined everything from this agent");
    const answer = await this.#answer(question);
    if (answer === "never") this.#declined.add(id);
    if (answer !== true && !question.signal.aborted) throw declined("declined", "the user has declined this");
  }

  #answer(question: ConfirmQuestion): Answer | Promise<Answer> {
    if (typeof this.#confirm === "function") return this.#confirm(question);
    if (typeof document === "undefined") {
      this.#guidance.tell("confirm", "there is no page to ask a user in: give `confirm` a function, or \"never\"");
      throw declined("no_user", "there is no user to ask");
    }
    if (document.visibilityState === "hidden") throw declined("hidden", "the user does not see the page");
    return askInDialog(question);
  }
}

function declined(reason: string, message: string): ToolError {
  return new ToolError("declined", message, { reason });
}

function questionOf({ title, description }: Offer, { agent, input }: CommandInfo, signal: AbortSignal): ConfirmQuestion {
  return { agent, title, description, input, signal };
}
