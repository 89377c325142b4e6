/**
 * A client of an AgentBridge gateway for any web page: copy this file, nothing else is needed.
 *
 * It connects, says what agents may do here, executes their commands, answers them, tells events, and comes back by
 * itself when the connection is lost. It knows nothing of the page; the page listens to two DOM events on it:
 * `state` (detail: a State) and `command` (detail: a Command, when it begins, tells how far it is, and ends).
 *
 * @typedef {{phase: 'connecting'|'ready'|'waiting'|'stopped', clientId: string|null, reason: string}} State
 * @typedef {{requestId: string, target: string, action: string|null, parameters: object, agent: string,
 *   status: 'running'|'done'|'failed'|'cancelled', message: string, startedAt: number, durationMs: number}} Command
 * @typedef {{total?: number, message?: string, data?: any}} More
 * @typedef {{agent: string, signal: AbortSignal, progress: (progress: number, more?: More) => void}} Context
 */

const SUBPROTOCOL = 'agentbridge.v1';

/** Close codes after which trying again would not help: left, policy, no credentials, refused, replaced. */
const FINAL_CODES = new Set([1000, 1008, 4001, 4003, 4009]);
/** The gateway is going away: another one, or its successor, is there soon. */
const MOVING_CODES = new Set([1001, 1012]);

const MOVE_WITHIN_MS = 1_000;
const FIRST_BACK_OFF_MS = 500;
const MAX_BACK_OFF_MS = 15_000;
const STABLE_AFTER_MS = 5_000;
const CONNECT_WITHIN_MS = 10_000;
const BEAT_MS = 15_000;
const MAX_EVENTS_KEPT = 200;
const MAX_EVENTS_IN_FLIGHT = 32;
const RESEND_EVENTS_AFTER_MS = 1_000;
const MAX_FRAME_BYTES = 900 * 1024; // a gateway closes the connection for frames above 960 KiB
const MAX_TIMER_MS = 2 ** 31 - 1;

/** What a capability throws to answer with its own code and a sentence that the agent may read. */
export class CapabilityError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export class AgentBridge extends EventTarget {
  #credentials;
  #registration;
  #handlers;
  #socket = null;
  #attempt = 0;
  #failures = 0;
  #openedAt = 0;
  #timers = { retry: 0, beat: 0, refresh: 0, resend: 0 };
  #awaitingPong = false;
  #running = new Map();
  #events = new Map();
  #sentEvents = new Set();
  #idPrefix = randomHex();
  #nextId = 1;

  /** @type {State} */
  state = { phase: 'stopped', clientId: null, reason: '' };

  /**
   * @param {object} options
   * @param {() => Promise<{url: string, token: string|null}>} options.credentials asked before every connection and
   *   when a token is about to expire, so that it can always give a fresh one
   * @param {{name: string, version: string}} options.app
   * @param {object[]} options.capabilities as the gateway wants them, each function and each action of a component
   *   with a `run(parameters, context)` besides, which returns the result or a promise of it
   * @param {object} [options.metadata]
   */
  constructor({ credentials, app, capabilities, metadata = {} }) {
    super();
    this.#credentials = credentials;
    this.#handlers = new Map(capabilities.map((capability) => [capability.name ?? capability.id, capability]));
    this.#registration = { type: 'capability', id: 'registration', capabilities: asJson(capabilities), app, metadata };
  }

  /** Connect, now; also after having stopped, and instead of waiting for the next attempt. */
  connect() {
    if (this.state.phase === 'stopped' || this.state.phase === 'waiting') this.#open();
  }

  /** Leave, and stay away until `connect()`. */
  disconnect() {
    this.#socket?.close(1000);
    this.#leave('stopped', 'disconnected');
  }

