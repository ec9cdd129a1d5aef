/**
 * The browser client of asyncplumber: each event of an account, once and in order, across
 * reconnects.
 *
 *     const results = new Asyncplumber("https://push.example", { account: "user-42" });
 *     results.on("event", (event) => console.log(event.type, event.data));
 *
 * One file without dependencies.  <script src="asyncplumber.js"> and import "./asyncplumber.js" set
 * the global `Asyncplumber`; require() returns it.  docs/reference/javascript.rst explains the
 * options and the rules of reconnecting.
 */
(() => {
  "use strict";

  // Seconds that a long-poll asks the server to wait: below the 30 that many proxies allow.
  const POLL_WAIT = 25;
  // Milliseconds beyond that before a long-poll counts as lost.
  const POLL_GRACE = 15000;
  // Milliseconds after an empty answer: a server that does not wait must not cause a hot loop.
  const POLL_PAUSE = 250;
  // Waits after a `plumber.bye` that stay below twice the first ceiling: the server is back soon.
  const SHORT_WAITS = 8;
  // When to renew, as shares of the time that a credential lasts: a random one between these two.
  // The server ends a connection in the last fifth of that time.
  const RENEW_AFTER = [0.7, 0.8];
  const RENEW_AGAIN_AFTER = [0.05, 0.1]; // an attempt to renew that failed
  // Seconds: a credential that lasts less is not renewed.  The connection ends and comes back.
  const SHORTEST_RENEWED = 2;
  const LONGEST_TIMER = 2 ** 31 - 1; // milliseconds; browsers fire a longer one at once
  // Seconds to wait after 4429, whose close frame has no place for a Retry-After.
  const TOO_MANY_WAIT = 5;
  // Ids of events without a cursor that are remembered, to tell those that come twice.
  const REMEMBERED_IDS = 100;
  // Characters of a message over WebSocket: what is longer goes by fetch(), which may be refused
  // without an end of the connection.
  const LONGEST_MESSAGE = 15000;
  const REQUESTS_AT_ONCE = 8; // over one WebSocket; the server takes 16
  const CLOSED = "the connection is closed";
  const FORMER_RUNS = 16; // ids of runs that a task remembers, to know what is left of them

  const PROTOCOL = "plumber.v1";
  const BEARER = "plumber.bearer.";
  const NO_TOKEN = "a token is a string, or null for none";

  const DEFAULTS = {
    account: null, // if set, the URL is that of the server; if null, the URL is that of the events
    after: null, // the cursor to resume after, or "earliest"; null: only new events
    transports: ["websocket", "sse", "longpoll"], // the best first
    tasks: false, // whether the event "tasks" tells all live tasks of the account
    token: null, // a string, or an (async) function that returns one, called before every attempt
    credentials: "same-origin", // as for fetch(): "include" sends cookies to another origin
    // The following are in milliseconds.
    backoff: [500, 30000], // the first ceiling of the waits and the highest; each wait is random
    connectTimeout: 10000, // an attempt that is not open by then has failed
    idleTimeout: 45000, // an event stream without any data for this time (3 heartbeats) is dead
    resetBackoffAfter: 5000, // a connection that lasts this long resets the ceiling of the waits
    upgradeAfter: 300000, // how long to stay on a transport that is not the best one
    refusedBackoff: [30000, 300000], // as `backoff`, while the server refuses every token
    // For tests: what the client uses of the browser.
    WebSocket: globalThis.WebSocket,
    fetch: (...args) => fetch(...args),
    setTimeout: (...args) => setTimeout(...args),
    clearTimeout: (id) => clearTimeout(id),
    random: Math.random,
  };

  /**
   * Whether `cursor` comes after `reference`.
   * Compares strings, because a sequence number may be too large for a Number.
   */
  function isAfter(cursor, reference) {
    if (!reference || reference === "earliest") return true;
    const [[epoch, seq], [ours, seen]] = [cursor.split("."), reference.split(".")];
    if (epoch !== ours) return true; // the numbering began anew
    return seq.length !== seen.length ? seq.length > seen.length : seq > seen;
  }

  /** A promise, and the functions that settle it.  Nobody has to handle its rejection. */
  function promised() {
    const found = {};
    found.promise = new Promise((resolve, reject) => Object.assign(found, { resolve, reject }));
    found.promise.catch(() => {});
    return found;
  }

  /** Something with handlers. */
  class Emitter {
    constructor() {
      this._handlers = new Map();
    }

    /** Call `handler` for each event of this name.  Returns a function that removes the handler. */
    on(name, handler) {
      if (!this._handlers.has(name)) this._handlers.set(name, new Set());
      this._handlers.get(name).add(handler);
      return () => this._handlers.get(name).delete(handler);
    }

    _emit(name, value) {
      for (const handler of [...(this._handlers.get(name) ?? [])]) {
        try {
          handler(value);
        } catch (error) {
          // An error of the page is reported like any other; the other handlers get their event.
          (globalThis.reportError ?? console.error)(error);
        }
      }
    }
  }

  /** Why a task has no result, or a request about it was refused. */
  class TaskError extends Error {
    /** `about` has `type` (or `code`) and `message`. */
    constructor(state, about = {}, status = null) {
      super(about.message || state);
      this.name = "TaskError";
      // failed, canceled, lost; refused: nothing was begun; or closed: the task may go on
      this.state = state;
      this.type = about.type ?? about.code ?? state;
      this.error = about;
      this.status = status; // of the request that was refused
    }
  }

  /** The payload of an event, or of a member of a task object: any JSON value, or bytes. */
  function payloadOf(object, name) {
    const encoded = object[`${name}_base64`];
    if (encoded === undefined) return object[name];
    return Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  }

  /** What an event of a task says about it, in the words of a task object. */
  function reportOf(event) {
    const { task, type, cursor } = event;
    const found = { ...task, cursor };
    const payload = payloadOf(event, "data");
    if (type === "task.completed") found.result = payload;
    if (type === "task.progress" || (type === "task.started" && payload !== null)) {
      found.progress = payload;
    }
    return found;
  }

  /**
   * A task of the account, as far as its newest run is.  `Asyncplumber.task` and `.start` return it.
   *
   * What is known comes from three sides, in any order: events, snapshots and replies.  A run only
   * goes forward (live, done, done late), so whatever says less than what is known is dropped.
   */
  class Task extends Emitter {
    constructor(owner, key) {
      super();
      this.key = key;
      this._owner = owner;
      this._former = []; // runs before this one
      this._reset(null);
      this._call = null; // the start that has no answer yet
    }

    /**
     * A promise of the result.  Rejected with a TaskError if the run fails, is canceled or lost, or
     * if the start was refused.
     */
    get result() {
      return this._call?.promise ?? this._run.promise;
    }

    /** Ask that it stops.  Resolves when the request was taken; the task may still complete. */
    async cancel() {
      const found = await this._owner._ask("cancel", this);
      this._merge(found);
      if (found.run !== this.run || this.done || this.cancelRequested) return;
      this.cancelRequested = true;
      this._emit("change", this);
    }

    _reset(run) {
      if (this.run) this._former = [this.run, ...this._former].slice(0, FORMER_RUNS);
      this.run = run;
      this.state = null; // null: not known yet
      this.done = false;
      this.late = false;
      this.progress = null; // the last one
      this.error = null; // {type, message} if it has no result
      this.cancelRequested = false;
      this._rank = -1; // how far the run is: what says less is dropped
      this._seen = null; // the cursor of the newest event that is included
      this._run = promised();
    }

    /** Take what somebody says about it.  `cursor`: up to where that includes all events. */
    _merge(found, cursor = found.cursor) {
      if (!found?.run || this._former.includes(found.run)) return;
      const isNew = found.run !== this.run;
      if (isNew) {
        if (this.run) {
          // If the end of the former run was missed, nothing tells it any more.
          const about = { type: "superseded", message: "a newer run has begun" };
          this._run.reject(new TaskError("lost", about));
          this._reset(found.run);
        }
        this.run = found.run;
      }
      const rank = found.done ? 2 + Boolean(found.late) : Number(found.state !== "submitted");
      const isBehind = !isNew && cursor && this._seen && !isAfter(cursor, this._seen);
      if (rank < this._rank || (rank === this._rank && (found.done || isBehind))) return;
      if (cursor && !isBehind) this._seen = cursor;
      const before = JSON.stringify([this.run, this.state, this.progress, this.cancelRequested]);
      const wasDone = this.done;
      this._rank = rank;
      this.state = found.state;
      this.done = found.done;
      this.late = Boolean(found.late);
      this.cancelRequested ||= Boolean(found.cancel_requested);
      const progress = payloadOf(found, "progress");
      if (progress !== undefined) this.progress = progress;
      if (this.done) this._end(found, wasDone);
      const after = JSON.stringify([this.run, this.state, this.progress, this.cancelRequested]);
      if (before !== after || wasDone) this._emit("change", this);
      if (this.done && !wasDone) this._emit("end", this);
    }

    _end(found, wasDone) {
      // A run that was lost ends again, late: then there is another promise.
      if (wasDone) this._run = promised();
      this.error = found.error ?? null;
      if (this.state !== "completed") {
        this._run.reject(new TaskError(this.state, found.error ?? {}));
      } else if ("result" in found || "result_base64" in found) {
        this._run.resolve(payloadOf(found, "result"));
      } else {
        // It is too large for a list of tasks.
        this._owner._fetchResult(this).then(this._run.resolve, this._run.reject);
      }
    }

    /** Nothing more is heard of it here: nobody is to wait for ever. */
    _leave(message, status = null) {
      if (!this.done) this._run.reject(new TaskError("closed", { message }, status));
    }

    /** A start was refused: its promise is rejected, and the task goes on as it is. */
    _refuse(call, error) {
      if (this._call === call) this._call = null;
      call.reject(error);
      this._emit("refused", error);
    }
  }

  /** The HTTP status that an end stands for: close codes from 4400 to 4499 mirror it.  Or 0. */
  function statusOf({ code, status }) {
    return status || (code >= 4400 && code < 4500 ? code - 4000 : 0);
  }

  /** Whether a connection that ended like this is not tried again: it would end the same way. */
  function isFinal(failure) {
    if ([1002, 1003, 1007, 1008, 1009].includes(failure.code)) return true;
    const status = statusOf(failure);
    return status >= 400 && status < 500 && ![408, 425, 429].includes(status);
  }

  /** The subprotocols that carry a token: a browser sets no header of a WebSocket. */
  function subprotocols(token) {
    const bytes = String.fromCharCode(...new TextEncoder().encode(token));
    const encoded = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    return [PROTOCOL, BEARER + encoded];
  }

  /** The seconds that a Retry-After header asks for, as a number or a date; 0 without one. */
  function retryAfter(text) {
    if (!text) return 0;
    const isNumber = /^\s*\d+\s*$/.test(text);
    const seconds = isNumber ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
    return seconds > 0 ? seconds : 0;
  }

  /**
   * Parse Server-Sent Events (WHATWG HTML, 9.2).
   * Returns a function that takes the next piece of text, cut anywhere, and calls
   * `dispatch({type, data, id})` for each event.  Ignores `retry`: the client has its own backoff.
   */
  function sseParser(dispatch) {
    let rest = "";
    let afterCR = false;
    let data = [];
    let type = "";
    let id = "";

    function line(text) {
      if (text === "") {
        if (data.length) dispatch({ type: type || "message", data: data.join("\n"), id });
        [data, type] = [[], ""];
        return;
      }
      const colon = text.indexOf(":"); // 0 is a comment: its name is empty and matches nothing
      const name = colon < 0 ? text : text.slice(0, colon);
      const value = colon < 0 ? "" : text.slice(colon + 1).replace(/^ /, "");
      if (name === "data") data.push(value);
      else if (name === "event") type = value;
      else if (name === "id" && !value.includes("\0")) id = value;
    }

    return (text) => {
      if (text === "") return;
      const fresh = afterCR && text[0] === "\n" ? text.slice(1) : text; // a CRLF was cut in two
      afterCR = text.endsWith("\r");
      const lines = fresh.split(/\r\n|\r|\n/);
      lines[0] = rest + lines[0];
      rest = lines.pop();
      lines.forEach(line);
    };
  }

  /**
   * One attempt with one transport, from the first packet to the end.
   * It reports to its owner until it is over, and not after that.
   */
  class Connection {
    constructor(owner, index) {
      this.owner = owner;
      this.index = index; // of the transport
      this.transport = owner.options.transports[index];
      this.isOpen = false;
      this.isOver = false;
      this.isClosing = false; // the server has announced the end
      this.isAsking = false; // the page's function for a token has not answered yet
      this.isExpired = false; // the server has announced that the credential is not valid any more
      this.lasts = null; // seconds that the credential lasted when the connection opened
      this.token = null;
      this.after = null; // the cursor that was sent
      this.mayBeBlocked = false; // a failure before it is open may be the fault of the transport
      this.retryAfter = 0; // seconds that the server asks to wait
      this.asksTasks = owner._wantsTasks;
      this.socket = null;
      this.abort = new AbortController();
      this.expectWithin(owner.options.connectTimeout);
    }

    /** End the attempt if nothing happens for so many milliseconds; null: do not watch. */
    expectWithin(milliseconds) {
      this.owner.options.clearTimeout(this.timer);
      if (milliseconds === null || this.isOver) return;
      this.timer = this.owner.options.setTimeout(() => {
        // A proxy may swallow this transport.
        if (!this.isOpen && !this.isAsking) this.mayBeBlocked = true;
        this.end({ reason: this.isAsking ? "no token in time" : "no sign of life" });
      }, milliseconds);
    }

    /** Ask the page for a token, and connect. */
    async begin(url) {
      const { token, connectTimeout } = this.owner.options;
      this.token = token;
      if (typeof token === "function") {
        this.isAsking = true;
        this.token = await token({ refused: this.owner._wasRefused });
        this.isAsking = false;
        if (this.isOver) return;
        if (this.token && typeof this.token !== "string") throw new TypeError(NO_TOKEN);
        this.expectWithin(connectTimeout);
      }
      await TRANSPORTS[this.transport](this, url);
    }

    opened(cursor) {
      if (this.isOpen || this.isOver) return;
      this.isOpen = true;
      this.expectWithin(this.transport === "sse" ? this.owner.options.idleTimeout : null);
      this.owner._opened(this, cursor);
    }

    receive(envelope) {
      if (envelope.type === "plumber.open") this.lasts = envelope.data?.expires_in ?? null;
      this.opened(envelope.type === "plumber.open" ? envelope.cursor : null);
      if (!this.isOver) this.owner._receive(this, envelope);
    }

    stop() {
      this.isOver = true;
      this.expectWithin(null);
      this.abort.abort();
    }

    end(failure) {
      if (this.isOver) return;
      this.stop();
      this.owner._ended(this, failure);
    }

    /** fetch().  Resolves with the response, or with null if an error status ended the attempt. */
    async fetch(url, headers) {
      const { fetch, credentials } = this.owner.options;
      const signal = this.abort.signal;
      if (this.token) headers.Authorization = `Bearer ${this.token}`;
      const response = await fetch(url, { headers, credentials, cache: "no-store", signal });
      if (!response.ok) {
        // 501: the server does not have this transport, but may have the next one.
        this.mayBeBlocked = response.status === 501;
        this.retryAfter = retryAfter(response.headers.get("Retry-After"));
        this.end({ status: response.status, reason: `HTTP ${response.status}` });
        return null;
      }
      this.mayBeBlocked = true;
      return response;
    }
  }

  /** How each transport connects.  An exception ends the attempt.  `url()` adds the cursor. */
  const TRANSPORTS = {
    async websocket(connection, url) {
      const address = url({});
      address.protocol = address.protocol.replace("http", "ws");
      // A browser does not tell why a handshake failed.  The next transport finds out.
      connection.mayBeBlocked = true;
      const { token } = connection;
      const protocols = token ? subprotocols(token) : [];
      const socket = new connection.owner.options.WebSocket(address.href, protocols);
      connection.socket = socket;
      connection.abort.signal.addEventListener("abort", () => socket.close());
      socket.onmessage = ({ data }) => {
        endOnError(connection, () => connection.receive(JSON.parse(data)));
      };
      socket.onclose = ({ code, reason }) => {
        // With these codes the server itself has spoken, so nothing between blocks WebSockets.
        if (code === 1013 || statusOf({ code })) connection.mayBeBlocked = false;
        if (code === 4429) connection.retryAfter ||= TOO_MANY_WAIT;
        connection.end({ code, reason: reason || `WebSocket closed (${code})` });
      };
    },

    // EventSource cannot be used: it reports only the types that it was told before, and it gives
    // up at the first 503.
    async sse(connection, url) {
      const response = await connection.fetch(url({}), { Accept: "text/event-stream" });
      if (!response) return;
      const kind = response.headers.get("Content-Type") || "nothing";
      if (!/^text\/event-stream\b/i.test(kind)) {
        throw new Error(`expected an event stream, got ${kind}`);
      }
      const reader = response.body.getReader();
      const decoder = new TextDecoder(); // also drops a leading byte order mark
      const parse = sseParser(({ data }) => connection.receive(JSON.parse(data)));
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return connection.end({ reason: "the stream ended" });
        // Comments count: they are the heartbeat.
        if (connection.isOpen) connection.expectWithin(connection.owner.options.idleTimeout);
        parse(decoder.decode(value, { stream: true }));
      }
    },

    async longpoll(connection, url) {
      // The first answer comes at once, with what was missed and with the cursor.
      let asksTasks = connection.asksTasks; // the first time, and after a gap
      for (let wait = 0; !connection.isOver; wait = asksTasks ? 0 : POLL_WAIT) {
        if (wait) connection.expectWithin(wait * 1000 + POLL_GRACE);
        connection.asksTasks = asksTasks;
        const response = await connection.fetch(url({ wait }), { Accept: "application/json" });
        if (!response) return;
        asksTasks = false;
        const { events, cursor } = await response.json();
        if (events.every(({ type }) => type.startsWith("plumber."))) connection.opened(cursor);
        for (const envelope of events) connection.receive(envelope);
        if (!connection.isOver) connection.owner._advanceTo(cursor);
        const gap = events.findLastIndex(({ type }) => type === "plumber.gap");
        const isTold = events.slice(gap).some(({ type }) => type === "plumber.tasks");
        asksTasks = gap >= 0 && !isTold && connection.owner._wantsTasks;
        if (connection.isClosing) {
          return connection.end({ reason: "the server asked to come back later" });
        }
        if (wait && !events.length) {
          await new Promise((resolve) => connection.owner.options.setTimeout(resolve, POLL_PAUSE));
        }
      }
    },
  };

  /** Run `step`.  If it throws, end the connection: the next one asks for the same events again. */
  function endOnError(connection, step) {
    try {
      step();
    } catch (error) {
      connection.end({ reason: String(error) });
    }
  }

  class Asyncplumber extends Emitter {
    /**
     * Connect.  Handlers that are added in the same turn of the event loop miss nothing.
     * Throws a TypeError for a bad URL or transport.
     */
    constructor(url, options = {}) {
      super();
      this.options = { ...DEFAULTS, ...options };
      const { account, transports, after, token } = this.options;
      const server = String(url).replace(/\/+$/, "");
      const path = account === null ? url : `${server}/events/${encodeURIComponent(account)}`;
      this.url = new URL(path, globalThis.location?.href).href;
      if (!transports.length || !transports.every((name) => Object.hasOwn(TRANSPORTS, name))) {
        throw new TypeError(`transports are some of ${Object.keys(TRANSPORTS)}, not ${transports}`);
      }
      if (token !== null && !["string", "function"].includes(typeof token)) {
        throw new TypeError(NO_TOKEN);
      }
      this.cursor = after; // of the last event or notice; store it to resume in another page
      this.state = "connecting"; // then "open", "waiting", "refused", "closed"
      this.transport = transports[0];
      this._timers = {};
      this._tasks = new Map(); // by key
      this._requests = new Map(); // about tasks, by id: those that have no answer yet
      this._lastId = 0;
      this._current = null; // the connection in use
      this._probe = null; // a second connection, which replaces the first one once it is open
      this._first = 0; // the index of the transport that the next attempt begins with
      this._failures = 0; // since a connection lasted
      this._refusals = 0; // attempts in a row whose credential was refused
      this._wasRefused = false; // the credential of the last attempt
      this._ids = new Set(); // of the last events without a cursor
      this._shortWaits = 0; // that are left after a `plumber.bye`
      this._retryAfter = 0; // seconds that the server asked for, of the present wait
      this._isHidden = false;
      // "offline" is not used: a server on this machine or network may be there without internet.
      this._listeners = {
        online: () => {
          const spread = this.options.random() * this.options.backoff[0];
          this._setTimer("online", spread, () => this._recheck());
        },
        pagehide: () => this._pageHidden(),
        pageshow: () => this._pageShown(),
      };
      for (const [name, listener] of Object.entries(this._listeners)) {
        globalThis.addEventListener?.(name, listener);
      }
      queueMicrotask(() => this.state === "closed" || this._connect(0));
    }

    /**
     * Call `handler` for "event", "event:<type>", "open", "gap", "bye", "refused", "tasks", "state"
     * or "close".
     * Returns a function that removes the handler.
     */
    on(name, handler) {
      return super.on(name, handler);
    }

    /** Return the task with this key.  It is the same object each time. */
    task(key) {
      const isNew = !this._tasks.has(key);
      const task = this._taskOf(key);
      if (isNew && this.state === "open") this._refresh(task);
      return task;
    }

    /**
     * Start a task, or join it if it is live, and return it.
     *
     * `input` is any JSON value; without it, whatever is live is joined.  Options: `contentType`, of
     * an input that is a string and no JSON; `maxAge`, the seconds that a result may be old to be
     * the answer.
     */
    start(key, input, { contentType = null, maxAge = null } = {}) {
      const task = this._taskOf(key);
      const call = promised();
      task._call = call;
      const body = contentType === null ? JSON.stringify(input) : String(input);
      this._ask("start", task, { body, contentType, maxAge }).then(
        (found) => {
          if (task._call === call) task._call = null;
          task._merge(found);
          task._run.promise.then(call.resolve, call.reject);
        },
        (error) => task._refuse(call, error),
      );
      return task;
    }

    /** Close the connection for good. */
    close() {
      this._finish({ code: 1000, reason: "closed here" });
    }

    _setState(state, more = {}) {
      this.state = state;
      this._emit("state", { state, transport: this.transport, ...more });
    }

    /** Start the timer of this name, or start it again. */
    _setTimer(name, milliseconds, step) {
      this._clearTimers(name);
      this._timers[name] = this.options.setTimeout(step, milliseconds);
    }

    _connect(index) {
      this._current = this._begin(index);
      this.transport = this._current.transport;
      this._setState("connecting");
    }

    _begin(index) {
      const connection = new Connection(this, index);
      const url = (query) => {
        const address = new URL(this.url);
        for (const [name, value] of Object.entries(query)) address.searchParams.set(name, value);
        if (this.cursor) address.searchParams.set("after", this.cursor);
        if (connection.asksTasks) address.searchParams.set("tasks", "");
        connection.after = this.cursor;
        return address;
      };
      connection.begin(url).catch((error) => connection.end({ reason: String(error) }));
      return connection;
    }

    _opened(connection, cursor) {
      if (connection === this._probe) {
        // The new connection may repeat events of the old one; they are told by their cursors.
        [this._current, this._probe] = [connection, this._current];
        this._unsent(this._probe);
        this._probe.stop();
        this._probe = null;
      }
      this.transport = connection.transport;
      this._first = connection.index;
      // Only the first time: later our own is as good, and "earliest" stays until it is served.
      this.cursor ??= cursor || null;
      this._refusals = 0;
      this._wasRefused = false;
      this._setTimer("reset", this.options.resetBackoffAfter, () => {
        this._failures = this._shortWaits = 0;
      });
      this._scheduleUpgrade();
      this._scheduleRenewal(RENEW_AFTER);
      this._setState("open");
      this._emit("open", {
        cursor: this.cursor,
        transport: this.transport,
        expiresIn: connection.lasts,
      });
      if (!connection.asksTasks) this._refreshAll();
      this._sendAll();
    }

    _receive(connection, envelope) {
      const { type, cursor, data } = envelope;
      if (type === "plumber.gap") {
        // While this connection opened, another one may have passed on what follows the gap.
        if (this.cursor !== connection.after && !isAfter(cursor, this.cursor)) return;
        this.cursor = cursor;
        this._emit("gap", data);
        if (!connection.asksTasks && connection.transport !== "longpoll") this._refreshAll();
      } else if (type === "plumber.bye") {
        connection.isClosing = true;
        connection.retryAfter = Number(data?.reconnect_after) || 0;
        connection.isExpired = ["expired", "revoked"].includes(data?.reason);
        if (!connection.isExpired) this._shortWaits = SHORT_WAITS;
        if (connection === this._current) this._emit("bye", data);
      } else if (type === "plumber.tasks") {
        this._snapshot(data);
      } else if (type === "plumber.reply") {
        this._replied(envelope);
      } else if (!type.startsWith("plumber.") && this._isNew(envelope)) {
        this.cursor = cursor ?? this.cursor; // an event without a cursor is not in the history
        this._emit("event", envelope);
        this._emit(`event:${type}`, envelope);
        if (envelope.task) this._tasks.get(envelope.task.task)?._merge(reportOf(envelope));
      }
    }

    /** Whether an event was not passed on before: two connections may bring the same one. */
    _isNew({ id, cursor }) {
      if (cursor) return isAfter(cursor, this.cursor);
      if (!id) return true;
      if (this._ids.has(id)) return false;
      this._ids.add(id);
      if (this._ids.size > REMEMBERED_IDS) this._ids.delete(this._ids.values().next().value);
      return true;
    }

    /** The cursor of a long-poll's answer: that of its last event, or of the client's position. */
    _advanceTo(cursor) {
      if (cursor && isAfter(cursor, this.cursor)) this.cursor = cursor;
    }

    _ended(connection, failure) {
      const isUnauthorized = connection.isExpired || statusOf(failure) === 401;
      if (connection === this._probe) return this._probeEnded(connection, isUnauthorized);
      this._clearTimers("reset", "renewal");
      this._unsent(connection);
      this._probe?.stop();
      this._probe = null;
      if (isUnauthorized) return this._unauthorized(connection, failure);
      if (isFinal(failure)) return this._finish(failure);
      const isBlocked = !connection.isOpen && connection.mayBeBlocked;
      if (isBlocked && connection.index + 1 < this.options.transports.length) {
        return this._connect(connection.index + 1);
      }
      if (isBlocked) this._first = 0;
      this._wait(connection.retryAfter, failure.reason);
    }

    /** Wait as long as the server asked, and a random time, so that clients come back spread. */
    _wait(seconds, reason) {
      const [first, last] = this.options.backoff;
      const highest = this._shortWaits > 0 ? Math.min(2 * first, last) : last;
      const ceiling = Math.min(highest, first * 2 ** this._failures);
      const retryIn = seconds * 1000 + this.options.random() * ceiling;
      this._failures += 1;
      this._shortWaits -= 1;
      this._retryAfter = seconds;
      this._setTimer("retry", retryIn, () => this._connect(this._first));
      this._setState("waiting", { retryIn, reason });
    }

    /**
     * The server wants another credential.  One attempt with a new one follows at once; if that is
     * refused as well, the client asks rarely.  Without a function nothing would change: it closes.
     */
    _unauthorized(connection, failure) {
      const canChange = typeof this.options.token === "function";
      this._wasRefused = true;
      if (connection.isOpen) {
        // It was good when the connection opened.  Connections that never last are not a loop.
        if (this._failures) return this._wait(connection.retryAfter, failure.reason);
        this._failures += 1;
        return this._connect(connection.index);
      }
      this._refusals += 1;
      if (!canChange) return this._finish(failure);
      if (this._refusals === 1) return this._connect(connection.index);
      const [first, last] = this.options.refusedBackoff;
      const ceiling = Math.min(last, first * 2 ** (this._refusals - 2));
      const spread = ((1 + this.options.random()) * ceiling) / 2; // never soon
      const retryIn = connection.retryAfter * 1000 + spread;
      this._setTimer("retry", retryIn, () => this._connect(this._first));
      this._setState("refused", { retryIn, reason: failure.reason });
      this._emitRefused(failure, retryIn);
    }

    _emitRefused({ code = null, status = null, reason }, retryIn) {
      this._emit("refused", { code, status, reason, retryIn });
    }

    /** Before the credential ends, connect with a new one beside the connection in use. */
    _scheduleRenewal([from, to]) {
      const { lasts } = this._current;
      this._clearTimers("renewal");
      if (!(lasts >= SHORTEST_RENEWED) || typeof this.options.token !== "function") return;
      const milliseconds = (from + this.options.random() * (to - from)) * lasts * 1000;
      this._setTimer("renewal", Math.min(milliseconds, LONGEST_TIMER), () => {
        this._scheduleRenewal(RENEW_AGAIN_AFTER); // unless a new connection opens before
        if (this.state === "open" && !this._probe) this._probe = this._begin(this._current.index);
      });
    }

    /** Later try the better transports.  The connection in use stays until one of them is open. */
    _scheduleUpgrade() {
      this._clearTimers("upgrade");
      if (!this._first) return;
      this._setTimer("upgrade", this.options.upgradeAfter, () => {
        this._first = 0;
        if (this.state === "open" && !this._probe) this._probe = this._begin(0);
      });
    }

    _probeEnded(connection, isUnauthorized) {
      this._wasRefused ||= isUnauthorized;
      const next = connection.index + 1;
      this._probe = next < this._current.index ? this._begin(next) : null;
      this._first = this._current.index;
      if (!this._probe) this._scheduleUpgrade();
    }

    /** The network is back: end the wait, or test a connection that may have died unnoticed. */
    _recheck() {
      if (this.state === "waiting" && !this._retryAfter) {
        this._clearTimers("retry");
        this._connect(this._first);
      } else if (this.state === "open" && !this._probe) {
        this._probe = this._begin(this._current.index);
      }
    }

    /** A browser may freeze a page that was left: its connection would be open and never read. */
    _pageHidden() {
      this._stopAll();
      this._unsent(this._current);
      this._isHidden = true;
      this._setState("waiting", { retryIn: null, reason: "the page is not shown" });
    }

    _pageShown() {
      if (this._isHidden) this._connect(this._first);
      this._isHidden = false;
    }

    _clearTimers(...names) {
      names.forEach((name) => this.options.clearTimeout(this._timers[name]));
    }

    _stopAll() {
      this._clearTimers(...Object.keys(this._timers));
      this._current?.stop();
      this._probe?.stop();
      this._probe = null;
    }

    // Tasks

    _taskOf(key) {
      if (!this._tasks.has(key)) {
        const task = new Task(this, key);
        if (this.state === "closed") task._leave(CLOSED);
        this._tasks.set(key, task);
      }
      return this._tasks.get(key);
    }

    get _wantsTasks() {
      return this.options.tasks || this._tasks.size > 0;
    }

    /** What the server knows about the live tasks.  The rest has ended, or was never there. */
    _snapshot({ cursor, tasks, more }) {
      const listed = new Set();
      for (const found of tasks) {
        listed.add(found.task);
        const isNewer = found.cursor && isAfter(found.cursor, cursor);
        this._tasks.get(found.task)?._merge(found, isNewer ? found.cursor : cursor);
      }
      this._refreshAll((task) => !listed.has(task.key));
      this._emit("tasks", { tasks, more });
    }

    _refreshAll(isWanted = () => true) {
      for (const task of this._tasks.values()) {
        if (!task.done && isWanted(task)) this._refresh(task);
      }
    }

    /** Ask where a task is.  If nobody knows it, it stays as it is. */
    _refresh(task) {
      for (const { method, about } of this._requests.values()) {
        if (about === task && method !== "cancel") return; // the answer is on its way
      }
      this._ask("get", task).then(
        (found) => task._merge(found),
        () => {},
      );
    }

    /**
     * Ask the server about a task: over the WebSocket, or by fetch() where there is none.
     * Resolves with a task object.  What was not answered is asked again.
     */
    _ask(method, about, more = {}) {
      const { promise, resolve, reject } = promised();
      const id = ++this._lastId;
      const request = { id, method, about, resolve, reject, failures: 0, sentBy: null, ...more };
      if (this.state === "closed") {
        reject(new TaskError("refused", { type: "closed", message: CLOSED }));
        return promise;
      }
      this._requests.set(id, request);
      this._sendAll();
      return promise;
    }

    _sendAll() {
      if (this.state !== "open") return;
      let room = REQUESTS_AT_ONCE;
      for (const { sentBy } of this._requests.values()) room -= sentBy !== null;
      for (const request of [...this._requests.values()]) {
        if (request.sentBy !== null || request.isWaiting) continue;
        if (room-- <= 0) return;
        request.firstAt ??= Date.now();
        const { socket } = this._current;
        const message = socket && this._messageOf(request);
        if (message && message.length <= LONGEST_MESSAGE) {
          request.sentBy = this._current;
          socket.send(message);
        } else {
          request.sentBy = "fetch"; // which does not end with the connection
          this._fetchAbout(request);
        }
      }
    }

    /**
     * The seconds that a result may be old.  A start that is repeated may have been taken the first
     * time: then a result that is younger than that is its own.
     */
    _maxAge({ maxAge, failures, firstAt }) {
      if (!failures) return maxAge;
      return Math.max(maxAge ?? 0, Math.ceil((Date.now() - firstAt) / 1000));
    }

    _messageOf(request) {
      const { id, method, about, body, contentType } = request;
      const fields = { id, method, task: about.key };
      if (method === "start") {
        const maxAge = this._maxAge(request);
        if (maxAge !== null) fields.max_age = maxAge;
        if (contentType !== null) Object.assign(fields, { content_type: contentType, input: body });
        // The server passes the text on as it is: the same bytes as by fetch().
        else if (body !== undefined) return `${JSON.stringify(fields).slice(0, -1)},"input":${body}}`;
      }
      return JSON.stringify(fields);
    }

    _replied({ id, status, data }) {
      const request = this._requests.get(id);
      if (!request) return;
      if (status < 400) this._settle(request, null, data);
      else this._failed(request, status, data);
    }

    _urlOf(task, more = "") {
      const events = new URL(this.url);
      const path = events.pathname.replace(/\/events(\/[^/]+)\/?$/, "/tasks$1/");
      if (path === events.pathname) throw new TaskError("refused", { message: "no such URL" });
      events.pathname = path + encodeURIComponent(task.key) + more;
      events.search = "";
      return events;
    }

    async _fetchAt(url, method, headers = {}, body = undefined) {
      const { fetch, credentials, token } = this.options;
      let bearer = this._current.token;
      for (let attempt = 0; ; attempt++) {
        if (bearer) headers.Authorization = `Bearer ${bearer}`;
        const options = { method, headers, body, credentials, cache: "no-store" };
        const response = await fetch(url, options);
        if (response.status !== 401 || attempt || typeof token !== "function") return response;
        bearer = await token({ refused: true });
      }
    }

    async _fetchAbout(request) {
      const { method, about, body, contentType } = request;
      try {
        let response;
        if (method === "start") {
          const headers = { Prefer: "respond-async" };
          if (body !== undefined) headers["Content-Type"] = contentType ?? "application/json";
          const maxAge = this._maxAge(request);
          if (maxAge !== null) headers["Cache-Control"] = `max-age=${maxAge}`;
          response = await this._fetchAt(this._urlOf(about), "PUT", headers, body);
          // 200 is a result that there was already.
          if (response.status === 200) response = await this._fetchAt(this._urlOf(about), "GET");
        } else if (method === "cancel") {
          response = await this._fetchAt(this._urlOf(about, "/cancel"), "POST");
        } else {
          response = await this._fetchAt(this._urlOf(about), "GET");
        }
        if (!this._requests.has(request.id)) return;
        const data = await response.json().catch(() => ({}));
        if (response.ok) return this._settle(request, null, data);
        const after = retryAfter(response.headers.get("Retry-After"));
        this._failed(request, response.status, data, after);
      } catch (error) {
        if (error instanceof TaskError) this._settle(request, error);
        else this._failed(request, 503, { error: { message: String(error) } }); // no network
      }
    }

    async _fetchResult(task) {
      const { run } = task;
      const response = await this._fetchAt(this._urlOf(task, "/result"), "GET");
      if (!response.ok || task.run !== run) {
        throw new TaskError("completed", { type: "gone", message: "the result is not kept" });
      }
      const kind = response.headers.get("Content-Type") ?? "";
      if (/\bjson\b/.test(kind)) return response.json();
      return /^text\//.test(kind) ? response.text() : new Uint8Array(await response.arrayBuffer());
    }

    /** Ask again if that may help, and give up if not. */
    _failed(request, status, data, after = 0) {
      if (!isFinal({ status }) && ![500, 501].includes(status)) {
        const [first, last] = this.options.backoff;
        const ceiling = Math.min(last, first * 2 ** request.failures);
        const seconds = after || Number(data?.error?.retry_after) || 0;
        this._later(request, seconds * 1000 + this.options.random() * ceiling);
        return;
      }
      if (request.method === "start" && data?.task?.run) request.about._merge(data.task);
      this._settle(request, new TaskError("refused", data?.error, status));
    }

    _later(request, milliseconds) {
      request.sentBy = null;
      request.failures += 1;
      request.isWaiting = true;
      this.options.setTimeout(() => {
        request.isWaiting = false;
        this._sendAll();
      }, milliseconds);
    }

    /** A connection is no more: what it did not answer is asked again by the next one. */
    _unsent(connection) {
      for (const request of this._requests.values()) {
        if (request.sentBy !== connection) continue;
        request.sentBy = null;
        request.failures += 1;
      }
    }

    _settle(request, error, found) {
      this._requests.delete(request.id);
      if (error) request.reject(error);
      else request.resolve(found);
      this._sendAll();
    }

    _finish({ code = null, status = null, reason }) {
      if (this.state === "closed") return;
      for (const [name, listener] of Object.entries(this._listeners)) {
        globalThis.removeEventListener?.(name, listener);
      }
      this._stopAll();
      this._setState("closed", { reason });
      for (const request of [...this._requests.values()]) {
        this._settle(request, new TaskError("refused", { type: "closed", message: reason }, status));
      }
      for (const task of this._tasks.values()) task._leave(reason, status);
      if ([401, 403].includes(statusOf({ code, status }))) {
        this._emitRefused({ code, status, reason }, null);
      }
      this._emit("close", { code, status, reason });
    }
  }

  Object.assign(Asyncplumber, { TaskError, isAfter, isFinal, retryAfter, sseParser });
  globalThis.Asyncplumber = Asyncplumber;
  if (typeof module === "object" && module.exports) module.exports = Asyncplumber;
})();
