// The dashboard: a chat that streams, and the board once a second. An ordinary client of the API.

import { ApiError, get, node, problem } from "/dashboard/api.js";
import { Chart, shown } from "/dashboard/chart.js";
import { Verdict, waiting } from "/dashboard/feedback.js";
import { Learning } from "/dashboard/learning.js";

const SECONDS = 300;
const PERIOD_MS = 1000;
const MIB = 1024 * 1024;
const $ = (id) => document.getElementById(id);

const charts = [
  new Chart($("charts"), "Speed", "tok/s", [{ name: "", key: "tok_s" }]),
  new Chart($("charts"), "Power", "W", [{ name: "", key: "watts" }]),
  new Chart($("charts"), "Hottest zone", "°C", [{ name: "", key: "celsius" }]),
  new Chart($("charts"), "Memory", "MiB", [
    { name: "available", key: "mem_available_bytes", divisor: MIB },
    { name: "worker's own", key: "worker_rss_anon_bytes", divisor: MIB },
  ]),
];

// ---- the board ------------------------------------------------------------------------------

async function refresh() {
  if (document.hidden) return;
  try {
    const [status, telemetry] = await Promise.all([
      get("/status"),
      get(`/telemetry?seconds=${SECONDS}`),
    ]);
    showStatus(status);
    showCharts(telemetry, status.sensors);
    showRows(telemetry.generations);
  } catch (error) {
    say(error instanceof ApiError ? error.message : "The daemon does not answer; trying again.");
  }
}

function say(text) {
  if ($("engine").textContent !== text) $("engine").textContent = text;
}

function showStatus(status) {
  const { engine, model_info: info, sensors } = status;
  const name = engine.model ? ` · ${engine.model}` : "";
  say(`${engine.state}${name}${engine.reason ? ` · ${engine.reason}` : ""}`);
  const facts = [
    ["Slots", info ? `${engine.in_flight} of ${info.slots} busy, ${engine.queued} waiting` : "no model loaded"],
    ["Context", info ? `${info.n_ctx} tokens a slot` : null],
    ...(sensors ? sensorFacts(sensors) : [["Sensors", "not read yet"]]),
  ].filter(([, value]) => value);
  const nodes = facts.flatMap(([term, value]) => [node("dt", term), node("dd", value)]);
  $("facts").replaceChildren(...nodes);
}