  /**
   * Tell an event. It is kept until the gateway has stored it, over reconnects; where more than 200 wait, the oldest is
   * given up. Its id is told too: an event that is sent twice has the same one. Throws for data that cannot travel.
   */
  tell(event, data, source) {
    const id = `${this.#idPrefix}-${this.#nextId++}`;
    this.#events.set(id, asJson({ type: 'event', event, source, data, id }));
    if (this.#events.size > MAX_EVENTS_KEPT) this.#forgetEvent(this.#events.keys().next().value);
    this.#sendEvents();
  }

  // --- the connection ---

  async #open() {
    const attempt = ++this.#attempt;
    clearTimeout(this.#timers.retry);
    this.#become('connecting', '');
    try {
      const { url, token } = await this.#credentials();
      if (attempt === this.#attempt) this.#attach(new WebSocket(url, subprotocols(token)), token);
    } catch (error) {
      if (attempt === this.#attempt) this.#retryLater(error.message);
    }
  }

  #attach(socket, token) {
    this.#socket = socket;
    this.#awaitingPong = true; // whatever it says first, it must say something soon
    this.#timers.beat = setTimeout(() => this.#beat(), CONNECT_WITHIN_MS);
    socket.addEventListener('message', ({ data }) => this.#isCurrent(socket) && this.#receive(JSON.parse(data)));
    socket.addEventListener('close', ({ code, reason }) => this.#isCurrent(socket) && this.#closed(code, reason));
    socket.addEventListener('open', () => {
      this.#openedAt = Date.now();
      this.#refreshLater(token);
    });
  }

  #isCurrent(socket) {
    return socket === this.#socket;
  }

  #closed(code, reason) {
    if (FINAL_CODES.has(code)) {
      this.#leave('stopped', reason || `closed by the gateway (${code})`);
    } else if (MOVING_CODES.has(code)) {
      this.#retryLater(reason || 'the gateway restarts', Math.random() * MOVE_WITHIN_MS);
    } else {
      this.#retryLater(reason || (this.#openedAt ? 'the connection was lost' : 'the gateway cannot be reached'));
    }
  }

  /** Try again after a while: doubled each time, and half of it random, so that thousands of pages don't come at once. */
  #retryLater(reason, delayMs = null) {
    if (this.#openedAt && Date.now() - this.#openedAt > STABLE_AFTER_MS) this.#failures = 0;
    const backOff = Math.min(MAX_BACK_OFF_MS, FIRST_BACK_OFF_MS * 2 ** this.#failures++);
    this.#leave('waiting', reason);
    this.#timers.retry = setTimeout(() => this.#open(), delayMs ?? backOff * (0.5 + Math.random() / 2));
  }

  #leave(phase, reason) {
    this.#attempt++;
    this.#socket = null;
    this.#openedAt = 0;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    for (const requestId of [...this.#running.keys()]) this.#abort(requestId, 'the connection was lost');
    this.#sentEvents.clear();
    this.#become(phase, reason);
  }

  #become(phase, reason, clientId = null) {
    this.state = { phase, clientId, reason };
    this.dispatchEvent(new CustomEvent('state', { detail: this.state }));
  }

  #send(frame) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }

  /** Notice a connection that is dead without having been closed: pages cannot see WebSocket pongs, so frames are sent. */
  #beat() {
    clearTimeout(this.#timers.beat);
    if (this.#awaitingPong) {
      this.#socket.close();
      this.#retryLater('the gateway does not answer');
      return;
    }
    this.#awaitingPong = true;
    this.#send({ type: 'ping' });
    this.#timers.beat = setTimeout(() => this.#beat(), BEAT_MS);
  }

  /** Replace the token well before it expires: a gateway closes the socket at that very moment. */
  #refreshLater(token) {
    const leftMs = expiryMs(token) - Date.now();
    clearTimeout(this.#timers.refresh);
    if (leftMs < MAX_TIMER_MS) {
      this.#timers.refresh = setTimeout(() => this.#refresh(token), Math.max(1_000, leftMs * 0.8));
    }
  }

  async #refresh(former) {
    const socket = this.#socket;
    const fresh = await this.#credentials().then((given) => given.token, () => former);
    if (!this.#isCurrent(socket)) return;
    if (fresh !== former) this.#send({ type: 'auth', token: fresh, id: 'token' });
    this.#refreshLater(fresh);
  }

  // --- frames of the gateway ---

  #receive(frame) {
    this.#awaitingPong = false;
    switch (frame.type) {
      case 'connection':
        this.#become('connecting', '', frame.clientId);
        return this.#send(this.#registration);
      case 'command':
        return this.#execute(frame);
      case 'cancel':
        return this.#abort(frame.requestId, frame.reason);
      case 'ack':
        return frame.id === this.#registration.id ? this.#registered() : this.#eventStored(frame.id);
      case 'error':
        return this.#refused(frame);
      default: // a pong, or a frame of a newer gateway
        return undefined;
    }
  }

