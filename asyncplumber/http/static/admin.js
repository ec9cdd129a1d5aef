/** The admin page: what all instances tell, a live view of one account, and test events. */
(() => {
  "use strict";

  const POLL = 2000; // milliseconds between two looks at the instances
  const ROWS = 200; // events kept in the live view: it may be left open for days
  const PAGE = 50; // rows in a page of accounts or hooks
  const TRANSPORTS = { websocket: "WebSocket", sse: "SSE", longpoll: "long-poll" };
  const BASE = new URL(".", location.href).href.slice(0, -1); // the server may be under a prefix
  const byId = (id) => document.getElementById(id);

  let key = null; // the admin key; nowhere but here
  let isPaused = false;
  let hasAuthentication = false; // else there is nothing to revoke
  let poll = 0; // the timer of the next look
  let before = new Map(); // the figures of each instance at the last look, by its id
  let accountPage = ""; // the account after which the shown page begins
  let accountNext = null;
  let hookNext = null;
  let subscription = null;
  let seen = 0;

  // Requests

  class Refused extends Error {
    constructor(status, message) {
      super(message);
      this.status = status;
    }
  }

  /** Send a request with the admin key, and return the JSON of its response. */
  async function ask(path, options = {}) {
    const headers = { ...options.headers };
    if (key !== null) headers.Authorization = `Bearer ${key}`;
    const url = `${BASE}/${path}`;
    const response = await fetch(url, { ...options, headers, cache: "no-store" });
    const value = await response.json().catch(() => ({}));
    if (!response.ok) {
      const error = new Refused(response.status, value.error?.message ?? `HTTP ${response.status}`);
      if (response.status === 401 || response.status === 403) askForKey(error);
      throw error;
    }
    return value;
  }

  /** Show the form for the key.  A request that was refused for another reason does not need it. */
  function askForKey({ status, message }) {
    if (status === 403 && key === null) return;
    byId("login").hidden = false;
    byId("key").focus();
    const words = key === null ? "" : `This key was refused: ${message}.`;
    byId("login-message").textContent = words;
    byId("login-message").classList.toggle("bad", key !== null);
    key = null;
    clearTimeout(poll);
  }

  // Rows of tables

  /**
   * Make a cell's content of what describes it: a text, or an object with `text` and perhaps
   * `small`, `class`, `title` and `click`.  What is shown comes from outside: never use HTML.
   */
  function fillCell(cell, content) {
    const described = typeof content === "object" ? content : { text: content };
    const { text, small, click, ...rest } = described;
    const shown = JSON.stringify([text, small, rest]);
    if (cell.shown === shown) return; // an element that has the focus keeps it
    cell.shown = shown;
    cell.className = rest.class ?? "";
    cell.title = rest.title ?? "";
    cell.replaceChildren();
    if (click) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", click);
      cell.append(button);
    } else {
      cell.append(text);
    }
    if (small) {
      const more = document.createElement("small");
      more.textContent = small;
      cell.append(more);
    }
  }

  /** Make the rows of a table: `keyOf` tells an item from others, `cellsOf` has the contents. */
  function fillRows(body, items, keyOf, cellsOf, none) {
    const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
    const rows = items.map((item) => {
      const name = keyOf(item);
      const row = old.get(name) ?? document.createElement("tr");
      old.delete(name);
      row.dataset.key = name;
      cellsOf(item).forEach((content, index) => {
        if (!row.cells[index]) {
          const cell = document.createElement(index ? "td" : "th");
          if (!index) cell.scope = "row";
          row.append(cell);
        }
        fillCell(row.cells[index], content);
      });
      return row;
    });
    if (!rows.length) rows.push(emptyRow(body, none));
    // Only what is in another place is moved: a moved element loses the focus.
    rows.forEach((row, index) => {
      if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
    });
    while (body.rows.length > rows.length) body.lastElementChild.remove();
  }

  function emptyRow(body, none) {
    const row = document.createElement("tr");
    row.className = "none";
    const cell = document.createElement("td");
    cell.colSpan = body.parentElement.tHead.rows[0].cells.length;
    cell.textContent = none;
    row.append(cell);
    return row;
  }

  const number = (value) => (value == null ? "–" : value.toLocaleString("en"));
  const rate = (value) => (value == null ? "–" : value.toFixed(value < 10 ? 1 : 0));
  const localTime = (value) => new Date(value).toLocaleString();
  const count = (text) => ({ text, class: "number" });

  function duration(seconds) {
    if (seconds < 120) return `${Math.round(seconds)} s`;
    if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
    if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
    return `${Math.round(seconds / 86400)} d`;
  }

  // Instances

  /** The growth of a counter per second since the last look, or null if that is not known. */
  function growth(status, name) {
    const last = before.get(status.id);
    const seconds = last ? status.time - last.time : 0;
    const grown = last ? status.figures[name] - last.figures[name] : NaN;
    return seconds > 0 && grown >= 0 ? grown / seconds : null;
  }

  function figuresOf(instance) {
    const status = instance.status;
    if (!status) return null;
    return {
      subscribers: status.figures.subscribers,
      accounts: status.account_count,
      accepted: growth(status, "events_accepted_total"),
      delivered: growth(status, "events_delivered_total"),
      refused: status.figures.refused_total,
      waiting: status.peers.reduce((sum, peer) => sum + peer.queued, 0),
    };
  }

  function instanceCells(instance) {
    const { id, url, status, expires_in: left } = instance;
    const figures = figuresOf(instance);
    const ended = left !== null && left <= 0;
    let state = { text: "does not answer", class: "bad" };
    if (status) state = { text: status.state, class: status.state === "running" ? "good" : "warn" };
    if (!status && ended) state = { text: "gone", class: "bad" };
    return [
      { text: id, class: "code", title: url },
      status
        ? {
            text: status.worker ? `worker ${status.worker}` : status.host,
            small: `${status.worker ? `${status.host}, ` : ""}pid ${status.pid}, ${status.version}`,
          }
        : { text: "–", small: url },
      state,
      {
        text: left === null ? "–" : `${left.toFixed(1)} s`,
        class: ended ? "number bad" : "number",
      },
      count(number(figures?.subscribers)),
      count(number(figures?.accounts)),
      count(number(instance.hooks)),
      count(rate(figures?.accepted)),
      count(rate(figures?.delivered)),
      count(number(figures?.refused)),
      count(number(figures?.waiting)),
      count(status ? duration(status.uptime) : "–"),
    ];
  }

  function showTotals(instances) {
    const all = instances.map(figuresOf).filter(Boolean);
    const sum = (name) => {
      const known = all.map((each) => each[name]).filter((each) => each != null);
      return known.length ? known.reduce((total, each) => total + each, 0) : null;
    };
    const totals = {
      Subscribers: number(sum("subscribers")),
      "Accepted per second": rate(sum("accepted")),
      "Delivered per second": rate(sum("delivered")),
      Refused: number(sum("refused")),
    };
    const list = byId("totals");
    if (!list.childElementCount) {
      for (const name of Object.keys(totals)) {
        const pair = document.createElement("div");
        const term = document.createElement("dt");
        term.textContent = name;
        pair.append(term, document.createElement("dd"));
        list.append(pair);
      }
    }
    Object.values(totals).forEach((text, index) => {
      list.children[index].lastElementChild.textContent = text;
    });
  }

  function showInstances({ instances, store, refusals, authentication }) {
    hasAuthentication = authentication;
    byId("instance-count").textContent = instances.length;
    byId("problem").textContent = store ? `The store cannot be used: ${store}.` : "";
    fillRows(byId("instance-rows"), instances, ({ id }) => id, instanceCells, "No instance.");
    showTotals(instances);
    const known = instances.map((each) => each.status).filter(Boolean);
    before = new Map(known.map((status) => [status.id, status]));
    offerInstances(instances.map(({ id }) => id));
    byId("refusal-count").textContent = refusals.length;
    fillRows(
      byId("refusal-rows"),
      refusals,
      ({ instance, time, method, path, address }) =>
        JSON.stringify([instance, time, method, path, address]),
      (each) => [
        { text: localTime(each.time), class: "nowrap" },
        count(String(each.status)),
        each.reason,
        { text: `${each.method} ${each.path}`, class: "code" },
        { text: each.address || "UNIX socket", class: "code" },
        { text: each.instance, class: "code" },
      ],
      "No request was refused.",
    );
  }

  /** Keep the list of instances to choose from as it is in the table. */
  function offerInstances(ids) {
    const choice = byId("hook-instance");
    const offered = [...choice.options].slice(1).map((option) => option.value);
    if (JSON.stringify(offered) === JSON.stringify(ids)) return;
    const chosen = choice.value;
    choice.replaceChildren(choice.options[0], ...ids.map((id) => new Option(id, id)));
    choice.value = ids.includes(chosen) ? chosen : "";
  }

  // Accounts and hooks

  function accountCells({ account, subscribers, head, instances }) {
    const places = instances.map(
      (each) => `${each.instance}: ${each.subscribers}, ${each.cursor ?? "opening"}`,
    );
    const isBehind = instances.some((each) => head && each.cursor && each.cursor !== head);
    return [
      { text: account, click: () => watchAccount(account), title: "Watch this account" },
      count(number(subscribers)),
      { text: head && !head.endsWith(".0") ? head : "none", class: "code" },
      { text: places.join("\n") || "none", class: isBehind ? "code warn lines" : "code lines" },
    ];
  }

  async function showAccounts() {
    const query = new URLSearchParams({
      search: byId("account-search").value,
      after: accountPage,
      limit: PAGE,
    });
    const { accounts, next, silent } = await ask(`accounts?${query}`);
    accountNext = next;
    byId("account-next").disabled = next === null;
    const missing = silent.length ? `Without those of ${silent.join(", ")}: no answer.` : "";
    byId("account-message").textContent = missing;
    const none = "No account has a subscriber.";
    fillRows(byId("account-rows"), accounts, ({ account }) => account, accountCells, none);
  }

  async function showHooks(after = "") {
    const query = new URLSearchParams({
      prefix: byId("hook-prefix").value,
      instance: byId("hook-instance").value,
      after,
      limit: PAGE,
    });
    const { hooks, next } = await ask(`hooks?${query}`);
    hookNext = next;
    byId("hook-next").disabled = next === null;
    fillRows(
      byId("hook-rows"),
      hooks,
      ({ account, instance, url }) => JSON.stringify([account, instance, url]),
      ({ account, instance, url }) => [
        { text: account, click: () => watchAccount(account), title: "Watch this account" },
        { text: instance || "another program", class: "code" },
        { text: url, class: "code" },
      ],
      "No hook.",
    );
  }

  // Revocations

  async function showRevocations() {
    const { revocations } = hasAuthentication ? await ask("../revocations") : { revocations: [] };
    byId("revoke").disabled = !hasAuthentication;
    fillRows(
      byId("revocation-rows"),
      revocations,
      ({ sub, jti, account }) => JSON.stringify([sub, jti, account]),
      ({ sub, jti, account, before: issued, expires_at: ends }) => [
        sub !== undefined ? "subject" : jti !== undefined ? "token" : "account",
        { text: sub ?? jti ?? account, class: "code" },
        issued === undefined ? "–" : localTime(issued * 1000),
        localTime(ends * 1000),
      ],
      hasAuthentication ? "Nothing is revoked." : "There is no authentication here.",
    );
  }

  async function revoke() {
    const hours = Number(byId("revoke-hours").value);
    const kind = byId("revoke-kind").value;
    const body = JSON.stringify({
      [kind]: byId("revoke-value").value,
      expires_at: Date.now() / 1000 + hours * 3600,
    });
    const headers = { "Content-Type": "application/json" };
    await ask("../revocations", { method: "POST", headers, body });
    byId("revoke-value").value = "";
    byId("revoke-message").textContent = "Revoked. All instances know it within 5 seconds.";
    await showRevocations();
  }

  // Live view

  function element(tag, name, text) {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    return made;
  }

  function showLiveState({ state, transport, retryIn, reason }) {
    let words = state;
    if (state === "open") words = `watching · ${TRANSPORTS[transport]}`;
    if (state === "waiting") words = `again in ${Math.max(1, Math.round(retryIn / 1000))} s`;
    if (state === "closed") words = `closed: ${reason}`;
    byId("live-state").textContent = words;
    byId("live-state").title = reason ?? "";
    Object.assign(byId("live-state").dataset, { state, transport });
    byId("stop").disabled = state === "closed";
  }

  function addRow(row) {
    byId("results").prepend(row);
    while (byId("results").childElementCount > ROWS) byId("results").lastElementChild.remove();
    byId("empty").hidden = true;
  }

  function bodyOf(event) {
    if ("data_base64" in event) {
      return `${event.content_type || "bytes"} in base64\n${event.data_base64}`;
    }
    return typeof event.data === "string" ? event.data : JSON.stringify(event.data, null, 2);
  }

  function showEvent(event) {
    const row = element("li", "result", "");
    const facts = element("div", "facts", "");
    const time = element("time", "time", localTime(event.time));
    time.dateTime = event.time;
    facts.append(element("span", "type", event.type));
    facts.append(element("span", "cursor", event.cursor ?? "not kept"));
    facts.append(element("span", "cursor", event.id), time);
    row.append(facts, element("pre", "data", bodyOf(event)));
    addRow(row);
    seen += 1;
    byId("count").textContent = seen;
  }

  function showGap({ from, to, oldest }) {
    const row = element("li", "gap", "");
    const facts = element("div", "facts", "");
    facts.append(element("span", "type", "gap"), element("span", "cursor", `${from} → ${to}`));
    const kept = oldest ? `The oldest event that is still kept is ${oldest}.` : "No event is kept.";
    row.append(facts, element("p", "", `Some events cannot be replayed any more. ${kept}`));
    addRow(row);
  }

  function clear() {
    byId("results").replaceChildren();
    byId("empty").hidden = false;
    seen = 0;
    byId("count").textContent = "0";
  }

  function watch() {
    subscription?.close();
    clear();
    const choice = byId("transport").value;
    subscription = new Asyncplumber(BASE, {
      account: byId("account").value,
      after: byId("after").value || null,
      token: key === null ? null : () => key,
      ...(choice ? { transports: [choice] } : {}),
    });
    const mine = subscription;
    for (const [name, show] of [["state", showLiveState], ["event", showEvent], ["gap", showGap]]) {
      mine.on(name, (value) => mine === subscription && show(value)); // ignore the old ones
    }
  }

  function watchAccount(account) {
    byId("account").value = account;
    watch();
    byId("live").scrollIntoView();
    byId("account").focus({ preventScroll: true });
  }

  function stopWatching() {
    subscription?.close();
  }

  function showReceipt(words, bad) {
    byId("receipt").textContent = words;
    byId("receipt").classList.toggle("bad", bad);
  }

  async function publish() {
    if (!byId("live-form").reportValidity()) return;
    const contentType = byId("content-type").value;
    const body = byId("body").value;
    const account = encodeURIComponent(byId("account").value);
    const headers = { "Content-Type": contentType, "Event-Type": byId("type").value };
    const post = { method: "POST", headers, body };
    const { cursor, subscribers } = await ask(`hooks/${account}`, post);
    showReceipt(`Accepted as ${cursor}; subscribers: ${subscribers}.`, false);
  }

  // Looking again and again

  function showState(words, state) {
    byId("state").textContent = words;
    byId("state").dataset.state = state;
  }

  async function look() {
    clearTimeout(poll);
    try {
      showInstances(await ask("cluster"));
      await showAccounts();
      byId("login").hidden = true;
      showState(isPaused ? "paused" : "up to date", isPaused ? "closed" : "open");
    } catch (error) {
      const asks = !byId("login").hidden;
      showState(asks ? "not signed in" : `no answer: ${error.message}`, "closed");
      if (asks) return;
    }
    clearTimeout(poll);
    if (!isPaused && !document.hidden) poll = setTimeout(look, POLL);
  }

  async function lookAtAll() {
    await look();
    if (!byId("login").hidden) return;
    await Promise.allSettled([showHooks(), showRevocations()]);
  }

  /** Call `act` when a form is sent or a button is clicked, and show what goes wrong. */
  function on(id, name, act, message) {
    byId(id).addEventListener(name, async (event) => {
      event.preventDefault();
      const shown = byId(message);
      if (shown) shown.textContent = "";
      shown?.classList.remove("bad");
      try {
        await act();
      } catch (error) {
        const status = error instanceof Refused ? `${error.status}: ` : "";
        if (shown) shown.textContent = status + error.message;
        shown?.classList.add("bad");
      }
    });
  }

  on("login-form", "submit", () => {
    key = byId("key").value.trim();
    byId("key").value = "";
    return lookAtAll();
  });
  on("pause", "click", () => {
    isPaused = !isPaused;
    byId("pause").setAttribute("aria-pressed", String(isPaused));
    byId("pause").textContent = isPaused ? "Go on" : "Pause";
    return look();
  });
  on("account-form", "submit", () => ((accountPage = ""), showAccounts()), "account-message");
  on("account-first", "click", () => ((accountPage = ""), showAccounts()), "account-message");
  on(
    "account-next",
    "click",
    () => ((accountPage = accountNext ?? ""), showAccounts()),
    "account-message",
  );
  on("hook-form", "submit", () => showHooks(), "hook-message");
  on("hook-next", "click", () => showHooks(hookNext ?? ""), "hook-message");
  on("live-form", "submit", watch);
  on("stop", "click", stopWatching);
  on("clear", "click", clear);
  on("publish-form", "submit", publish, "receipt");
  on("revoke-form", "submit", revoke, "revoke-message");
  document.addEventListener("visibilitychange", () => document.hidden || look());
  lookAtAll();
})();
