// The review room: decide, compare, zoom, pin, and on to the next, all by keyboard. The next rooms are fetched before they are asked for.
import { ask, say, switchKeys, told, typing } from "./page.js";
import { store, stored } from "./outbox.js";
import { Remarks } from "./remarks.js";
import { Retake } from "./retake.js";
import { Viewer } from "./viewer.js";

const FRESH_MS = 10_000; // a room that was fetched longer ago is looked at again once it is shown
const PAN = 0.15, NEARER = 1.4;
const HELD_MS = 600; // on a room that came by itself nothing is decided by a key that was meant for another
let here; // the room that is shown

// ------------------------------------------------------------------ from room to room

const ahead = new Map(); // address -> {at, page}
const asRoom = (address) => address && new URL(address, location.href).pathname.startsWith("/assets/");

/** The page at an address as it is now; null where it is none that can be shown here. */
const read = (address) => fetch(address, { credentials: "same-origin" }).then((answer) => (answer.ok && !answer.redirected ? answer.text() : null), () => null);

/** The same, asked for before if it was. */
function fetched(address) {
  if (!ahead.has(address)) {
    ahead.set(address, { at: Date.now(), page: read(address) });
    while (ahead.size > 8) ahead.delete(ahead.keys().next().value);
  }
  return ahead.get(address);
}

let going = 0; // where the last key led: what was asked for before that comes too late
async function go(address, { push = true } = {}) {
  if (!address) return say("There is no other in this list.");
  if (!asRoom(address)) return location.assign(address);
  const mine = (going += 1), asked = fetched(address), page = await asked.page;
  ahead.delete(address);
  if (mine !== going) return;
  if (!page) return location.assign(address);
  if (push) history.pushState({ room: true }, "", address);
  shown(page);
  if (Date.now() - asked.at > FRESH_MS) lookAgain(address);
}

/** Put the room of a page in the place of the one that is shown. */
function shown(page) {
  const other = new DOMParser().parseFromString(page, "text/html");
  document.title = other.title;
  const main = document.adoptNode(other.querySelector("main"));
  document.querySelector("main").replaceWith(main);
  main.setAttribute("aria-label", main.querySelector("h1").textContent); // what is read out when it has the focus
  main.focus({ preventScroll: true });
  mount();
}

/** What was fetched early may have changed since: then the room is shown as it is now, unless somebody has begun to write. */
async function lookAgain(address) {
  const page = await read(address), room = here?.room;
  if (!page || !room?.isConnected || new URL(address, location.href).href !== location.href || room.querySelector("dialog[open]")) return;
  if ([...room.querySelectorAll("textarea")].some((field) => field.value)) return;
  const now = new DOMParser().parseFromString(page, "text/html").querySelector("[data-room]");
  const differs = (name) => now?.querySelector(name)?.textContent !== room.querySelector(name)?.textContent;
  if (!now || (now.dataset.rowVersion === room.dataset.rowVersion && !differs("[data-comments-json]"))) return;
  shown(page);
  here.hold();
}

const TAKEN = Promise.resolve(true);
let answered = TAKEN; // whether the decision that is being written down was taken; what it holds up is decided after it, or not at all

const MOMENT_MS = 250; // the next picture is waited for so long at most
const after = (ms) => new Promise((done) => setTimeout(done, ms));
const frame = () => new Promise(requestAnimationFrame);

/** When the picture of the room that is shown is on the screen: browser and server are often one machine, and nobody waits for what else there is
 * to do. One that cannot be shown is not waited for. */
function painted() {
  const decoded = document.querySelector("[data-picture]")?.decode().catch(() => null) ?? TAKEN;
  return Promise.race([after(MOMENT_MS), decoded.then(frame).then(frame).then(() => after(0))]); // when its frame is out
}

/** What `act` gives, done once the picture of the room that is `coming` is painted; at once where none comes, and when the page is left. */
function behind(coming, act) {
  return new Promise((done) => {
    const begin = () => {
      removeEventListener("pagehide", begin);
      done(act?.());
      act = null;
    };
    addEventListener("pagehide", begin);
    setTimeout(begin, coming ? MOMENT_MS : 0);
    coming?.then(painted).then(begin);
  });
}

/** Back to a room whose decision was refused, as it is now. */
async function refused(address, words) {
  const page = await read(address);
  if (!page) return say(words, { name: "Back to it", act: () => go(address) });
  history.pushState({ room: true }, "", address);
  shown(page);
  here.hold();
  say(words);
}

