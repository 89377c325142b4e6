/** What the bridge is doing, for the person at the page: the connection, who drives it, and every command. */

const MAX_ROWS = 50;
const DRIVING_FOR_MS = 4_000;
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
  #running = new Set();
  #commands = 0;
  #idle = 0;

  constructor(bridge) {
    this.#bridge = bridge;
    bridge.addEventListener('state', ({ detail }) => this.#showState(detail));
    bridge.addEventListener('command', ({ detail }) => this.#showCommand(detail));
    element('connect').addEventListener('click', () => bridge.connect());
    element('copy').addEventListener('click', () => this.#copyId());
  }

  #showState({ phase, clientId, reason }) {
    document.documentElement.dataset.phase = phase;
    element('phase').textContent = PHASES[phase];
    element('reason').textContent = reason;
    element('connect').hidden = phase !== 'stopped' && phase !== 'waiting';
    element('client-id').textContent = clientId ?? '–';
    element('copy').hidden = clientId === null;
  }

  #showCommand(command) {
    const row = this.#rows.get(command.requestId) ?? this.#newRow(command);
    row.dataset.status = command.status;
    row.querySelector('.status').textContent = command.status;
    row.querySelector('.took').textContent = command.status === 'running' ? '' : `${command.durationMs} ms · `;
    row.querySelector('.message').textContent = command.message;
    this.#showDriver(command);
  }

  #newRow(command) {
    const row = element('command-row').content.firstElementChild.cloneNode(true);
    const time = new Date(command.startedAt);
    row.querySelector('time').textContent = time.toLocaleTimeString();
    row.querySelector('time').dateTime = time.toISOString();
    row.querySelector('.agent').textContent = command.agent;
    row.querySelector('.what').textContent = nameOf(command);
    row.querySelector('.parameters').textContent = spelled(command.parameters);
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
    if (status === 'running') this.#running.add(requestId);
    else this.#running.delete(requestId);
    element('driver').textContent = agent;
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
