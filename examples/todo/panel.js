/** What the bridge is doing, for the person at the page: the connection, who drives it, and every command. */

const MAX_ROWS = 50;
const DRIVING_FOR_MS = 4_000;
const STOP_SECONDS = 600;
const OPEN = new Set(['asking', 'running']);
const PHASES = {
  connecting: 'Connecting…',
  ready: 'Connected',
  waiting: 'Reconnecting…',
  stopped: 'Disconnected',
};

const element = (id) => document.getElementById(id);

export class BridgePanel {
  #bridge;
  #rows = new Map();
  #names = new Map();
  #running = new Set();
  #commands = 0;
  #idle = 0;

  /** `bridge` is undefined if the gateway's script could not be loaded. */
  constructor(bridge) {
    if (!bridge) {
      this.#showState({ phase: 'stopped', clientId: null, reason: 'the gateway cannot be reached: reload the page' });
      element('connect').hidden = true;
      return;
    }
    this.#bridge = bridge;
    this.#showState(bridge.state);
    bridge.addEventListener('state', ({ detail }) => this.#showState(detail));
    bridge.addEventListener('command', ({ detail }) => this.#showCommand(detail));
    bridge.addEventListener('agents', () => this.#showAgents());
    element('connect').addEventListener('click', () => bridge.reconnect());
    element('copy').addEventListener('click', () => this.#copyId());
  }

  #showState({ phase, clientId, reason }) {
    document.documentElement.dataset.phase = phase;
    element('phase').textContent = PHASES[phase];
    element('reason').textContent = reason;
    element('connect').hidden = phase !== 'stopped' && phase !== 'waiting';
    element('client-id').textContent = clientId ?? '–';
    element('copy').hidden = clientId === null || !navigator.clipboard; // which pages without https lack
  }

  /** Who works here now, and who was stopped, each with a button. */
  #showAgents() {
    const stopped = this.#bridge.stoppedAgents.map(({ id }) => id);
    for (const { id, name } of this.#bridge.agents) this.#names.set(id, name ?? id);
    const each = stopped.includes(undefined); // nobody works here, then
    const ids = each ? [undefined] : new Set([...this.#bridge.agents.map(({ id }) => id), ...stopped]);
    element('agents').replaceChildren(...[...ids].map((id) => this.#agentRow(id, stopped.includes(id))));
  }

  #agentRow(id, isStopped) {
    const row = element('agent-row').content.firstElementChild.cloneNode(true);
    const who = id === undefined ? 'Each agent' : `Agent ${this.#names.get(id) ?? id}`;
    row.querySelector('.working').textContent = isStopped ? `${who} is stopped` : `${who} is working`;
    row.toggleAttribute('data-stopped', isStopped);
    const button = row.querySelector('button');
    button.textContent = isStopped ? 'Allow' : 'Stop';
    button.addEventListener('click', () => {
      if (isStopped) this.#bridge.allow(id);
      else this.#bridge.stop(id, { seconds: STOP_SECONDS });
    });
    return row;
  }

  #showCommand(command) {
    const row = this.#rows.get(command.requestId) ?? this.#newRow(command);
    row.dataset.status = command.status;
    row.querySelector('.status').textContent = command.status;
    row.querySelector('.took').textContent = OPEN.has(command.status) ? '' : `${command.durationMs} ms · `;
    row.querySelector('.message').textContent = command.message;
    this.#showDriver(command);
  }

  #newRow(command) {
    const row = element('command-row').content.firstElementChild.cloneNode(true);
    const time = new Date(command.startedAt);
    row.querySelector('time').textContent = time.toLocaleTimeString();
    row.querySelector('time').dateTime = time.toISOString();
    row.querySelector('.agent').textContent = command.agent.name ?? command.agent.id;
    row.querySelector('.what').textContent = nameOf(command);
    row.querySelector('.parameters').textContent = spelled(command.input);
    element('commands').prepend(row);
    element('no-commands').hidden = true;
    this.#rows.set(command.requestId, row);
    this.#commands++;
    this.#forgetOldest();
    return row;
  }

  #forgetOldest() {
    if (this.#rows.size <= MAX_ROWS) return;
    const [oldest, row] = this.#rows.entries().next().value;
    this.#rows.delete(oldest);
    row.remove();
  }

  #showDriver({ requestId, agent, status }) {
    if (OPEN.has(status)) this.#running.add(requestId);
    else this.#running.delete(requestId);
    element('driver').textContent = agent.name ?? agent.id;
    element('command-count').textContent = this.#commands === 1 ? '1 command' : `${this.#commands} commands`;
    document.documentElement.dataset.driven = 'now';
    clearTimeout(this.#idle);
    if (!this.#running.size) {
      this.#idle = setTimeout(() => { document.documentElement.dataset.driven = 'before'; }, DRIVING_FOR_MS);
    }
  }

  async #copyId() {
    await navigator.clipboard.writeText(this.#bridge.state.clientId);
    element('copy').textContent = 'Copied';
    setTimeout(() => { element('copy').textContent = 'Copy'; }, 1_500);
  }
}

function nameOf({ target, action }) {
  return action && action !== 'call' ? `${target}.${action}` : target;
}

function spelled(parameters) {
  return Object.entries(parameters).map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(' ');
}