addEventListener("popstate", (event) => event.state?.room && go(location.href, { push: false }));
history.replaceState({ room: true }, "");

// ------------------------------------------------------------------ one room

class Room {
  constructor(room) {
    this.room = room;
    this.leaving = new AbortController();
    const { signal } = this.leaving;
    const view = room.querySelector("[data-view]");
    this.viewer = view.querySelector("[data-picture]") ? new Viewer(view) : null;
    this.remarks = new Remarks(room, this.viewer, signal);
    this.retake = new Retake(room);
    this.form = room.querySelector("[data-decide-form]");
    this.why = `reason ${room.dataset.me} ${room.dataset.version}`; // kept until it is said
    if (this.form) {
      this.form.elements.reason.value = stored(this.why, "");
      this.form.addEventListener("input", () => store(this.why, this.form.elements.reason.value || null));
    }
    this.said = {}; // a key for each thing that is said, until it is answered: said again, it counts once
    this.acts = {
      compare: () => this.compare("slide"), beside: () => this.compare("beside"), zoom: () => this.#pressed("zoom", this.viewer?.zoom()),
      help: () => room.querySelector("[data-help]").showModal(), retake: () => this.retake.open(),
    };
    this.#listen();
    this.viewer?.open();
    this.#fetchAhead();
  }

  /** Take no decision for a moment: this room was not asked for. */
  hold() {
    this.heldUntil = performance.now() + HELD_MS;
  }

  leave() {
    this.leaving.abort();
    this.viewer?.close();
  }

