/** The page at `/`: subscribe to an account, send it a test result, watch it arrive. */
(() => {
  "use strict";

  const ROWS = 200; // results kept on the page: it may be left open for days
  const TRANSPORTS = { websocket: "WebSocket", sse: "SSE", longpoll: "long-poll" };
  const BASE = new URL(".", location.href).href.slice(0, -1); // the server may be under a prefix
  const byId = (id) => document.getElementById(id);

  let subscription = null;
  let wasOpen = false;
  let seen = 0;
  let sent = 0;

  /** Make an element with this class and text.  Results come from outside: never use HTML. */
  function element(tag, name, text) {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    return made;
  }

  function showState({ state, transport, retryIn, reason }) {
    wasOpen ||= state === "open";
    let words = state;
    if (state === "open") words = `connected · ${TRANSPORTS[transport]}`;
    if (state === "connecting" && wasOpen) words = "reconnecting";
    if (state === "waiting") words = `reconnecting in ${Math.max(1, Math.round(retryIn / 1000))} s`;
    if (state === "refused") words = token() ? "this token is refused" : "a token is needed";
    if (state === "closed") words = `closed: ${reason}`;
    byId("state").textContent = words;
    byId("state").title = reason ?? "";
    Object.assign(byId("state").dataset, { state, transport });
  }

  /** The token that the user has typed, or null.  It is nowhere else: not in a URL, not stored. */
  function token() {
    return byId("token").value.trim() || null;
  }

  function askForToken() {
    byId("credential").hidden = false;
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
    // The clocks of server and browser may differ by more than the latency.
    const latency = Math.max(0, Date.now() - Date.parse(event.time));
    const row = element("li", "result", "");
    const facts = element("div", "facts", "");
    const time = element("time", "time", new Date(event.time).toLocaleTimeString());
    time.dateTime = event.time;
    facts.append(element("span", "type", event.type), element("span", "latency", `${latency} ms`));
    facts.append(element("span", "cursor", event.cursor ?? "not kept"), time);
    row.append(facts, element("pre", "data", bodyOf(event)));
    row.title = `event ${event.id}`;
    addRow(row);
    seen += 1;
    byId("count").textContent = seen;
  }

  function showGap({ from, to, oldest }) {
    const row = element("li", "gap", "");
    const facts = element("div", "facts", "");
    facts.append(element("span", "type", "gap"), element("span", "cursor", `${from} → ${to}`));
    const kept = oldest
      ? `The oldest result that is still kept is ${oldest}.`
      : "No older result is kept.";
    row.append(facts, element("p", "", `Some results were missed and cannot be replayed. ${kept}`));
    addRow(row);
  }

  function clear() {
    byId("results").replaceChildren();
    byId("empty").hidden = false;
    seen = 0;
    byId("count").textContent = "0";
  }

  function subscribe() {
    subscription?.close();
    wasOpen = false;
    clear();
    const account = byId("account").value;
    const choice = byId("transport").value;
    const options = { account, token };
    if (choice) options.transports = [choice];
    subscription = new Asyncplumber(BASE, options);
    const mine = subscription;
    const shown = { state: showState, refused: askForToken, event: showEvent, gap: showGap };
    for (const [name, show] of Object.entries(shown)) {
      mine.on(name, (value) => mine === subscription && show(value)); // ignore the old ones
    }
    history.replaceState(null, "", `#${encodeURIComponent(account)}`);
    byId("about").href = `accounts/${encodeURIComponent(account)}`;
    byId("curl").textContent = curl(account);
  }

  /** Quote a word for a POSIX shell. */
  function quoted(word) {
    return `'${word.replaceAll("'", "'\\''")}'`;
  }

  function hookOf(account) {
    return `${BASE}/hooks/${encodeURIComponent(account)}`;
  }

  function curl(account) {
    const body = quoted(JSON.stringify({ task: "report", status: "done" }));
    const hook = quoted(hookOf(account));
    const proof = token() ? ` \\\n  -H "Authorization: Bearer $TOKEN"` : "";
    return `curl -H 'Content-Type: application/json'${proof} \\\n  -d ${body} \\\n  ${hook}`;
  }

  function showReceipt(words, bad) {
    byId("receipt").textContent = words;
    byId("receipt").classList.toggle("bad", bad);
  }

  async function send() {
    const headers = { "Content-Type": "application/json", "Event-Type": "result" };
    if (token()) headers.Authorization = `Bearer ${token()}`;
    sent += 1;
    const body = JSON.stringify({ task: "test", status: "done", number: sent });
    const began = performance.now();
    try {
      const hook = hookOf(byId("account").value);
      const response = await fetch(hook, { method: "POST", headers, body });
      const took = Math.round(performance.now() - began);
      if (response.status === 401) askForToken();
      const receipt = await response.json().catch(() => ({}));
      const words = response.ok
        ? `accepted as ${receipt.cursor} in ${took} ms; subscribers: ${receipt.subscribers}`
        : receipt.error?.message ?? receipt.detail ?? "no explanation";
      showReceipt(`${response.status}: ${words}`, !response.ok);
    } catch (error) {
      showReceipt(`Not sent: the server cannot be reached (${error.message}).`, true);
    }
  }

  /** Copy the command.  Where that is not allowed (plain HTTP), select it for the user to copy. */
  async function copy() {
    try {
      await navigator.clipboard.writeText(byId("curl").textContent);
      byId("copy").textContent = "Copied";
      setTimeout(() => (byId("copy").textContent = "Copy"), 1500);
    } catch {
      getSelection().selectAllChildren(byId("curl"));
    }
  }

  function readHash() {
    try {
      const account = decodeURIComponent(location.hash.slice(1));
      if (account) byId("account").value = account;
    } catch {
      // Not percent-encoded: somebody typed it.  Leave the field as it is.
    }
  }

  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    subscribe();
  });
  for (const id of ["account", "transport", "token"]) {
    byId(id).addEventListener("change", () => byId("form").reportValidity() && subscribe());
  }
  byId("send").addEventListener("click", send);
  byId("copy").addEventListener("click", copy);
  byId("clear").addEventListener("click", clear);
  addEventListener("hashchange", () => {
    readHash();
    subscribe();
  });
  readHash();
  subscribe();
})();
