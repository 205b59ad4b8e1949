// The service's pages: a list that stays fresh, a form that previews its plan, and a run that is watched.
"use strict";

const find = (id) => document.getElementById(id);
const sizes = ["B", "KiB", "MiB", "GiB", "TiB"];

function showSize(bytes) {
  let step = 0;
  while (bytes >= 1024 && step < sizes.length - 1) { bytes /= 1024; step += 1; }
  return `${bytes.toFixed(step ? 1 : 0)} ${sizes[step]}`;
}

function showTime(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// Text only: nothing that comes from data is ever taken for HTML.
function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

async function ask(method, url, body) {
  const answer = await fetch(url, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.status === 401) location.href = "/login";
  const text = await answer.text();
  return { ok: answer.ok, status: answer.status, data: text ? JSON.parse(text) : null };
}

function describe(progress) {
  if (!progress || !progress.stage) return "";
  const total = progress.total ? `/${progress.total.toLocaleString("en")}` : "";
  const rate = progress.rate ? `, ${Math.round(progress.rate).toLocaleString("en")} rows/s` : "";
  return `${progress.stage} ${progress.done.toLocaleString("en")}${total} ${progress.unit || ""}${rate}`;
}

// The list.

function fillRow(row, run) {
  const state = row.querySelector(".state");
  state.textContent = run.state;
  state.className = `state ${run.state}`;
  row.querySelector(".progress").replaceChildren(
    run.error ? element("span", run.error, "error") : element("span", run.state === "running" ? describe(run.progress) : ""));
}

function newRow(run) {
  const row = element("tr");
  row.dataset.run = run.id;
  const name = element("td", undefined, "mono");
  const link = element("a", run.id);
  link.href = `/runs/${run.id}/page`;
  name.append(link);
  const state = element("td");
  state.append(element("span", run.state, `state ${run.state}`));
  row.append(name, state, element("td", "", "small progress"), element("td", run.shards.join(", "), "break small"),
    element("td", `${run.channels} x ${run.resolution} x ${run.resolution}`, "number"));
  return row;
}

async function refresh() {
  const { ok, data } = await ask("GET", "/runs?limit=200");
  if (!ok) return;
  const known = new Map([...find("runs").children].map((row) => [row.dataset.run, row]));
  const rows = data.runs.map((run) => {
    const row = known.get(run.id) || newRow(run);
    fillRow(row, run);
    return row;
  });
  find("runs").replaceChildren(...rows);
  find("list").hidden = !rows.length;
  find("none").hidden = rows.length > 0;
}

// The form.

function jobOf(form) {
  const job = {};
  for (const [name, value] of new FormData(form)) {
    const text = value.trim();
    if (!text) continue;
    if (name === "shards") job.shards = text.split("\n").map((line) => line.trim()).filter(Boolean);
    else job[name] = /^\d+$/.test(text) ? Number(text) : text;
  }
  return job;
}

function showFaults(form, answer) {
  const faults = Array.isArray(answer.data && answer.data.detail) ? answer.data.detail : null;
  const lines = faults
    ? faults.map((fault) => `${fault.loc.slice(1).join(".")}: ${fault.msg}`)
    : [(answer.data && answer.data.detail) || `the service answered ${answer.status}`];
  for (const fault of faults || []) {
    const field = form.elements[fault.loc[1]];
    if (field) field.setAttribute("aria-invalid", "true");
  }
  find("fault").textContent = lines.join("; ");
  find("fault").hidden = false;
}

function showPlan(plan) {
  const head = element("p", `d = ${plan.size.toLocaleString("en")}, ${plan.strategy}, ${plan.method || "no svd"}: about ` +
    `${showTime(plan.seconds)}, at most ${showSize(plan.peak)} a process, ${showSize(plan.disk)} of disk.`);
  const table = element("table");
  const titles = element("tr");
  titles.append(element("th", "stage"), ...["time", "memory", "written"].map((name) => element("th", name, "number")));
  table.append(titles);
  for (const stage of plan.stages) {
    const row = element("tr");
    row.append(element("td", stage.name), element("td", showTime(stage.seconds), "number"),
      element("td", showSize(stage.memory), "number"), element("td", showSize(stage.written), "number"));
    table.append(row);
  }
  const box = element("div", undefined, "scroll");
  box.append(table);
  find("preview").replaceChildren(element("h3", "Plan"), head, element("p", plan.reason, "soft small"), box);
  find("preview").hidden = false;
  find("submit").hidden = false;
}

function watchForm(form) {
  const forget = () => {
    find("preview").hidden = find("submit").hidden = find("fault").hidden = true;
    for (const field of form.elements) field.removeAttribute("aria-invalid");
  };
  const send = async (url, words, then) => {
    const buttons = form.querySelectorAll("button");
    buttons.forEach((button) => { button.disabled = true; });
    find("busy").textContent = words;
    const answer = await ask("POST", url, jobOf(form));
    find("busy").textContent = "";
    buttons.forEach((button) => { button.disabled = false; });
    if (answer.ok) then(answer.data); else showFaults(form, answer);
  };
  form.addEventListener("input", forget);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    forget();
    send("/plan", "Looking at the first samples ...", showPlan);
  });
  find("submit").addEventListener("click", () =>
    send("/runs", "Submitting ...", (run) => { location.href = `/runs/${run.id}/page`; }));
}

