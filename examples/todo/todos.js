/**
 * The to-do list itself: what it holds, what may be done to it, and who did it. It knows neither the page nor agents;
 * listeners of its DOM event `change` (detail: {kind, by, todos}) draw it and tell others. The kind `elsewhere` is a change
 * that another tab has made, and told.
 *
 * @typedef {{id: string, title: string, done: boolean, by: string}} Todo `by`: the agent's name, or `person`
 */

export const PERSON = 'person';
export const MAX_TITLE_CHARS = 200;
const MAX_TODOS = 200;
/** Kept over a reload, and shared by all tabs: they are clients of their own, and see one list. */
const STORAGE_KEY = 'agentbridge-example-todos';

/** What the list refuses: a code for programs, and a sentence that an agent may read. */
export class TodoError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export class Todos extends EventTarget {
  #todos = restore();

  constructor() {
    super();
    addEventListener('storage', ({ key }) => {
      if (key !== STORAGE_KEY && key !== null) return;
      this.#todos = restore();
      this.dispatchEvent(new CustomEvent('change', { detail: { kind: 'elsewhere', by: PERSON, todos: [] } }));
    });
  }

  /** @returns {Todo[]} copies, oldest first */
  list() {
    return this.#todos.map((todo) => ({ ...todo }));
  }

  add(title, by) {
    this.#todos = restore(); // another tab may have changed it in this very moment
    const text = title.trim();
    if (!text || text.length > MAX_TITLE_CHARS) {
      throw new TodoError('bad_title', `a title has 1 to ${MAX_TITLE_CHARS} characters`);
    }
    if (this.#todos.length >= MAX_TODOS) {
      throw new TodoError('list_full', `the list holds ${MAX_TODOS} to-dos; clear the completed ones first`);
    }
    const todo = { id: this.#freeId(), title: text, done: false, by };
    this.#todos.push(todo);
    return this.#changed('added', by, [todo])[0];
  }

  complete(id, done, by) {
    const todo = this.#find(id);
    if (todo.done !== done) {
      todo.done = done;
      this.#changed(done ? 'completed' : 'reopened', by, [todo]);
    }
    return { ...todo };
  }

  remove(id, by) {
    const todo = this.#find(id);
    this.#todos = this.#todos.filter((other) => other !== todo);
    return this.#changed('removed', by, [todo])[0];
  }

  clearCompleted(by) {
    this.#todos = restore();
    const completed = this.#todos.filter((todo) => todo.done);
    this.#todos = this.#todos.filter((todo) => !todo.done);
    return completed.length ? this.#changed('cleared', by, completed) : [];
  }

  #find(id) {
    this.#todos = restore();
    const todo = this.#todos.find((other) => other.id === id);
    if (!todo) throw new TodoError('no_such_todo', `there is no to-do ${JSON.stringify(id)}; list them to see the ids`);
    return todo;
  }

  #freeId() {
    return String(Math.max(0, ...this.#todos.map((todo) => Number(todo.id))) + 1);
  }

  #changed(kind, by, todos) {
    const copies = todos.map((todo) => ({ ...todo }));
    localStorage.setItem(STORAGE_KEY, JSON.stringify(this.#todos));
    this.dispatchEvent(new CustomEvent('change', { detail: { kind, by, todos: copies } }));
    return copies;
  }
}

function restore() {
  try {
    return JSON.parse(localStorage.getItem(STORAGE_KEY)) ?? [];
  } catch {
    return [];
  }
}
