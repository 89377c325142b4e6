/** The to-do list as a React application: tools and a component by hooks, and a bar that shows who works here. */

import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { useAgentBridge, useBridgeState, useComponent, useTool } from 'agentbridge/react';
import { MAX_TITLE_CHARS, PERSON, Todos } from '../todo/todos.js';

const todos = new Todos();
const TITLE = { type: 'string', minLength: 1, maxLength: MAX_TITLE_CHARS };
const taking = (properties, required = []) => ({ type: 'object', properties, required, additionalProperties: false });

function App() {
  const [list, setList] = useState(todos.list());
  const [draft, setDraft] = useState('');
  const bridge = useAgentBridge();

  useEffect(() => {
    const changed = ({ detail: { kind, by, todos: which } }) => {
      setList(todos.list());
      for (const todo of which) bridge?.emit(`todo.${kind}`, { ...todo, by }, { source: 'todos' });
    };
    todos.addEventListener('change', changed);
    return () => todos.removeEventListener('change', changed);
  }, [bridge]);

  useTool({
    name: 'addTodo',
    description: 'Add a to-do to the end of the list.',
    inputSchema: taking({ title: TITLE }, ['title']),
    execute: ({ title }, { agent }) => todos.add(title, agent.id),
  });
  useTool({
    name: 'listTodos',
    description: `List the ${list.length} to-dos, oldest first.`,
    annotations: { readOnlyHint: true },
    execute: () => list, // always the list that was rendered last
  });
  useTool({
    name: 'clearCompleted',
    title: 'Clear completed to-dos',
    description: 'Remove all to-dos that are done; returns them.',
    annotations: { consequentialHint: true },
    execute: (_, { agent }) => todos.clearCompleted(agent.id),
  });
  useComponent({
    id: 'draft',
    componentType: 'textField',
    description: 'The field for the title of a new to-do.',
    properties: { text: draft },
    actions: {
      setText: {
        description: 'Replace the text.',
        inputSchema: taking({ text: { type: 'string' } }, ['text']),
        execute: ({ text }) => setDraft(text.slice(0, MAX_TITLE_CHARS)),
      },
    },
  });

  const add = (event) => {
    event.preventDefault();
    if (!draft.trim()) return;
    todos.add(draft, PERSON);
    setDraft('');
  };
  return (
    <>
      <header className="top">
        <h1>To-do</h1>
        <p className="subtitle">The same list, as a React application.</p>
      </header>
      <main>
        <section className="card">
          <form id="new-todo" onSubmit={add}>
            <label htmlFor="title" className="visually-hidden">What needs doing?</label>
            <input id="title" value={draft} maxLength={MAX_TITLE_CHARS} placeholder="What needs doing?"
              onChange={({ target }) => setDraft(target.value)} />
            <button type="submit">Add</button>
          </form>
          <ul id="todos">{list.map((todo) => <Todo key={todo.id} todo={todo} />)}</ul>
          {list.length === 0 && <p id="empty" className="quiet">Nothing to do yet.</p>}
        </section>
        <Bridge />
      </main>
    </>
  );
}

function Todo({ todo: { id, title, done, by } }) {
  return (
    <li>
      <label>
        <input type="checkbox" checked={done} onChange={({ target }) => todos.complete(id, target.checked, PERSON)} />
        <span className="title">{title}</span>
      </label>
      <span className="by">{by === PERSON ? '' : by}</span>
    </li>
  );
}

function Bridge() {
  const bridge = useAgentBridge();
  const { state, agents } = useBridgeState();
  const connected = state?.phase === 'ready';
  const stopped = (bridge?.stoppedAgents ?? []).map(({ id }) => id);
  return (
    <section className="card bridge" data-phase={state?.phase}>
      <div className="bridge-head">
        <h2>Agent bridge</h2>
        <p className="pill" role="status"><span className="dot" /> <span id="phase">{connected ? 'Connected' : 'Not connected'}</span></p>
      </div>
      <p className="quiet">{connected ? <code id="client-id">{state.clientId}</code> : state?.reason}</p>
      <ul id="agents" aria-label="Agents at work">
        {agents.filter(({ id }) => !stopped.includes(id) && !stopped.includes(undefined)).map(({ id, name }) => (
          <li key={id}>
            <span className="working">Agent {name ?? id} is working</span>
            <button type="button" className="plain" onClick={() => bridge.stop(id)}>Stop</button>
          </li>
        ))}
        {stopped.filter((id) => id === undefined || !stopped.includes(undefined)).map((id) => (
          <li key={id ?? ''} data-stopped>
            <span className="working">{id === undefined ? 'Each agent' : `Agent ${id}`} is stopped</span>
            <button type="button" className="plain" onClick={() => bridge.allow(id)}>Allow</button>
          </li>
        ))}
      </ul>
    </section>
  );
}

createRoot(document.getElementById('root')).render(<App />);