// A run under way.

const retryAfter = 5000; // ms

// A browser connects again by itself where a stream is cut, and never where one is refused, as with 503.
async function watchAgain(box) {
  const answer = await ask("GET", `/runs/${box.dataset.run}`).catch(() => null);
  if (answer && answer.status === 404) location.href = "/"; else watchRun(box);
}

function watchRun(box) {
  const source = new EventSource(`/runs/${box.dataset.run}/events`);
  const now = { stage: null, unit: null, done: 0, total: 0, rate: null };
  const show = () => {
    find("where").textContent = describe(now);
    if (now.total) find("bar").value = now.done / now.total; else find("bar").removeAttribute("value");
    find("rate").textContent = now.rate ? `${Math.round(now.rate).toLocaleString("en")} rows/s` : "";
  };
  const done = (stage, seconds) => find("done").append(element("li", `${stage}: ${showTime(seconds)}`));
  const setState = (state) => {
    find("state").textContent = state;
    find("state").className = `state ${state}`;
  };
  const on = (name, take) => source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on("snapshot", (run) => {
    setState(run.state);
    find("done").replaceChildren();
    if (run.progress) {
      Object.assign(now, run.progress);
      for (const [stage, seconds] of Object.entries(run.progress.stages_done)) done(stage, seconds);
      show();
    }
  });
  on("state", (event) => setState(event.state));
  on("stage_started", (event) => {
    Object.assign(now, { stage: event.stage, unit: event.unit, total: event.total, done: 0, rate: null });
    show();
  });
  on("progress", (event) => {
    Object.assign(now, event, { rate: event.rows && event.seconds ? event.rows / event.seconds : null });
    show();
  });
  on("stage_done", (event) => done(event.stage, event.seconds));
  on("note", (event) => { find("rate").textContent = event.text; });
  on("end", () => { source.close(); location.reload(); });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(watchAgain, retryAfter, box);
  });
}

document.addEventListener("DOMContentLoaded", () => {
  if (find("runs")) {
    watchForm(find("job"));
    setInterval(() => { if (!document.hidden) refresh().catch(() => {}); }, 2000);
  }
  const live = find("live");
  if (live && ["queued", "running"].includes(live.dataset.state)) watchRun(live);
  for (const button of document.querySelectorAll("[data-cancel]")) {
    button.addEventListener("click", async () => {
      button.disabled = true;
      await ask("DELETE", `/runs/${button.dataset.cancel}`);
    });
  }
  for (const button of document.querySelectorAll("[data-remove]")) {
    button.addEventListener("click", async () => {
      if (!confirm("Remove this run and all its files?")) return;
      button.disabled = true;
      await ask("DELETE", `/runs/${button.dataset.remove}?remove=true`);
      location.href = "/";
    });
  }
});
