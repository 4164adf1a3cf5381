// Making a picture anew: what was said becomes settings, what was marked is repainted, a producer reads what changes, then it runs.
import { ask, say, told } from "./page.js";

const NUMBERS = ["scale", "guidance", "steps", "seed"], TEXTS = ["prompt", "negative_prompt"];

/** A line of what changes. */
function changed(name, was, becomes) {
  const row = document.createElement("li"), before = document.createElement("del"), after = document.createElement("ins");
  before.textContent = was;
  after.textContent = becomes;
  row.append(`${name}: `, before, " → ", after);
  return row;
}

export class Retake {
  constructor(room) {
    this.room = room;
    this.dialog = room.querySelector("[data-retake]");
    this.form = room.querySelector("[data-retake-form]");
    this.current = {};
    this.form.addEventListener("input", () => this.#shown());
    room.querySelector("[data-retake-close]").addEventListener("click", () => this.dialog.close());
    this.form.addEventListener("submit", (event) => this.#asked(event));
  }

  async open() {
    const answer = await ask("GET", `/v1/assets/${this.room.dataset.asset}/retake`);
    if (!answer.ok) return say(told(answer.body));
    const { settings, changes, number, most } = answer.body;
    this.current = { ...settings, ...Object.fromEntries(changes.map((c) => [c.name, c.before])) };
    for (const n of [...TEXTS, ...NUMBERS]) this.form.elements[n].value = settings[n] ?? "";
    this.room.querySelector("[data-retake-count]").textContent = `Retake ${number} of ${most}. Comments and reasons are put behind the prompt; change what you like.`;
    this.repaint = settings.repaint;
    const count = this.repaint?.places.length;
    this.room.querySelector("[data-retake-repaint]").hidden = !count;
    this.room.querySelector("[data-retake-places]").textContent = count === 1 ? "the marked place" : `the ${count} marked places`;
    this.form.elements.repaint.checked = Boolean(count);
    this.form.elements.strength.value = this.repaint?.strength ?? "";
    this.#shown();
    this.dialog.showModal();
  }

  /** What the form asks for, in the kinds that /v1 takes; an empty number stays as it is, an empty seed is another. */
  #wished() {
    const told = Object.fromEntries(TEXTS.map((n) => [n, this.form.elements[n].value]));
    for (const n of NUMBERS) if (this.form.elements[n].value !== "") told[n] = Number(this.form.elements[n].value);
    if (this.repaint && this.form.elements.repaint.checked) told.repaint = { ...this.repaint, strength: Number(this.form.elements.strength.value) };
    return told;
  }

  #shown() {
    const { repaint, ...wished } = this.#wished();
    const rows = Object.entries(wished).filter(([n, v]) => (this.current[n] ?? "") !== v).map(([n, v]) => changed(n.replace("_", " "), this.current[n] ?? "–", v));
    if (repaint) rows.unshift(changed("picture", "all of it", `${this.room.querySelector("[data-retake-places]").textContent}, strength ${repaint.strength}`));
    this.form.elements.strength.disabled = !repaint;
    if (this.form.elements.seed.value === "") rows.push(Object.assign(document.createElement("li"), { textContent: "seed: another" }));
    this.room.querySelector("[data-retake-changes]").replaceChildren(...rows);
  }

  async #asked(event) {
    event.preventDefault();
    const { asset, sha256, rowVersion } = this.room.dataset;
    const body = { sha256, wishes: this.#wished() };
    const answer = await ask("POST", `/v1/assets/${asset}/retake`, body, { "If-Match": `"${rowVersion}"`, "Idempotency-Key": crypto.randomUUID() });
    this.dialog.close();
    if (!answer.ok) return say(told(answer.body));
    sessionStorage.setItem("said", "It is queued, and comes into review when it is made.");
    location.reload();
  }
}
