/**
 * The browser as asyncplumber.js sees it, made of fakes: sockets and requests that a test answers,
 * and a clock that moves when a test says so.
 *
 *     const world = new World();
 *     world.subscribe({ transports: ["websocket"] });
 *     await world.settle();
 *     world.socket.say(World.open("e.1"), World.event("e.2"));
 *     world.taken(); // ["connecting", "open", "e.2"]
 */
globalThis.World = class {
  constructor() {
    const world = this;
    this.now = 0; // milliseconds
    this.luck = 1; // what Math.random() returns
    this.timers = [];
    this.sockets = [];
    this.requests = [];
    this.log = []; // what the client reported
    this.WebSocket = class {
      constructor(url, protocols) {
        this.url = url;
        this.sent = []; // messages that no test has taken yet
        this.protocols = protocols;
        world.sockets.push(this);
      }
      say(...envelopes) {
        for (const each of envelopes) this.onmessage({ data: JSON.stringify(each) });
      }
      send(text) {
        this.sent.push(JSON.parse(text));
      }
      /** Return the messages since the last call. */
      asked() {
        return this.sent.splice(0);
      }
      reply(id, status, data) {
        this.say({ type: "plumber.reply", account: "a/b", cursor: null, id, status, data });
      }
      drop(code, reason = "") {
        this.onclose({ code, reason });
      }
      close() {
        this.isClosed = true;
      }
    };
  }

  /** Make a client in this world, with further options. */
  subscribe(more = {}) {
    const client = new Asyncplumber("http://server.test", {
      account: "a/b",
      WebSocket: this.WebSocket,
      random: () => this.luck,
      setTimeout: (step, ms) => this.setTimeout(step, ms),
      clearTimeout: (id) => {
        this.timers = this.timers.filter((timer) => timer.id !== id);
      },
      fetch: (url, options) => this.fetch(url, options),
      ...more,
    });
    client.on("event", (event) => this.log.push(event.cursor));
    for (const name of ["gap", "bye", "refused", "close"]) {
      client.on(name, (fact) => this.log.push([name, fact]));
    }
    client.on("state", ({ state, retryIn }) => {
      this.log.push(retryIn === undefined ? state : [state, retryIn]);
    });
    return client;
  }

  setTimeout(step, ms) {
    const id = {};
    this.timers.push({ id, step, at: this.now + ms });
    return id;
  }

  /** A request waits in `requests` until a test calls its `answer`, `stream` or `fail`. */
  fetch(url, options) {
    return new Promise((resolve, reject) => {
      const answer = (body, headers = {}, status = 200) => {
        resolve(new Response(body, { status, headers }));
      };
      const stream = () => {
        let pipe;
        const body = new ReadableStream({
          start: (controller) => {
            pipe = controller;
          },
        });
        answer(body, { "Content-Type": "text/event-stream" });
        return (text) => pipe.enqueue(new TextEncoder().encode(text));
      };
      const fail = () => reject(new TypeError("no network"));
      options.signal?.addEventListener("abort", () => reject(new Error("aborted")));
      this.requests.push({ url: String(url), ...options, answer, stream, fail });
    });
  }

  /** Let promises settle: a turn of the real event loop empties the queue of microtasks. */
  async settle() {
    for (let i = 0; i < 3; i++) await new Promise((resolve) => setTimeout(resolve));
  }

  async advance(ms) {
    const end = this.now + ms;
    await this.settle();
    for (;;) {
      const due = this.timers.filter((timer) => timer.at <= end);
      const [next] = due.sort((one, other) => one.at - other.at);
      if (!next) break;
      this.timers.splice(this.timers.indexOf(next), 1);
      this.now = Math.max(this.now, next.at); // it is late if a test has moved the clock
      next.step();
      await this.settle();
    }
    this.now = end;
  }

  get socket() {
    return this.sockets.at(-1);
  }

  get request() {
    return this.requests.at(-1);
  }

  /** Return what the client reported since the last call. */
  taken() {
    return this.log.splice(0);
  }
};

World.open = (cursor, data = {}) => ({ type: "plumber.open", account: "a/b", cursor, data });
World.bye = (data) => ({ type: "plumber.bye", account: "a/b", cursor: null, data });
World.event = (cursor, type = "result") => ({
  id: cursor,
  account: "a/b",
  cursor,
  type,
  data: 1,
});
/** A task object. */
World.row = (task, run, state, more = {}) => ({
  account: "a/b",
  task,
  run,
  state,
  done: !["submitted", "running"].includes(state),
  cursor: null,
  ...more,
});
World.tasks = (cursor, ...tasks) => ({
  type: "plumber.tasks",
  account: "a/b",
  cursor: null,
  data: { cursor, more: false, tasks },
});
/** An event of a task. */
World.news = (cursor, word, run, data = null, more = {}) => ({
  ...World.event(cursor, `task.${word}`),
  data,
  task: {
    task: "sum",
    run,
    state: { started: "running", progress: "running" }[word] ?? word,
    done: !["submitted", "started", "progress"].includes(word),
    ...more,
  },
});
World.record = (envelope) => {
  const data = JSON.stringify(envelope);
  return `id: ${envelope.cursor}\nevent: ${envelope.type}\ndata: ${data}\n\n`;
};
