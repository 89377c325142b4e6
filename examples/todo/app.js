/** The page: draws the list, lets a person use it, and says what agents may do with it. */

import { BridgePanel } from './panel.js';
import { MAX_TITLE_CHARS, PERSON, TodoError, Todos } from './todos.js';

const element = (id) => document.getElementById(id);
const form = element('new-todo');
const titleInput = element('title');
const addButton = element('add');
const clearButton = element('clear');
const list = element('todos');
const dialog = element('question');

const todos = new Todos();
let actor = PERSON; // who presses the button: an agent's click is a real one, and takes the same way as a person's

// --- what agents may do ---

const TITLE = { type: 'string', minLength: 1, maxLength: MAX_TITLE_CHARS, pattern: '\\S' };
const TODO = {
  type: 'object',
  properties: { id: { type: 'string' }, title: TITLE, done: { type: 'boolean' }, by: { type: 'string' } },
};
const NOTHING = { type: 'object', additionalProperties: false };
const taking = (properties, required) => ({ type: 'object', properties, required, additionalProperties: false });

const tools = [
  {
    name: 'addTodo',
    description: 'Add a to-do to the end of the list.',
    inputSchema: taking({ title: TITLE }, ['title']),
    outputSchema: TODO,
    execute: ({ title }, { agent }) => todos.add(title, agent.id),
  },
  {
    name: 'listTodos',
    description: 'List all to-dos, oldest first.',
    inputSchema: NOTHING,
    outputSchema: { type: 'array', items: TODO },
    annotations: { readOnlyHint: true },
    execute: () => todos.list(),
  },
  {
    name: 'completeTodo',
    description: 'Mark a to-do as done, or with done=false as not done.',
    inputSchema: taking({ id: { type: 'string' }, done: { type: 'boolean', default: true } }, ['id']),
    outputSchema: TODO,
    annotations: { idempotentHint: true },
    execute: ({ id, done = true }, { agent }) => todos.complete(id, done, agent.id),
  },
  {
    name: 'clearCompleted',
    title: 'Clear completed to-dos',
    description: 'Remove all to-dos that are done; returns them.',
    inputSchema: NOTHING,
    outputSchema: { type: 'array', items: TODO },
    annotations: { consequentialHint: true }, // the person at the page is asked first
    execute: (_, { agent }) => todos.clearCompleted(agent.id),
  },
  {
    name: 'askPerson',
    description: 'Ask the person at the page a question that yes or no answers, and wait for it.',
    inputSchema: taking({ question: { type: 'string', minLength: 1, maxLength: 300 } }, ['question']),
    outputSchema: taking({ answer: { enum: ['yes', 'no', 'dismissed'] } }, ['answer']),
    execute: askPerson,
  },
];

const components = [
  {
    id: 'titleInput',
    componentType: 'textField',
    description: 'The field for the title of a new to-do.',
    actions: {
      setText: { description: 'Replace the text.', inputSchema: taking({ text: { type: 'string' } }, ['text']), execute: setTitle },
    },
  },
  {
    id: 'addButton',
    componentType: 'button',
    description: 'Adds what stands in titleInput.',
    actions: { click: { description: 'Press it.', inputSchema: NOTHING, execute: clickAdd } },
  },
];

function setTitle({ text }) {
  titleInput.value = text.slice(0, MAX_TITLE_CHARS);
  highlight(titleInput);
  return { text: titleInput.value };
}

function clickAdd(_, { agent }) {
  if (!titleInput.value.trim()) throw new TodoError('no_title', 'titleInput is empty; set its text first');
  actor = agent.id;
  try {
    addButton.click();
  } finally {
    actor = PERSON;
  }
  highlight(addButton);
  return todos.list().at(-1);
}

function askPerson({ question }, { agent, signal, progress }) {
  if (dialog.open) throw new TodoError('busy', 'the person is being asked something else');
  element('question-agent').textContent = agent.name ?? agent.id;
  element('question-text').textContent = question;
  dialog.returnValue = '';
  dialog.showModal();
  progress(0, { total: 1, message: 'the person is being asked' });
  signal.addEventListener('abort', () => dialog.close());
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve({ answer: dialog.returnValue || 'dismissed' }), { once: true });
  });
}

// --- what a person may do ---

form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (!titleInput.value.trim()) return;
  todos.add(titleInput.value, actor);
  titleInput.value = '';
});
clearButton.addEventListener('click', () => {
  todos.clearCompleted(PERSON);
  titleInput.focus(); // the button is gone, and with it the place of the keyboard
});
list.addEventListener('change', ({ target }) => todos.complete(idOf(target), target.checked, PERSON));
list.addEventListener('click', ({ target }) => {
  const remove = target.closest('.remove');
  if (!remove) return;
  const id = idOf(remove);
  const next = remove.closest('li').nextElementSibling ?? remove.closest('li').previousElementSibling;
  todos.remove(id, PERSON);
  (next?.querySelector('.remove') ?? titleInput).focus();
});

// --- how it looks ---

function draw() {
  const current = todos.list();
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  for (const todo of current) {
    const row = rows.get(todo.id) ?? newRow(todo);
    rows.delete(todo.id);
    row.querySelector('input').checked = todo.done;
  }
  for (const row of rows.values()) row.remove();
  const open = current.filter((todo) => !todo.done).length;
  element('count').textContent = `${open} of ${current.length} to do`;
  element('empty').hidden = current.length > 0;
  element('foot').hidden = current.length === 0;
  clearButton.hidden = open === current.length;
}

function newRow(todo) {
  const row = element('todo-row').content.firstElementChild.cloneNode(true);
  row.dataset.id = todo.id;
  row.querySelector('.title').textContent = todo.title;
  row.querySelector('.by').textContent = todo.by === PERSON ? '' : todo.by;
  row.querySelector('.remove').setAttribute('aria-label', `Remove ${todo.title}`);
  list.append(row);
  return row;
}

function idOf(target) {
  return target.closest('li').dataset.id;
}

/** Let the eye see what an agent has just touched. */
function highlight(target) {
  target.classList.remove('touched');
  void target.offsetWidth; // begins the animation anew
  target.classList.add('touched');
}

// --- together ---

const bridge = globalThis.agentbridge; // of the script tag; without a gateway the list works all the same

todos.addEventListener('change', ({ detail: { kind, by, todos: changed } }) => {
  draw();
  for (const todo of changed) {
    const row = by === PERSON ? null : list.querySelector(`[data-id="${todo.id}"]`);
    if (row) highlight(row);
    bridge?.emit(`todo.${kind}`, { ...todo, by }, { source: 'todos' });
  }
});

for (const tool of tools) bridge?.registerTool(tool);
for (const component of components) bridge?.component(component);
new BridgePanel(bridge);
draw();
