// What the user says of an answer: good, bad, or how it should have been. One row of the API each.

import { get, node, send, told } from "/dashboard/api.js";

const PATH = "/v1/feedback";
const NS = "http://www.w3.org/2000/svg";
const CUFF = "M3 10h4v10H3z";
const HAND = "M9 20V10l4-7c1.7 0 2.6 1.3 2.2 3L14.4 9H20c1.2 0 2 1 1.7 2.2l-1.6 7.2c-.2.9-1 1.6-2 1.6z";

const SAID = {
  up: "Kept as a good answer.",
  down: "Kept as a bad answer; a correction would teach a better one.",
};

let made = 0;

// What waits to be learned; null when the daemon takes no feedback.
export async function waiting() {
  const { waiting: counts, enabled, learning } = await get(`${PATH}?n=0`);
  return { text: enabled ? waitingText(counts) : "", enabled, learning };
}

function waitingText({ corrections, approved }) {
  const parts = [
    corrections ? `${corrections} ${corrections === 1 ? "correction" : "corrections"}` : "",
    approved ? `${approved} good ${approved === 1 ? "answer" : "answers"}` : "",
  ].filter(Boolean);
  return parts.length ? `${parts.join(" and ")} waiting to be learned` : "";
}

export class Verdict {
  // `answer`: {id, messages, text, model, isCut}; `announce(text)` speaks, `changed()` counts anew.
  constructor(parent, answer, { announce, changed }) {
    this.answer = answer;
    this.announce = announce;
    this.changed = changed;
    this.row = null;
    this.group = node("div", "", "verdict");
    this.group.setAttribute("role", "group");
    this.group.setAttribute("aria-label", "Feedback on this answer");
    this.good = this.thumb("Good answer", "up");
    this.bad = this.thumb("Bad answer", "down");
    // Half an answer teaches to stop there.
    this.good.hidden = answer.isCut;
    this.correct = this.button(document.createTextNode("Correct…"), () => this.open());
    this.correct.setAttribute("aria-expanded", "false");
    this.note = node("p", "", "note");
    this.group.append(this.good, this.bad, this.correct, this.note);
    parent.append(this.group);
  }

  thumb(label, rating) {
    const icon = document.createElementNS(NS, "svg");
    icon.setAttribute("viewBox", "0 0 24 24");
    icon.setAttribute("aria-hidden", "true");
    icon.setAttribute("class", `thumb ${rating}`);
    for (const d of [CUFF, HAND]) {
      const path = document.createElementNS(NS, "path");
      path.setAttribute("d", d);
      icon.append(path);
    }
    const button = this.button(icon, () => this.rate(rating));
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-pressed", "false");
    button.title = label;
    return button;
  }

  button(content, act) {
    const button = node("button", "");
    button.type = "button";
    button.append(content);
    button.addEventListener("click", act);
    return button;
  }

  rate(rating) {
    if (this.row?.rating === rating && !this.row.correction) return this.withdraw();
    return this.say({ rating }, SAID[rating]);
  }

  async say(opinion, done) {
    const { id, messages, text, model } = this.answer;
    await this.during(async () => {
      this.row = await send("POST", PATH, { id, messages, answer: text, model, ...opinion });
      this.close();
      this.show(done);
    });
  }

  async withdraw() {
    await this.during(async () => {
      await send("DELETE", `${PATH}/${this.row.id}`);
      this.row = null;
      this.show("Taken back.");
    });
  }

  // One request at a time; an error is told where the buttons are.
  async during(work) {
    if (this.isBusy) return;
    this.isBusy = true;
    try {
      await work();
      this.changed();
    } catch (error) {
      this.note.classList.add("error");
      this.tell(told(error));
    } finally {
      this.isBusy = false;
    }
  }

  show(text) {
    const { rating, correction } = this.row ?? {};
    this.good.setAttribute("aria-pressed", String(rating === "up"));
    this.bad.setAttribute("aria-pressed", String(rating === "down"));
    this.correct.classList.toggle("done", Boolean(correction));
    this.note.classList.remove("error");
    this.tell(text);
  }

  tell(text) {
    this.note.textContent = text;
    this.announce(text);
  }

  open() {
    if (this.form) return this.close(true);
    const label = node("label", "What the answer should have been");
    const field = node("textarea", "");
    field.id = `correction-${(made += 1)}`;
    field.rows = 4;
    field.value = this.row?.correction ?? this.answer.text;
    label.htmlFor = field.id;
    const keep = node("button", "Keep correction");
    keep.type = "submit";
    this.form = node("form", "", "correction");
    this.form.append(label, field, keep, this.button(document.createTextNode("Cancel"), () => this.close(true)));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.say({ correction: field.value }, `Corrected to: ${field.value.trim()}`);
    });
    this.form.addEventListener("keydown", (event) => event.key === "Escape" && this.close(true));
    this.group.after(this.form);
    this.correct.setAttribute("aria-expanded", "true");
    field.focus();
    this.form.scrollIntoView({ block: "nearest" });
  }

  // With `byHand` the note of what was said before stays.
  close(byHand = false) {
    if (!this.form) return;
    this.form.remove();
    this.form = null;
    this.correct.setAttribute("aria-expanded", "false");
    this.correct.focus();
    if (byHand && this.note.classList.contains("error")) this.show("");
  }
}
