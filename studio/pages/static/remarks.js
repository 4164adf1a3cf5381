// Comments and what they are of: a pin, a box or a path on the picture. What is begun is kept in this browser, and so is what is unsent.
import { drop, put, store, stored, unsentOf } from "./outbox.js";
import { say } from "./page.js";

const STEP = 0.02, MOVED = 0.008, MOST_POINTS = 2000, FINE = 0.0015;
const within = (v, most = 1) => Math.min(most, Math.max(0, v));
const rounded = (v) => Math.round(v * 1e4) / 1e4;
const BEGUN = {
  pin: { kind: "pin", x: 0.5, y: 0.5 },
  box: { kind: "box", x: 0.4, y: 0.4, width: 0.2, height: 0.2 },
};
const HOW = {
  pin: "Click where the pin belongs, or move it with the arrow keys, then write.",
  box: "Drag a box, or move it with the arrow keys and size it with Shift and the arrow keys, then write.",
  path: "Draw around what you mean, then write. A box can be placed by keys alone.",
};

export class Remarks {
  constructor(room, viewer, signal) {
    this.room = room;
    this.viewer = viewer;
    const { asset, version, me } = room.dataset;
    Object.assign(this, { asset, version, me });
    this.list = room.querySelector("[data-comments]");
    this.pins = room.querySelector("[data-pins]");
    this.shapes = room.querySelector("[data-shapes]");
    this.form = room.querySelector("[data-comment-form]");
    this.note = room.querySelector("[data-pin-note]");
    this.begun = `begun ${me} ${version}`;
    this.comments = JSON.parse(room.querySelector("[data-comments-json]").textContent);
    this.tool = null;
    this.draft = null;
    this.#drawing(signal);
    this.form?.addEventListener("submit", (event) => this.#written(event));
    this.form?.addEventListener("input", () => this.#keepDraft());
    room.querySelector("[data-pin-remove]")?.addEventListener("click", () => this.#without());
    document.addEventListener("outbox", ({ detail }) => this.#sent(detail), { signal });
    this.#takeUp();
    this.draw();
  }

  /** Begin to place a pin, a box or a path; the same again, or null, stops, and leaves what was placed. */
  use(tool) {
    if (!this.form || !this.viewer) return;
    this.tool = tool === this.tool ? null : tool;
    if (this.tool && this.draft?.kind !== this.tool) this.draft = BEGUN[this.tool] ?? null;
    this.viewer.hold(Boolean(this.tool));
    this.room.toggleAttribute("data-drawing", Boolean(this.tool));
    for (const button of this.room.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === this.tool));
    if (this.tool) say(HOW[this.tool]);
    this.#keepDraft();
    this.draw();
  }

  /** Move or size what is being placed by keys; says whether the key was for that. */
  key(event) {
    const d = this.draft, step = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
    if (!this.tool || !d) return false;
    if (event.key === "Enter" && event.target.closest("[data-tool], .stage, main, body") && !event.target.closest("a, .side")) this.form.elements.text.focus();
    else if (!step || d.kind === "path") return false;
    else if (d.kind === "box" && event.shiftKey) {
      const size = (v, by, at) => rounded(Math.max(STEP, within(v + by, 1 - at)));
      this.draft = { ...d, width: size(d.width, step[0], d.x), height: size(d.height, step[1], d.y) };
    } else this.draft = { ...d, x: rounded(within(d.x + step[0], 1 - (d.width ?? 0))), y: rounded(within(d.y + step[1], 1 - (d.height ?? 0))) };
    event.preventDefault();
    this.#keepDraft();
    this.draw();
    return true;
  }

  draw() {
    const waiting = unsentOf(this.asset).map((c) => ({ ...c, by: this.me, version: "", unsent: true }));
    const all = [...this.comments, ...waiting];
    this.list.replaceChildren(...all.map((c, i) => this.#item(c, i + 1)));
    if (!this.pins) return;
    const shown = all.map((c, i) => [c, String(i + 1)]).filter(([c]) => c.region && c.version_id === this.version);
    this.pins.replaceChildren(...shown.map(([c, label]) => this.#pin(c.region, label, c.text)));
    this.shapes.replaceChildren(...shown.flatMap(([c, label]) => shape(c.region, label)));
    if (this.draft) {
      this.pins.append(this.#pin(this.draft, "+", "what you are placing", true));
      this.shapes.append(...shape(this.draft, "+", true));
    }
    if (this.note) {
      this.note.hidden = this.room.querySelector("[data-pin-remove]").hidden = !this.draft;
      this.note.querySelector("span").textContent = this.draft ? `On ${worded(this.draft)}.` : "";
    }
  }

  // ------------------------------------------------------------------ placing

  #drawing(signal) {
    const layer = this.room.querySelector("[data-layer]");
    let from = null, drawn = false; // a press alone places a pin; it takes no box or drawing away
    layer?.addEventListener("pointerdown", (event) => {
      if (!this.tool || from || event.target.closest("button") || event.button) return;
      event.stopPropagation();
      layer.setPointerCapture(event.pointerId);
      from = { ...this.viewer.at(event), pointer: event.pointerId };
      drawn = this.tool === "pin";
      if (drawn) this.#placed(from, from);
    });
    layer?.addEventListener("pointermove", (event) => {
      if (event.pointerId !== from?.pointer) return;
      const to = this.viewer.at(event);
      if (!drawn && Math.hypot(to.x - from.x, to.y - from.y) < MOVED) return;
      if (!drawn && this.tool === "path") this.draft = { kind: "path", points: [[rounded(from.x), rounded(from.y)]] };
      drawn = true;
      this.#placed(from, to);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      layer?.addEventListener(end, (event) => {
        if (event.pointerId !== from?.pointer) return;
        from = null;
        if (this.draft?.kind === "path") this.draft = { kind: "path", points: simplified(this.draft.points) };
        this.#keepDraft();
        this.draw();
        if (drawn) this.form.elements.text.focus();
      });
    }
    signal.addEventListener("abort", () => this.viewer?.hold(false));
  }

  #placed(from, to) {
    const [x, y] = [rounded(to.x), rounded(to.y)];
    if (this.tool === "pin") this.draft = { kind: "pin", x, y };
    else if (this.tool === "box") {
      const left = Math.min(from.x, to.x), top = Math.min(from.y, to.y);
      this.draft = { kind: "box", x: rounded(left), y: rounded(top), width: rounded(Math.abs(to.x - from.x)), height: rounded(Math.abs(to.y - from.y)) };
    } else {
      const points = [...this.draft.points, [x, y]];
      this.draft = { kind: "path", points: points.length < MOST_POINTS ? points : simplified(points) };
    }
    this.draw();
  }

  /** Say it of the whole picture. */
  #without() {
    this.draft = null;
    if (this.tool) this.use(null);
    this.#keepDraft();
    this.draw();
  }

  #sent({ asset, comment }) {
    if (asset !== this.asset) return;
    if (comment) this.comments = [...this.comments.filter((c) => c.id !== comment.id), comment];
    this.draw();
  }

  /** What is drawn and written so far outlives a reload. */
  #keepDraft() {
    const text = this.form?.elements.text.value ?? "";
    store(this.begun, this.draft || text ? { draft: this.draft, text } : null);
  }

  #takeUp() {
    const begun = stored(this.begun, null);
    if (!begun || !this.form || !this.viewer) return;
    this.form.elements.text.value = begun.text;
    this.draft = begun.draft;
    say("What you had begun to write is here again.");
  }

  #written(event) {
    event.preventDefault();
    const text = this.form.elements.text.value.trim();
    if (!text) return;
    const comment = { id: crypto.randomUUID(), version_id: this.version, text, region: this.draft };
    this.form.reset();
    this.#without();
    put(this.asset, comment);
  }