  #registered() {
    this.#become('ready', '', this.state.clientId);
    this.#beat();
    this.#sendEvents();
  }

  #refused({ id, code, message }) {
    if (id === this.#registration.id) {
      this.#socket.close(1000);
      this.#leave('stopped', message);
    } else if (this.#events.has(id) && (code === 'unavailable' || code === 'overloaded')) {
      this.#sentEvents.delete(id);
      clearTimeout(this.#timers.resend);
      this.#timers.resend = setTimeout(() => this.#sendEvents(), RESEND_EVENTS_AFTER_MS);
    } else {
      this.#forgetEvent(id);
      console.warn(`The gateway refused a frame: ${code}: ${message}`);
    }
  }

  // --- commands ---

  async #execute({ requestId, target, action, parameters, agent }) {
    const abort = new AbortController();
    const command = { requestId, target, action, parameters, agent: agent.id, status: 'running', message: '' };
    Object.assign(command, { startedAt: Date.now(), durationMs: 0 });
    this.#running.set(requestId, { abort, command });
    this.#show(command);
    const answer = await this.#answer(command, abort.signal);
    if (abort.signal.aborted) return; // nobody waits for it any more
    this.#running.delete(requestId);
    this.#send({ type: 'response', requestId, ...answer });
    this.#end(command, answer.error ? 'failed' : 'done', answer.error?.message ?? '');
  }

  async #answer(command, signal) {
    try {
      const run = this.#handler(command.target, command.action);
      const progress = (amount, more = {}) => this.#tellProgress(command, amount, more);
      const result = await run(command.parameters, { agent: command.agent, signal, progress });
      return { status: 'success', result: asJson(result ?? null) };
    } catch (error) {
      return { status: 'error', error: faultOf(error, signal) };
    }
  }

  /** Tell how far a command is, while somebody waits for it; callers who did not ask for that hear nothing of it. */
  #tellProgress(command, progress, { total, message, data }) {
    if (!this.#running.has(command.requestId)) return;
    this.#send({ type: 'progress', requestId: command.requestId, progress, total, message, data });
    this.#show(Object.assign(command, { message: message ?? '' }));
  }

  #handler(target, action) {
    const capability = this.#handlers.get(target);
    const run = capability?.type === 'component' ? capability.actions[action]?.run : capability?.run;
    if (!run) throw new CapabilityError('unknown_capability', `this page has no ${target} ${action ?? ''}`.trim());
    return run;
  }

  #abort(requestId, reason) {
    const running = this.#running.get(requestId);
    if (!running) return;
    this.#running.delete(requestId);
    this.#end(running.command, 'cancelled', reason);
    running.abort.abort(new DOMException(reason, 'AbortError'));
  }

  #end(command, status, message) {
    Object.assign(command, { status, message, durationMs: Date.now() - command.startedAt });
    this.#show(command);
  }

  #show(command) {
    this.dispatchEvent(new CustomEvent('command', { detail: { ...command } }));
  }

  // --- events ---

  #sendEvents() {
    if (this.state.phase !== 'ready') return;
    for (const [id, frame] of this.#events) {
      if (this.#sentEvents.size >= MAX_EVENTS_IN_FLIGHT) return;
      if (this.#sentEvents.has(id)) continue;
      this.#sentEvents.add(id);
      this.#send(frame);
    }
  }

  #eventStored(id) {
    this.#forgetEvent(id);
    this.#sendEvents();
  }

  #forgetEvent(id) {
    this.#events.delete(id);
    this.#sentEvents.delete(id);
  }
}

/** Return a value as it travels, without functions; throw for one that cannot, while somebody can still be told. */
function asJson(value) {
  const text = JSON.stringify(value);
  if (new TextEncoder().encode(text).length > MAX_FRAME_BYTES) {
    throw new CapabilityError('too_large', 'this is too large to be sent in one piece');
  }
  return JSON.parse(text);
}

/** Tell the agent what a capability said on purpose; what it did not goes to the console, not to strangers. */
function faultOf(error, signal) {
  if (error instanceof CapabilityError) return { code: error.code, message: error.message };
  if (!signal.aborted) console.error(error);
  return { code: 'internal', message: 'the page failed to execute this' };
}

/** A browser cannot set headers on a WebSocket; a subprotocol, unlike a query, does not end up in logs of URLs. */
function subprotocols(token) {
  return token ? [SUBPROTOCOL, `bearer.${token}`] : [SUBPROTOCOL];
}

/** Return when a JSON Web Token expires; never, where it does not say. */
function expiryMs(token) {
  try {
    const claims = atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'));
    return JSON.parse(claims).exp * 1000 || Infinity;
  } catch {
    return Infinity;
  }
}

function randomHex() {
  return Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}
