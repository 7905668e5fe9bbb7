// The lesson under way or the last one: how far it is, what it says, pause and resume.

import { shown } from "/dashboard/chart.js";
import { get, node, send, told } from "/dashboard/api.js";

const MIB = 1024 * 1024;
const UNDER_WAY = ["running", "paused", "judging"];
const PHASES = {
  prepare: "getting ready",
  prefix: "storing the frozen layers' states",
  trial: "trying how many layers to train",
  train: "training",
  validate: "validating",
  paused: "paused",
  save: "saving",
};

export class Learning {
  constructor(panel) {
    const part = (name) => panel.querySelector(`.${name}`);
    this.panel = panel;
    this.state = part("state");
    this.bar = panel.querySelector("progress");
    this.facts = part("facts");
    this.pause = part("pause");
    this.resume = part("resume");
    this.problem = part("problem");
    this.isUnderWay = false;
    this.pause.addEventListener("click", () => this.ask("pause", this.resume));
    this.resume.addEventListener("click", () => this.ask("resume", this.pause));
  }

  // Hidden where the daemon knows of no lesson.
  async refresh() {
    try {
      this.show(await get("/adapt"));
    } catch {
      this.panel.hidden = true;
      this.isUnderWay = false;
    }
  }

  async ask(what, next) {
    try {
      this.problem.textContent = "";
      this.show(await send("POST", `/adapt/${what}`, {}));
      if (!next.hidden) next.focus();
    } catch (error) {
      this.problem.textContent = told(error);
    }
  }

  show(run) {
    const { state, progress } = run;
    this.panel.hidden = state === "idle";
    this.isUnderWay = UNDER_WAY.includes(state);
    this.tell(headline(run));
    this.pause.hidden = state !== "running";
    this.resume.hidden = !["paused", "stopped"].includes(state);
    this.bar.hidden = !this.isUnderWay || !progress?.n_steps;
    if (!this.bar.hidden) {
      this.bar.max = progress.n_steps;
      this.bar.value = progress.step;
    }
    const nodes = facts(run).flatMap(([term, value]) => [node("dt", term), node("dd", value)]);
    this.facts.replaceChildren(...nodes);
  }

  tell(text) {
    if (this.state.textContent !== text) this.state.textContent = text;
  }
}

function headline({ state, name, model, pause_reason: reason, result, error }) {
  const what = [model, name].filter(Boolean).join(":");
  const why = error ? [error.what, error.why, error.hint].filter(Boolean).join(" – ") : reason;
  const verdict = state === "finished" ? finished(result) : "";
  return [what, [state, why || verdict].filter(Boolean).join(": ")].filter(Boolean).join(" · ");
}

function finished(result) {
  if (result?.is_active) return "it passed its gate and answers now";
  if (result?.gate?.passed) return "it passed its gate";
  return result?.gate ? `its gate refused it: ${(result.gate.reasons ?? []).join("; ")}` : "";
}

function facts({ state, progress, result }) {
  const last = result?.losses?.at(-1);
  const now = progress ?? {};
  const isDone = state === "finished";
  const bits = now.validation_bits_per_byte ?? last?.validation_bits_per_byte;
  return [
    ["Phase", isDone ? null : (PHASES[now.phase] ?? now.phase)],
    ["Step", now.n_steps ? `${now.step} of ${now.n_steps}${now.epoch ? `, epoch ${shown(now.epoch)}` : ""}` : null],
    ["Loss", measured(now.loss, "nats a token")],
    ["Validation", measured(bits, "bits per byte")],
    ["Speed", measured(now.tok_s ?? result?.tok_s, "tok/s")],
    ["Energy", measured(now.joules_per_step, "J a step")],
    ["Own memory", measured(now.rss_anon_bytes && now.rss_anon_bytes / MIB, "MiB")],
    ["Ready in", isDone || now.eta_s === null || now.eta_s === undefined ? null : duration(now.eta_s)],
    ["Note", now.note],
  ].filter(([, value]) => value);
}

function measured(value, unit) {
  return value === null || value === undefined ? null : `${shown(value)} ${unit}`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
