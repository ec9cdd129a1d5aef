const byId = (id) => document.getElementById(id);
const plumber = new Asyncplumber("plumber", { account: "demo" });
const task = plumber.task("report");

const WORDS = {
  submitted: "Waiting for its turn",
  running: "Being made",
  completed: "Done",
  failed: "Failed",
  canceled: "Canceled",
  lost: "Nothing was heard of it for too long",
};

async function show() {
  const isLive = task.state !== null && !task.done;
  byId("start").disabled = isLive;
  byId("cancel").disabled = !isLive || task.cancelRequested;
  byId("state").textContent = WORDS[task.state] ?? "No report yet";
  byId("state").dataset.state = task.state ?? "";
  const { page, of } = task.progress ?? { page: 0, of: 1 };
  byId("bar").value = task.state === "completed" ? 1 : page / of;
  byId("outcome").textContent = isLive && page ? `Page ${page} of ${of}` : "";
  if (!task.done) return;
  // The same in every tab: its result, or why there is none.
  byId("outcome").textContent = await task.result.then(
    ({ pages, words }) => `${pages} pages with ${words} words`,
    (error) => error.message,
  );
}

task.on("change", show);
task.on("refused", (error) => {
  byId("outcome").textContent = error.message;
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  plumber.start("report", { pages: byId("pages").valueAsNumber });
});
byId("cancel").addEventListener("click", () => task.cancel());
