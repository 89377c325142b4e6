/** A page that offers its functions by WebMCP, `document.modelContext`, and knows nothing of AgentBridge. */

import { PERSON, Todos } from './todos.js';

const AGENT = 'agent';
const todos = new Todos();
const element = (id) => document.getElementById(id);

function draw() {
  element('todos').replaceChildren(...todos.list().map(row));
  element('empty').hidden = todos.list().length > 0;
}

function row({ id, title, done, by }) {
  const item = document.createElement('li');
  const label = document.createElement('label');
  const box = Object.assign(document.createElement('input'), { type: 'checkbox', checked: done });
  box.addEventListener('change', () => todos.complete(id, box.checked, PERSON));
  label.append(box, Object.assign(document.createElement('span'), { className: 'title', textContent: title }));
  item.append(label, Object.assign(document.createElement('span'), { className: 'by', textContent: by === PERSON ? '' : by }));
  return item;
}

todos.addEventListener('change', draw);
element('new-todo').addEventListener('submit', (event) => {
  event.preventDefault();
  todos.add(element('title').value, PERSON);
  event.target.reset();
});
draw();

document.modelContext?.registerTool({
  name: 'addTodo',
  description: 'Add a to-do to the end of the list.',
  inputSchema: { type: 'object', properties: { title: { type: 'string', minLength: 1 } }, required: ['title'] },
  execute: ({ title }) => todos.add(title, AGENT),
});
document.modelContext?.registerTool({
  name: 'listTodos',
  description: 'List all to-dos, oldest first.',
  annotations: { readOnlyHint: true },
  execute: () => todos.list(),
});