  // ------------------------------------------------------------------ showing

  #item(comment, number) {
    const row = document.createElement("li"), words = document.createElement("p"), who = document.createElement("span");
    row.toggleAttribute("data-unsent", Boolean(comment.unsent));
    row.dataset.number = String(number);
    who.className = "faint";
    const unsent = ` · not sent yet${comment.refused ? `: ${comment.refused}` : ""}`;
    const where = comment.version_id === this.version ? "" : ` · version ${comment.version}`;
    who.textContent = `${number} · ${comment.by}` + (comment.unsent ? unsent : where) + (comment.edited ? " · corrected" : "") + (comment.region ? ` · ${comment.region.kind}` : "");
    words.textContent = comment.text;
    row.append(who, words);
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false]]) row.addEventListener(event, () => this.#mark(row.dataset.number, on));
    if (comment.refused) {
      const discard = Object.assign(document.createElement("button"), { type: "button", textContent: "Discard" });
      discard.addEventListener("click", () => drop(this.asset, comment.id));
      row.append(discard);
    }
    return row;
  }

  #pin(region, label, text, isDraft = false) {
    const row = document.createElement("li"), button = document.createElement("button");
    const [x, y] = region.kind === "path" ? region.points[0] : [region.x, region.y];
    button.type = "button";
    button.textContent = label;
    button.title = text;
    button.setAttribute("aria-label", `${label}, ${worded(region)}: ${text}`);
    button.style.left = `${x * 100}%`;
    button.style.top = `${y * 100}%`;
    if (isDraft) button.className = "draft";
    else {
      button.addEventListener("click", () => {
        const item = this.list.querySelector(`[data-number="${label}"]`);
        item?.scrollIntoView({ block: "nearest" });
        this.#mark(label, true);
        setTimeout(() => this.#mark(label, false), 1500);
      });
    }
    row.append(button);
    return row;
  }

  #mark(number, on) {
    for (const part of this.room.querySelectorAll(`[data-number="${number}"]`)) part.toggleAttribute("data-marked", on);
  }
}

function shape(region, number, isDraft = false) {
  if (region.kind === "pin") return [];
  const part = document.createElementNS("http://www.w3.org/2000/svg", region.kind === "box" ? "rect" : "polyline");
  const values = region.kind === "path" ? { points: region.points.map((p) => p.join(",")).join(" ") } : { x: region.x, y: region.y, width: region.width, height: region.height };
  for (const [name, value] of Object.entries(values)) part.setAttribute(name, value);
  part.dataset.number = number;
  part.toggleAttribute("data-draft", isDraft);
  return [part];
}

const percent = (v) => `${Math.round(v * 100)} %`;
const worded = (r) => (r.kind === "path" ? `a drawing of ${r.points.length} points` : `a ${r.kind} at ${percent(r.x)}, ${percent(r.y)}` + (r.kind === "box" ? `, ${percent(r.width)} by ${percent(r.height)}` : ""));

/** A path without the points that lie within FINE of a straight line between others (Ramer 1972, Douglas and Peucker 1973). */
function simplified(points) {
  if (points.length < 3) return points;
  const [[ax, ay], [bx, by]] = [points[0], points.at(-1)], length = Math.hypot(bx - ax, by - ay);
  const off = ([x, y]) => (length ? Math.abs((bx - ax) * (ay - y) - (ax - x) * (by - ay)) / length : Math.hypot(x - ax, y - ay));
  let at = 0, most = 0;
  for (let i = 1; i < points.length - 1; i += 1) if (off(points[i]) > most) [at, most] = [i, off(points[i])];
  return most > FINE ? [...simplified(points.slice(0, at + 1)).slice(0, -1), ...simplified(points.slice(at))] : [points[0], points.at(-1)];
}
