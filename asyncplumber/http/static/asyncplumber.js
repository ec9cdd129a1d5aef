/**
 * Asyncplumber in the browser: every result of an account, in order and once, whatever becomes of the connection.
 *
 *     const results = new Asyncplumber("https://push.example", { account: "user-42" });
 *     results.on("event", (event) => console.log(event.type, event.data));
 *
 * One file without dependencies: <script src="asyncplumber.js"> and import "./asyncplumber.js" both set the global
 * `Asyncplumber`; require() returns it.  The API and the rules of reconnecting are explained in docs/reference/javascript.rst.
 */
(() => {
  "use strict";

  const POLL_WAIT = 25; // seconds a long-poll asks the server to hold the answer: below the 30 that many proxies allow
  const POLL_GRACE = 15000; // milliseconds beyond that before the answer counts as lost
  const PLANNED_WAITS = 8; // after a `plumber.bye`: so many waits stay below twice the first ceiling, as the server comes back soon
  const POLL_PAUSE = 250; // milliseconds after an empty answer: a server that does not wait must not cause a hot loop

  const DEFAULTS = {
    account: null, // where given, the URL is that of the server; otherwise it is that of the events
    after: null, // the cursor to resume after, or "earliest"; null: live events only
    transports: ["websocket", "sse", "longpoll"], // the best first
    token: null, // a string, or a function (refused) => string or promise, called before every attempt
    credentials: "same-origin", // of fetch(): "include" sends cookies to another origin
    // All that follow are milliseconds.
    backoff: [500, 30000], // the ceiling of the first wait and of the last; each wait is random below its ceiling
    connectTimeout: 10000, // an attempt that is not open by then has failed
    idleTimeout: 45000, // three heartbeats of an SSE stream; after that it is dead
    resetBackoffAfter: 5000, // a connection that has lasted so long takes the ceiling back to the first
    upgradeAfter: 300000, // how long to stay on a transport that is not the best one
    // The world, to be replaced in tests.
    WebSocket: globalThis.WebSocket,
    fetch: (...args) => fetch(...args),
    setTimeout: (...args) => setTimeout(...args),
    clearTimeout: (id) => clearTimeout(id),
    random: Math.random,
  };

  /** Whether `cursor` comes after `stand`.  Strings are compared, because a seq may exceed what a Number can hold. */
  function isAfter(cursor, stand) {
    if (!stand || stand === "earliest") return true;
    const [[epoch, seq], [ours, seen]] = [cursor.split("."), stand.split(".")];
    if (epoch !== ours) return true; // the numbering began anew
    return seq.length !== seen.length ? seq.length > seen.length : seq > seen;
  }

  /** Whether a connection that ended so should not be tried again, because the answer would be the same. */
  function isFinal({ code = 0, status = 0 }) {
    if ([1002, 1003, 1007, 1008, 1009].includes(code)) return true;
    const like = status || code - 4000; // private codes mirror HTTP: 4401 is 401
    return like >= 400 && like < 500 && ![408, 425, 429].includes(like);
  }

  /** Seconds that a Retry-After header asks for, be it a number or a date; 0 where there is none. */
  function retryAfter(text) {
    if (!text) return 0;
    const seconds = /^\s*\d+\s*$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
    return seconds > 0 ? seconds : 0;
  }

  /**
   * Read Server-Sent Events (WHATWG HTML, 9.2) as they trickle in.  Returns a function that takes the next piece of
   * text, cut anywhere, and calls `dispatch({type, data, id})` for each event.  `retry` is left out: we have our own.
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
      const colon = text.indexOf(":"); // 0 is a comment: it has no name, so it matches nothing below
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

  /** One attempt by one transport, from the first packet to the end.  Once it is over it says nothing any more. */
  class Link {
    constructor(owner, index) {
      Object.assign(this, { owner, index, isOpen: false, isOver: false, reached: false, isLeaving: false, asked: 0 });
      this.transport = owner.options.transports[index];
      this.abort = new AbortController();
      this.watch(owner.options.connectTimeout);
    }

    /** End the attempt unless there is a sign of life within so many milliseconds; null: stop watching. */
    watch(milliseconds) {
      this.owner.options.clearTimeout(this.timer);
      if (milliseconds === null || this.isOver) return;
      this.timer = this.owner.options.setTimeout(() => {
        if (!this.isOpen) this.reached = true; // something swallows this transport; another may get through
        this.end({ reason: "no sign of life" });
      }, milliseconds);
    }

    opened(cursor) {
      if (this.isOpen || this.isOver) return;
      this.isOpen = true;
      this.watch(this.transport === "sse" ? this.owner.options.idleTimeout : null);
      this.owner._opened(this, cursor);
    }

    take(envelope) {
      this.opened(envelope.type === "plumber.open" ? envelope.cursor : null);
      if (!this.isOver) this.owner._take(this, envelope);
    }

    stop() {
      this.isOver = true;
      this.watch(null);
      this.abort.abort();
    }

    end(failure) {
      if (this.isOver) return;
      this.stop();
      this.owner._ended(this, failure);
    }

    /** fetch(), ending the attempt where the answer is no.  Resolves with the response, or with null after an end. */
    async fetch(url, token, headers) {
      const { fetch, credentials } = this.owner.options;
      if (token) headers.Authorization = `Bearer ${token}`;
      const response = await fetch(url, { headers, credentials, cache: "no-store", signal: this.abort.signal });
      if (!response.ok) {
        this.reached = response.status === 501; // the server has no such transport, and may have the next
        this.asked = retryAfter(response.headers.get("Retry-After"));
        this.end({ status: response.status, reason: `HTTP ${response.status}` });
        return null;
      }
      this.reached = true;
      return response;
    }
  }

  /** How to run a `Link`.  Whatever these throw ends it; `url(query)` carries the cursor of the moment. */
  const TRANSPORTS = {
    async websocket(link, url, token) {
      const address = url(token ? { access_token: token } : {}); // a browser's WebSocket cannot send headers
      address.protocol = address.protocol.replace("http", "ws");
      link.reached = true; // a browser never tells why a handshake failed, so let the next transport find out
      const socket = new link.owner.options.WebSocket(address.href);
      link.abort.signal.addEventListener("abort", () => socket.close());
      socket.onmessage = ({ data }) => guard(link, () => link.take(JSON.parse(data)));
      socket.onclose = ({ code, reason }) => link.end({ code, reason: reason || `WebSocket closed (${code})` });
    },

    async sse(link, url, token) {
      const response = await link.fetch(url({}), token, { Accept: "text/event-stream" });
      if (!response) return;
      const kind = response.headers.get("Content-Type") || "nothing";
      if (!/^text\/event-stream\b/i.test(kind)) throw new Error(`expected an event stream, got ${kind}`);
      // EventSource is of no use here: it hears only the types it knows beforehand, and gives up at the first 503.
      const reader = response.body.getReader();
      const decoder = new TextDecoder(); // also drops a leading BOM
      const parse = sseParser(({ data }) => link.take(JSON.parse(data)));
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return link.end({ reason: "the stream ended" });
        if (link.isOpen) link.watch(link.owner.options.idleTimeout); // comments count: they are the heartbeat
        parse(decoder.decode(value, { stream: true }));
      }
    },

    async longpoll(link, url, token) {
      // The first answer comes at once: it brings what was missed and tells where we stand.
      for (let wait = 0; !link.isOver; wait = POLL_WAIT) {
        if (wait) link.watch(wait * 1000 + POLL_GRACE);
        const response = await link.fetch(url({ wait }), token, { Accept: "application/json" });
        if (!response) return;
        const { events, cursor } = await response.json();
        if (!events.length) link.opened(cursor);
        for (const envelope of events) link.take(envelope);
        if (!link.isOver) link.owner._stand(cursor);
        if (link.isLeaving) return link.end({ reason: "the server asked to come back later" });
        if (wait && !events.length) await new Promise((resolve) => link.owner.options.setTimeout(resolve, POLL_PAUSE));
      }
    },
  };

  /** Run `step`; a failure ends the link, and what it would have skipped is asked for again. */
  function guard(link, step) {
    try {
      step();
    } catch (error) {
      link.end({ reason: String(error) });
    }
  }

  class Asyncplumber {
    /** Begin to listen.  Handlers that are added in the same turn miss nothing.  Throws on a bad URL or transport. */
    constructor(url, options = {}) {
      this.options = { ...DEFAULTS, ...options };
      const { account, transports, after } = this.options;
      const path = account === null ? url : `${String(url).replace(/\/+$/, "")}/events/${encodeURIComponent(account)}`;
      this.url = new URL(path, globalThis.location?.href).href;
      if (!transports.length || !transports.every((name) => Object.hasOwn(TRANSPORTS, name))) {
        throw new TypeError(`transports are some of ${Object.keys(TRANSPORTS)}, not ${transports}`);
      }
      this.cursor = after; // of the last event or notice taken; store it to resume in another page
      this.state = "connecting"; // then "open", "waiting", "closed"
      this.transport = transports[0];
      this._handlers = new Map();
      this._timers = {};
      this._link = this._probe = null;
      this._start = 0; // the transport to begin with
      this._failures = this._refusals = this._planned = 0;
      // "offline" is not heard: a server on this machine, or in this house, may be there without the internet.
      this._listeners = {
        online: () => this._later("online", this.options.random() * this.options.backoff[0], () => this._recheck()),
        pagehide: () => this._freeze(),
        pageshow: () => this._thaw(),
      };
      for (const [name, listener] of Object.entries(this._listeners)) globalThis.addEventListener?.(name, listener);
      queueMicrotask(() => this.state === "closed" || this._dial(0));
    }

    /** Call `handler` for "event", "event:<type>", "open", "gap", "state" or "close".  Returns a function that stops it. */
    on(name, handler) {
      if (!this._handlers.has(name)) this._handlers.set(name, new Set());
      this._handlers.get(name).add(handler);
      return () => this._handlers.get(name).delete(handler);
    }

    /** End it for good. */
    close() {
      this._finish({ code: 1000, reason: "closed here" });
    }

    _emit(name, value) {
      for (const handler of [...(this._handlers.get(name) ?? [])]) {
        try {
          handler(value);
        } catch (error) {
          // A bug of the page is shown like any uncaught error, and does not cost the other handlers their event.
          (globalThis.reportError ?? console.error)(error);
        }
      }
    }

    _become(state, more = {}) {
      this.state = state;
      this._emit("state", { state, transport: this.transport, ...more });
    }

    /** (Re)start the timer of this name. */
    _later(name, milliseconds, step) {
      this.options.clearTimeout(this._timers[name]);
      this._timers[name] = this.options.setTimeout(step, milliseconds);
    }

    _dial(index) {
      this._link = this._begin(index);
      this.transport = this._link.transport;
      this._become("connecting");
    }

    _begin(index) {
      const link = new Link(this, index);
      this._run(link).catch((error) => link.end({ reason: String(error) }));
      return link;
    }

    async _run(link) {
      const { token } = this.options;
      const words = typeof token === "function" ? await token(this._refusals > 0) : token;
      const url = (query) => {
        const address = new URL(this.url);
        for (const [name, value] of Object.entries(query)) address.searchParams.set(name, value);
        if (this.cursor) address.searchParams.set("after", this.cursor);
        return address;
      };
      if (!link.isOver) await TRANSPORTS[link.transport](link, url, words);
    }

    _opened(link, cursor) {
      if (link === this._probe) {
        // The new connection may repeat what came over the old one meanwhile; its cursors tell.
        [this._link, this._probe] = [link, this._link];
        this._probe.stop();
        this._probe = null;
      }
      this.transport = link.transport;
      this._start = link.index;
      this._refusals = 0;
      this.cursor ??= cursor || null; // the first time; later on our own is as good, and "earliest" must stay until it is served
      this._later("resetBackoff", this.options.resetBackoffAfter, () => (this._failures = this._planned = 0));
      this._seekBetter();
      this._become("open");
      this._emit("open", { cursor: this.cursor, transport: this.transport });
    }

    _take(link, envelope) {
      const { type, cursor, data } = envelope;
      if (type === "plumber.gap") {
        this.cursor = cursor;
        this._emit("gap", data);
      } else if (type === "plumber.bye") {
        link.isLeaving = true;
        this._planned = PLANNED_WAITS;
        link.asked = Number(data?.reconnect_after) || 0;
      } else if (!type.startsWith("plumber.") && (!cursor || isAfter(cursor, this.cursor))) {
        this.cursor = cursor ?? this.cursor; // an event without a cursor is in no history: it comes now or never
        this._emit("event", envelope);
        this._emit(`event:${type}`, envelope);
      }
    }

    /** A long-poll's answer says where it leaves us: after its last event; or nothing, if it did not come that far. */
    _stand(cursor) {
      if (cursor && isAfter(cursor, this.cursor)) this.cursor = cursor;
    }

    _ended(link, failure) {
      if (link === this._probe) return this._probeEnded(link);
      this.options.clearTimeout(this._timers.resetBackoff);
      this._probe?.stop();
      this._probe = null;
      if (isFinal(failure) && !this._mayRenew(failure)) return this._finish(failure);
      const blocked = !link.isOpen && link.reached; // the server may be there, but this transport does not get through
      if (blocked && link.index + 1 < this.options.transports.length) return this._dial(link.index + 1);
      if (blocked) this._start = 0;
      this._wait(link.asked, failure.reason);
    }

    /** A token that was refused is worth a second try where a function can make a new one. */
    _mayRenew({ code, status }) {
      if (code !== 4401 && status !== 401) return false;
      this._refusals += 1;
      return typeof this.options.token === "function" && this._refusals < 2;
    }

    /** Wait as long as the server asked, and a random time on top, so that clients do not come back all at once. */
    _wait(asked, reason) {
      const [first, last] = this.options.backoff;
      const most = this._planned > 0 ? Math.min(2 * first, last) : last;
      const retryIn = asked * 1000 + this.options.random() * Math.min(most, first * 2 ** this._failures);
      this._failures += 1;
      this._planned -= 1;
      this._asked = asked;
      this._later("retry", retryIn, () => this._dial(this._start));
      this._become("waiting", { retryIn, reason });
    }

    /** After a while try the better transports beside the one that works, which stays until one of them is open. */
    _seekBetter() {
      this.options.clearTimeout(this._timers.upgrade);
      if (!this._start) return;
      this._later("upgrade", this.options.upgradeAfter, () => {
        this._start = 0;
        if (this.state === "open" && !this._probe) this._probe = this._begin(0);
      });
    }

    _probeEnded(link) {
      const next = link.index + 1;
      this._probe = next < this._link.index ? this._begin(next) : null;
      this._start = this._link.index;
      if (!this._probe) this._seekBetter();
    }

    /** The network came back: do not sit out the wait, and do not trust a connection that may have died unnoticed. */
    _recheck() {
      if (this.state === "waiting" && !this._asked) {
        this.options.clearTimeout(this._timers.retry);
        this._dial(this._start);
      } else if (this.state === "open" && !this._probe) {
        this._probe = this._begin(this._link.index);
      }
    }

    /** A page that is left may be kept for the way back: frozen, it would hold a connection that it does not read. */
    _freeze() {
      this._letGo();
      this._isFrozen = true;
      this._become("waiting", { retryIn: null, reason: "the page is not shown" });
    }

    _thaw() {
      if (this._isFrozen) this._dial(this._start);
      this._isFrozen = false;
    }

    _letGo() {
      Object.values(this._timers).forEach((id) => this.options.clearTimeout(id));
      this._link?.stop();
      this._probe?.stop();
      this._probe = null;
    }

    _finish({ code = null, status = null, reason }) {
      if (this.state === "closed") return;
      for (const [name, listener] of Object.entries(this._listeners)) globalThis.removeEventListener?.(name, listener);
      this._letGo();
      this._become("closed", { reason });
      this._emit("close", { code, status, reason });
    }
  }

  Object.assign(Asyncplumber, { isAfter, isFinal, retryAfter, sseParser });
  globalThis.Asyncplumber = Asyncplumber;
  if (typeof module === "object" && module.exports) module.exports = Asyncplumber;
})();