  #listen() {
    const { room, form } = this;
    for (const button of form?.querySelectorAll("[data-verdict]") ?? []) button.addEventListener("click", () => this.decide(button.dataset.verdict));
    form?.addEventListener("submit", (event) => event.preventDefault());
    for (const other of room.querySelectorAll("[data-event-form]")) other.addEventListener("submit", (event) => this.#event(event, other));
    for (const button of room.querySelectorAll("[data-do]")) button.addEventListener("click", () => this.acts[button.dataset.do]?.());
    for (const button of room.querySelectorAll("[data-tool]")) button.addEventListener("click", () => this.remarks.use(button.dataset.tool));
    for (const button of room.querySelectorAll("[data-compare]")) button.addEventListener("click", () => this.#with(button.dataset.compare));
    room.querySelector("[data-slider] input")?.addEventListener("input", (event) => this.viewer?.slide(event.target.value / 100));
    for (const link of room.querySelectorAll("[data-go]")) {
      link.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        go(link.href);
      });
    }
    switchKeys(room);
  }

  /** The next rooms with their pictures, one after another, behind the picture that is looked at and the decision that is being written down: the
   * server has one thing to do at a time, and the room that is wanted first is there first. */
  async #fetchAhead() {
    await painted();
    await answered;
    const soon = JSON.parse(this.room.dataset.soon);
    for (const [place, address] of JSON.parse(this.room.dataset.ahead).entries()) {
      if (this.leaving.signal.aborted) return;
      if (soon[place]) new Image().src = soon[place];
      await fetched(address).page;
    }
    if (this.room.dataset.previous && !this.leaving.signal.aborted) fetched(this.room.dataset.previous);
  }

  // ---------------------------------------------------------------- deciding

  async decide(verdict) {
    const { room, form } = this, seen = room.querySelector("[data-picture]");
    if (!form || this.deciding || performance.now() < (this.heldUntil ?? 0) || !form.querySelector(`[data-verdict="${verdict}"]`)) return;
    if (!seen?.complete || !seen.naturalWidth) return say("The picture is not loaded yet.");
    const reason = form.elements.reason.value.trim();
    if (verdict !== "approve" && !reason) {
      form.elements.reason.focus();
      return say(`Say why, then press ${verdict === "reject" ? "Reject" : "Changes"} again.`);
    }
    this.deciding = true;
    if (!(await answered) || here !== this) return void (this.deciding = false); // one after another: the one before was refused
    const { asset, sha256, rowVersion, next } = room.dataset;
    const body = { verdict, reason, sha256, stage: form.elements.stage?.value ?? null };
    const key = (this.said[JSON.stringify(body)] ??= crypto.randomUUID());
    const headers = { "If-Match": `"${rowVersion}"`, "Idempotency-Key": key };
    const from = location.href, coming = next ? go(next) : null; // it is looked at while this one is written down; nothing is decided on it before
    const asked = behind(coming, () => ask("POST", `/v1/assets/${asset}/decisions`, body, headers, { keepalive: true }));
    const mine = (answered = asked.then((answer) => answer.ok));
    await coming;
    const landed = here, answer = await asked;
    this.deciding = false;
    if (answered === mine) answered = TAKEN; // whatever came of it, it holds nothing up any more
    if (answer.ok) store(this.why, null);
    const words = answer.ok ? `${answer.body.shot} #${answer.body.variant + 1}: ${answer.body.review}` : told(answer.body);
    if (!answer.ok && !next) return say(words, answer.status === 412 ? { name: "Look again", act: () => location.reload() } : undefined);
    if (!answer.ok) return here === landed ? refused(from, words) : say(words, { name: "Back to it", act: () => go(from) });
    if (next || here !== this) return say(words);
    sessionStorage.setItem("said", words);
    location.assign(new URLSearchParams(location.search).get("from") === "queue" ? "/" : location.href);
  }

  /** Whatever a form of the side asks for: its fields, at the address that it names. */
  #event(event, form) {
    event.preventDefault();
    if (form.dataset.eventForm === "releases") say("The files are written …");
    return this.#change(form.dataset.address ?? `/v1/assets/${this.room.dataset.asset}/${form.dataset.eventForm}`, Object.fromEntries(new FormData(form)));
  }

  async #change(address, body) {
    const fields = Object.keys(body).length ? body : undefined;
    const answer = await ask("POST", address, fields, { "If-Match": `"${this.room.dataset.rowVersion}"`, "Idempotency-Key": crypto.randomUUID() });
    if (answer.ok && here === this) location.reload();
    else say(answer.ok ? "That is done." : told(answer.body));
  }

  // ---------------------------------------------------------------- looking

  #pressed(name, on) {
    this.room.querySelector(`[data-do="${name}"]`)?.setAttribute("aria-pressed", String(Boolean(on)));
  }

  /** With the picture that was compared last, else with the first reference; the same again ends it. */
  compare(how) {
    const first = this.room.querySelector("[data-compare]")?.dataset.compare;
    this.#comparing(this.how === how ? null : this.compared ?? first, how);
  }

  #with(address) {
    this.#comparing(this.how && this.compared === address ? null : address, this.how ?? "slide");
  }

  #comparing(address, how) {
    if (!this.viewer) return;
    this.how = address ? how : null;
    if (address) this.compared = address;
    this.viewer.compare(address, how);
    this.room.querySelector("[data-slider]").hidden = this.how !== "slide";
    this.#pressed("compare", this.how === "slide");
    this.#pressed("beside", this.how === "beside");
    for (const button of this.room.querySelectorAll("[data-compare]")) button.setAttribute("aria-pressed", String(Boolean(this.how) && button.dataset.compare === address));
  }

  // ---------------------------------------------------------------- keys

  key(event) {
    if (event.key === "Escape") {
      const within = event.target.closest("textarea, input, select, dialog[open]");
      return within ? within.matches("dialog, dialog *") || within.blur() : this.remarks.tool && this.remarks.use(null);
    }
    if (typing(event) || !this.room.querySelector("[data-keys-on]").checked || this.remarks.key(event)) return;
    if (event.repeat && "acr".includes(event.key)) return; // a key that is held decides on one picture
    const { next, previous } = this.room.dataset, { viewer, acts, remarks } = this;
    const pan = { ArrowLeft: [-PAN, 0], ArrowRight: [PAN, 0], ArrowUp: [0, -PAN], ArrowDown: [0, PAN] }[event.key];
    if (pan && event.target.closest(".side, .bar")) return; // there they scroll
    const can = (name) => this.room.querySelector(name) !== null;
    const act = pan ? () => viewer?.panBy(...pan) : {
      j: () => go(next), k: () => go(previous), a: () => this.decide("approve"), c: () => this.decide("request changes"), r: () => this.decide("reject"),
      s: acts.compare, v: acts.beside, z: acts.zoom, "+": () => viewer?.zoomBy(NEARER), "-": () => viewer?.zoomBy(1 / NEARER),
      p: () => remarks.use("pin"), b: () => remarks.use("box"), d: () => remarks.use("path"), t: can('[data-do="retake"]') ? acts.retake : undefined, "?": acts.help,
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

function mount() {
  here?.leave();
  here = new Room(document.querySelector("[data-room]"));
  document.documentElement.scrollTop = 0;
}

document.addEventListener("keydown", (event) => here.key(event));
mount();
const left = sessionStorage.getItem("said");
if (left) {
  sessionStorage.removeItem("said");
  say(left);
}