function sensorFacts(sensors) {
  const rails = Object.entries(sensors.rails).map(
    ([name, rail]) => `${name} ${rail.watts === null ? "not measured" : `${shown(rail.watts)} W`}`,
  );
  const heat = Object.entries(sensors.temperatures_celsius)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name} ${value.toFixed(1)} °C`);
  const clocks = [
    ["CPU", sensors.cpu],
    ["GPU", sensors.gpu],
  ].map(([name, part]) => load(name, part)).filter(Boolean);
  const guard = sensors.guard;
  return [
    ["Board", sensors.board.model || sensors.board.cpu],
    ["Power", rails.join(", ") || `not measured: ${sensors.total_reason}`],
    ["Idle power", sensors.idle_w === null ? null : `${shown(sensors.idle_w)} W`],
    ["Heat", heat.join(", ") || "not measured: no thermal zone"],
    ["Load", clocks.join(", ")],
    ["Throttling", sensors.throttle.join(", ") || "none"],
    ["Guard", guard.stage ? `stage ${guard.stage}: ${guard.reason}` : guard.reason || "calm"],
  ];
}

function load(name, part) {
  if (part.load === null && part.clock_hz === null) return null;
  const share = part.load === null ? "" : ` ${Math.round(100 * part.load)} %`;
  const clock = part.clock_hz === null ? "" : ` at ${shown(part.clock_hz / 1e9)} GHz`;
  return `${name}${share}${clock}`;
}

function showCharts({ points, now }, sensors) {
  const reasons = ["", sensors ? sensors.total_reason : "", "no thermal zone", ""];
  charts.forEach((chart, index) => chart.draw(points, now, SECONDS, reasons[index]));
}

function showRows(generations) {
  const rows = generations.map((one) => {
    const rate = one.decode_s > 0 ? one.completion_tokens / one.decode_s : null;
    const cells = [
      new Date(one.started_at * 1000).toLocaleTimeString(),
      one.model,
      one.prompt_tokens ?? "–",
      one.completion_tokens ?? "–",
      shown(rate),
      shown(one.j_per_token),
      one.error_code || one.finish_reason || "–",
    ];
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => node("td", String(cell))));
    return row;
  });
  $("rows").replaceChildren(...rows);
}

// ---- feedback and learning ------------------------------------------------------------------

const SELDOM = 5;
const learning = new Learning($("learning"));
let takesFeedback = false;
let tick = 0;

async function showWaiting() {
  try {
    const { text, enabled, learning: isServed } = await waiting();
    takesFeedback = enabled;
    $("waiting").textContent = text;
    $("waiting").hidden = !text;
    if (isServed && !learning.isUnderWay) await learning.refresh();
  } catch (error) {
    takesFeedback = false;
    $("waiting").hidden = true;
  }
}

async function refreshLearning() {
  if (document.hidden) return;
  if (tick % SELDOM === 0) await showWaiting();
  else if (learning.isUnderWay) await learning.refresh();
  tick += 1;
}

// The buttons under an answer that has come, whole or cut.
function judge(view, isCut) {
  const text = view.body.textContent;
  if (!takesFeedback || !text) return;
  const { id, messages, model } = view.asked;
  const announce = (words) => { $("announce").textContent = words; };
  keepAtEnd(() => {
    new Verdict(view.turn, { id, messages, text, model, isCut }, { announce, changed: showWaiting });
  });
}

// ---- the chat -------------------------------------------------------------------------------

let turns = [];
let running = null;

async function showModels() {
  const { data } = await get("/v1/models");
  $("model").replaceChildren(...data.map((model) => node("option", model.id)));
  const { engine } = await get("/status");
  if (data.some((model) => model.id === engine.model)) $("model").value = engine.model;
}

async function send(text) {
  turns.push({ role: "user", content: text });
  addTurn("You", text, "user");
  const view = addTurn($("model").value, "", "assistant");
  view.cost.textContent = "waiting for the first token…";
  running = new AbortController();
  setRunning(true);
  try {
    const answer = await stream(view, running.signal);
    turns.push({ role: "assistant", content: answer });
    $("announce").textContent = `Answer: ${answer}`;
    judge(view, view.asked.ended !== "stop");
  } catch (error) {
    turns.pop();
    if (error.name === "AbortError") {
      view.cost.textContent = "stopped";
      judge(view, true);
    } else fail(view, error instanceof ApiError ? error.message : "The daemon closed the connection.");
  } finally {
    running = null;
    setRunning(false);
  }
}

function fail(view, text) {
  view.cost.textContent = text;
  view.cost.classList.add("error");
  $("announce").textContent = text;
}

async function stream(view, signal) {
  const system = $("system").value.trim();
  const started = performance.now();
  let first = null;
  let text = "";
  const messages = system ? [{ role: "system", content: system }, ...turns] : [...turns];
  const asked = { messages, model: $("model").value };
  view.asked = asked;
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      ...asked,
      stream: true,
      max_tokens: 1024,
      temperature: Number($("temperature").value),
      stream_options: { include_usage: true },
    }),
    signal,
  });
  if (!response.ok) throw new ApiError(await problem(response));
  for await (const event of events(response)) {
    if (event.error) throw new ApiError([event.error.message, event.error.hint].filter(Boolean).join(" – "));
    asked.id = event.id;
    asked.ended = event.choices[0]?.finish_reason ?? asked.ended;
    const piece = event.choices[0]?.delta?.content;
    if (piece) {
      first ??= performance.now();
      text += piece;
      keepAtEnd(() => view.body.append(piece));
    }
    if (event.timings) view.cost.textContent = cost(event, first === null ? null : first - started);
  }
  return text;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function cost({ timings, energy, temperature_celsius: celsius }, ttftMs) {
  const parts = [
    `${timings.predicted_n} tokens`,
    timings.predicted_per_second === null ? null : `${shown(timings.predicted_per_second)} tok/s`,
    ttftMs === null ? null : `first token after ${Math.round(ttftMs)} ms`,
    energy.total_j === null
      ? `energy not measured: ${energy.reason}`
      : `${shown(energy.total_j)} J${energy.j_per_token === null ? "" : `, ${shown(energy.j_per_token)} J/token`}`,
    celsius === null ? null : `${celsius.toFixed(1)} °C`,
  ];
  return parts.filter(Boolean).join(" · ");
}

function addTurn(who, text, kind) {
  const turn = node("article", "", `turn ${kind}`);
  const body = node("p", text, "text");
  const costLine = node("p", "", "cost");
  turn.append(node("h3", who), body, costLine);
  $("turns").append(turn);
  $("turns").scrollTop = $("turns").scrollHeight;
  return { turn, body, cost: costLine };
}

// Who reads the end goes on reading the end.
function keepAtEnd(addTo) {
  const log = $("turns");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  addTo();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function setRunning(isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  if (!isRunning) $("prompt").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  send(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  $("turns").replaceChildren();
  $("prompt").focus();
});
document.addEventListener("visibilitychange", refresh);

async function loop() {
  await Promise.all([refresh(), refreshLearning()]);
  setTimeout(loop, PERIOD_MS);
}

showModels().catch((error) => say(error.message));
loop();
