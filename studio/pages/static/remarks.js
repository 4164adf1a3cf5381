// Comments and what they are of: a pin, a box or a path on the picture. All is kept in this browser until the server has it.
import { ask, say, told } from "./page.js";

const STEP = 0.02, SMALLEST = 0.01, MOST_POINTS = 200;
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

/** What stands in localStorage under a name, changed on what another tab may have kept meanwhile. */
const kept = (name) => JSON.parse(localStorage.getItem(name) ?? "[]");
const keep = (name, change) => localStorage.setItem(name, JSON.stringify(change(kept(name))));

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
    this.unsent = `unsent ${me} ${asset}`; // nobody else's words are sent from a browser that is shared
    this.begun = `begun ${me} ${version}`;
    this.comments = JSON.parse(room.querySelector("[data-comments-json]").textContent);
    this.tool = null;
    this.draft = null;
    this.#drawing(signal);
    this.form?.addEventListener("submit", (event) => this.#written(event));
    this.form?.addEventListener("input", () => this.#keepDraft());
    addEventListener("online", () => this.send(), { signal });
    const again = setInterval(() => kept(this.unsent).some((c) => !c.refused) && this.send(), 5000);
    signal.addEventListener("abort", () => clearInterval(again));
    this.#takeUp();
    this.draw();
    if (kept(this.unsent).length) this.send();
  }

  /** Begin to place a pin, a box or a path; the same again, or null, stops. */
  use(tool) {
    if (!this.form || !this.viewer) return;
    this.tool = tool === this.tool ? null : tool;
    this.draft = this.tool ? BEGUN[this.tool] ?? null : null;
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
    if (!this.tool || !d || d.kind === "path") return false;
    if (event.key === "Enter" && event.target === document.body) this.form.elements.text.focus();
    else if (!step) return false;
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
    const waiting = kept(this.unsent).map((c) => ({ ...c, by: this.me, version: "", unsent: true }));
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
      this.note.hidden = !this.draft;
      this.note.textContent = this.draft ? `On ${worded(this.draft)}.` : "";
    }
  }

  /** Send what is kept; the same id sent twice is written once. What is refused stays, with why. */
  async send() {
    if (this.sending) return;
    this.sending = true;
    for (const { refused, ...comment } of kept(this.unsent)) {
      const answer = await ask("POST", `/v1/assets/${this.asset}/comments`, comment);
      if (answer.ok) {
        this.comments = [...this.comments.filter((c) => c.id !== answer.body.id), answer.body];
        keep(this.unsent, (all) => all.filter((c) => c.id !== comment.id));
      } else if (answer.status === 0 || answer.status >= 500 || answer.status === 429) {
        say("The comment is kept here and sent when the server can be reached.");
        break;
      } else {
        keep(this.unsent, (all) => all.map((c) => (c.id === comment.id ? { ...comment, refused: told(answer.body) } : c)));
        if (answer.status === 401) break;
      }
    }
    this.sending = false;
    this.draw();
  }

  // ------------------------------------------------------------------ placing

  #drawing(signal) {
    const layer = this.room.querySelector("[data-layer]");
    let from = null;
    layer?.addEventListener("pointerdown", (event) => {
      if (!this.tool || event.target.closest("button") || event.button) return;
      event.stopPropagation();
      layer.setPointerCapture(event.pointerId);
      from = this.viewer.at(event);
      this.#placed(from, from);
    });
    layer?.addEventListener("pointermove", (event) => from && this.#placed(from, this.viewer.at(event)));
    for (const end of ["pointerup", "pointercancel"]) {
      layer?.addEventListener(end, (event) => {
        if (!from) return;
        const to = this.viewer.at(event);
        from = null;
        if (this.tool === "box" && (this.draft.width < SMALLEST || this.draft.height < SMALLEST)) this.draft = { ...BEGUN.box, x: rounded(within(to.x - 0.1, 0.8)), y: rounded(within(to.y - 0.1, 0.8)) };
        if (this.tool === "path" && this.draft.points.length < 2) this.draft = null;
        this.#keepDraft();
        this.draw();
        if (this.draft) this.form.elements.text.focus();
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
      const points = from === to ? [] : this.draft?.points ?? [];
      const last = points.at(-1);
      if (last && Math.hypot(last[0] - x, last[1] - y) < 0.006) return;
      const thinned = points.length < MOST_POINTS ? points : points.filter((_, i) => i % 2 === 0);
      this.draft = { kind: "path", points: [...thinned, [x, y]] };
    }
    this.draw();
  }

  /** What is drawn and written so far outlives a reload. */
  #keepDraft() {
    const text = this.form?.elements.text.value ?? "";
    if (this.draft || text) localStorage.setItem(this.begun, JSON.stringify({ tool: this.tool, draft: this.draft, text }));
    else localStorage.removeItem(this.begun);
  }

  #takeUp() {
    const begun = JSON.parse(localStorage.getItem(this.begun) ?? "null");
    if (!begun || !this.form || !this.viewer) return;
    this.form.elements.text.value = begun.text;
    if (begun.draft) {
      this.use(begun.tool);
      this.draft = begun.draft;
      this.#keepDraft();
    }
    say("What you had begun to write is here again.");
  }

  #written(event) {
    event.preventDefault();
    const text = this.form.elements.text.value.trim();
    if (!text) return;
    const comment = { id: crypto.randomUUID(), version_id: this.version, text, region: this.draft };
    keep(this.unsent, (all) => [...all, comment]);
    this.form.reset();
    this.draft = null;
    this.use(null);
    localStorage.removeItem(this.begun);
    this.send();
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
      const drop = Object.assign(document.createElement("button"), { type: "button", textContent: "Discard" });
      drop.addEventListener("click", () => {
        keep(this.unsent, (all) => all.filter((c) => c.id !== comment.id));
        this.draw();
      });
      row.append(drop);
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
