// The review room: decide, compare, zoom, pin, all by keyboard; comments are kept here until the server has them.
import { ask, say, told, typing } from "./page.js";

const room = document.querySelector("[data-room]");
const { asset, sha256, version, me } = room.dataset;
const find = (what) => room.querySelector(what);

// ------------------------------------------------------------------ deciding

const form = find("[data-decide-form]");
let deciding = false;
const keys = {}; // one for each thing that is said, until it is answered: said again, it counts once

async function decide(verdict) {
  const seen = find("[data-picture]");
  if (!form || deciding || !seen?.complete || !seen.naturalWidth || !form.querySelector(`[data-verdict="${verdict}"]`)) return;
  const reason = form.elements.reason.value.trim();
  if (verdict !== "approve" && !reason) {
    form.elements.reason.focus();
    return say(`Say why, then press ${verdict === "reject" ? "Reject" : "Changes"} again.`);
  }
  deciding = true;
  const body = { verdict, reason, sha256, stage: form.elements.stage?.value ?? null };
  keys[JSON.stringify(body)] ??= crypto.randomUUID();
  const answer = await ask("POST", `/v1/assets/${asset}/decisions`, body, { "If-Match": `"${room.dataset.rowVersion}"`, "Idempotency-Key": keys[JSON.stringify(body)] });
  deciding = false;
  if (!answer.ok) return say(told(answer.body), answer.status === 412 ? { name: "Look again", act: () => location.reload() } : undefined);
  sessionStorage.setItem("said", `${answer.body.shot} #${answer.body.variant + 1}: ${answer.body.review}`);
  location.assign(room.dataset.next || (new URLSearchParams(location.search).get("from") === "queue" ? "/" : location.href));
}

for (const button of form?.querySelectorAll("[data-verdict]") ?? []) button.addEventListener("click", () => decide(button.dataset.verdict));
form?.addEventListener("submit", (event) => event.preventDefault());

for (const other of document.querySelectorAll("[data-event-form]")) {
  other.addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await ask("POST", `/v1/assets/${asset}/${other.dataset.eventForm}`, { reason: other.elements.reason.value }, { "If-Match": `"${room.dataset.rowVersion}"` });
    answer.ok ? location.reload() : say(told(answer.body));
  });
}

const left = sessionStorage.getItem("said");
if (left) {
  sessionStorage.removeItem("said");
  say(left);
}

// ------------------------------------------------------------------ looking

const other = find("[data-other]"), slider = find("[data-slider]"), pictures = find("[data-pictures]");
const pressed = (name, on) => find(`[data-do="${name}"]`)?.setAttribute("aria-pressed", String(on));

function compare(address) {
  if (!other || !slider) return;
  const on = Boolean(address) && !(other.src.endsWith(address) && !other.hidden);
  if (on) other.src = address;
  other.hidden = slider.hidden = !on;
  pressed("compare", on);
  for (const button of document.querySelectorAll("[data-compare]")) button.setAttribute("aria-pressed", String(on && button.dataset.compare === address));
}

slider?.querySelector("input").addEventListener("input", (event) => pictures.style.setProperty("--split", `${event.target.value}%`));
for (const button of document.querySelectorAll("[data-compare]")) button.addEventListener("click", () => compare(button.dataset.compare));

const acts = {
  compare: () => compare(other?.hidden ? document.querySelector("[data-compare]")?.dataset.compare : null),
  zoom: () => pressed("zoom", room.toggleAttribute("data-zoomed")),
  pin: () => pinning(!room.hasAttribute("data-pinning")),
  help: () => document.querySelector("[data-help]").showModal(),
};
for (const button of room.querySelectorAll("[data-do]")) button.addEventListener("click", () => acts[button.dataset.do]?.());

// ------------------------------------------------------------------ comments and pins

const list = find("[data-comments]"), pins = find("[data-pins]"), writing = find("[data-comment-form]"), note = find("[data-pin-note]");
const unsentKey = `unsent ${me} ${asset}`; // nobody else's words are sent from a browser that is shared
let comments = JSON.parse(document.querySelector("[data-comments-json]").textContent);
const kept = () => JSON.parse(localStorage.getItem(unsentKey) ?? "[]");
let unsent = kept();

/** Change what is kept, on what another tab may have kept meanwhile. */
function keep(change) {
  unsent = change(kept());
  localStorage.setItem(unsentKey, JSON.stringify(unsent));
}
let draft = null;

function pinning(on) {
  room.toggleAttribute("data-pinning", on);
  pressed("pin", on);
  if (on) {
    draft ??= { kind: "pin", x: 0.5, y: 0.5 };
    say("Click where the pin belongs, or move it with the arrow keys, then write.");
  } else draft = null;
  drawn();
}

pictures?.addEventListener("click", (event) => {
  if (!room.hasAttribute("data-pinning") || event.target.closest(".pins")) return;
  const box = pictures.getBoundingClientRect();
  draft = { kind: "pin", x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  drawn();
  writing.elements.text.focus();
});

function drawn() {
  const all = [...comments, ...unsent.map((c) => ({ ...c, by: me, version: "", unsent: true }))];
  list.replaceChildren(...all.map((c, i) => item(c, i + 1)));
  pins?.replaceChildren(...all.flatMap((c, i) => (c.region && c.version_id === version ? [pin(c.region, String(i + 1), c.text)] : [])));
  if (draft) pins?.append(pin(draft, "+", "the pin that you are placing", true));
  if (note) {
    note.hidden = !draft;
    note.textContent = draft ? `Pinned at ${Math.round(draft.x * 100)} %, ${Math.round(draft.y * 100)} %.` : "";
  }
}

function item(comment, number) {
  const row = document.createElement("li"), words = document.createElement("p"), who = document.createElement("span");
  row.toggleAttribute("data-unsent", Boolean(comment.unsent));
  who.className = "faint";
  who.textContent = `${number} · ${comment.by}` + (comment.unsent ? ` · not sent yet${comment.refused ? `: ${comment.refused}` : ""}` : comment.version_id === version ? "" : ` · version ${comment.version}`) + (comment.edited ? " · corrected" : "") + (comment.region ? ` · ${comment.region.kind}` : "");
  words.textContent = comment.text;
  row.append(who, words);
  if (comment.refused) {
    const drop = Object.assign(document.createElement("button"), { type: "button", textContent: "Discard" });
    drop.addEventListener("click", () => {
      keep((all) => all.filter((c) => c.id !== comment.id));
      drawn();
    });
    row.append(drop);
  }
  return row;
}

function pin(region, label, text, isDraft = false) {
  const row = document.createElement("li"), button = document.createElement("button");
  const [x, y] = region.kind === "path" ? region.points[0] : [region.x + (region.width ?? 0) / 2, region.y + (region.height ?? 0) / 2];
  button.type = "button";
  button.textContent = label;
  button.title = text;
  button.setAttribute("aria-label", `Pin ${label}: ${text}`);
  button.style.left = `${x * 100}%`;
  button.style.top = `${y * 100}%`;
  if (isDraft) button.className = "draft";
  row.append(button);
  return row;
}

let sending = false;
/** Kept in this browser until the server has it; sent again under the same id, it is written once. What is refused stays, with why. */
async function send() {
  if (sending) return;
  sending = true;
  for (const { refused, ...comment } of kept()) {
    const answer = await ask("POST", `/v1/assets/${asset}/comments`, comment);
    if (answer.ok) {
      comments = [...comments.filter((c) => c.id !== answer.body.id), answer.body];
      keep((all) => all.filter((c) => c.id !== comment.id));
    } else if (answer.status === 0 || answer.status >= 500 || answer.status === 429) {
      say("The comment is kept here and sent when the server can be reached.");
      break;
    } else {
      keep((all) => all.map((c) => (c.id === comment.id ? { ...comment, refused: told(answer.body) } : c)));
      if (answer.status === 401) break;
    }
  }
  sending = false;
  drawn();
}

writing?.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = writing.elements.text.value.trim();
  if (!text) return;
  const comment = { id: crypto.randomUUID(), version_id: version, text, region: draft };
  keep((all) => [...all, comment]);
  writing.reset();
  pinning(false);
  send();
});

addEventListener("online", send);
setInterval(() => unsent.some((c) => !c.refused) && send(), 5000);
drawn();
if (unsent.length) send();

// ------------------------------------------------------------------ making it anew

const retaking = document.querySelector("[data-retake]"), wishes = document.querySelector("[data-retake-form]");
const numbers = ["scale", "guidance", "steps", "seed"], texts = ["prompt", "negative_prompt"];
let current = {};

/** What the form asks for, in the kinds that /v1 takes; an empty number stays as it is, an empty seed is another. */
function wished() {
  const told = Object.fromEntries(texts.map((n) => [n, wishes.elements[n].value]));
  for (const n of numbers) if (wishes.elements[n].value !== "") told[n] = Number(wishes.elements[n].value);
  return told;
}

function changesShown() {
  const rows = Object.entries(wished()).filter(([n, v]) => (current[n] ?? "") !== v).map(([n, v]) => {
    const row = document.createElement("li"), before = document.createElement("del"), after = document.createElement("ins");
    before.textContent = current[n] ?? "–";
    after.textContent = v;
    row.append(`${n.replace("_", " ")}: `, before, " → ", after);
    return row;
  });
  if (wishes.elements.seed.value === "") rows.push(Object.assign(document.createElement("li"), { textContent: "seed: another" }));
  document.querySelector("[data-retake-changes]").replaceChildren(...rows);
}

async function openRetake() {
  const answer = await ask("GET", `/v1/assets/${asset}/retake`);
  if (!answer.ok) return say(told(answer.body));
  const { settings, changes, number, most } = answer.body;
  current = { ...settings, ...Object.fromEntries(changes.map((c) => [c.name, c.before])) };
  for (const n of [...texts, ...numbers]) wishes.elements[n].value = settings[n] ?? "";
  document.querySelector("[data-retake-count]").textContent = `Retake ${number} of ${most}. Comments and reasons are put behind the prompt; change what you like.`;
  changesShown();
  retaking.showModal();
}

wishes?.addEventListener("input", changesShown);
document.querySelector("[data-retake-close]")?.addEventListener("click", () => retaking.close());
wishes?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await ask("POST", `/v1/assets/${asset}/retake`, { sha256, wishes: wished() }, { "If-Match": `"${room.dataset.rowVersion}"`, "Idempotency-Key": crypto.randomUUID() });
  retaking.close();
  if (!answer.ok) return say(told(answer.body));
  sessionStorage.setItem("said", "It is queued, and comes into review when it is made.");
  location.reload();
});
acts.retake = openRetake;

// ------------------------------------------------------------------ keys

const keysOn = document.querySelector("[data-keys-on]");
keysOn.checked = localStorage.getItem("keys") !== "off";
keysOn.addEventListener("change", () => localStorage.setItem("keys", keysOn.checked ? "on" : "off"));
const go = (address) => (address ? location.assign(address) : say("There is no other in this list."));

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (event.target.closest("textarea, input")) event.target.blur();
    pinning(false);
    return;
  }
  if (draft && room.hasAttribute("data-pinning") && !typing(event)) {
    const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] }[event.key];
    if (step) {
      event.preventDefault();
      draft = { ...draft, x: Math.min(1, Math.max(0, draft.x + step[0])), y: Math.min(1, Math.max(0, draft.y + step[1])) };
      return drawn();
    }
    if (event.key === "Enter" && event.target === document.body) {
      event.preventDefault();
      return writing.elements.text.focus();
    }
  }
  if (event.repeat && "acr".includes(event.key)) return; // a key that is held decides on one picture
  if (typing(event) || (event.key !== "?" && !keysOn.checked)) return;
  const act = {
    j: () => go(room.dataset.next), k: () => go(room.dataset.previous), a: () => decide("approve"), c: () => decide("request changes"),
    r: () => decide("reject"), s: acts.compare, z: acts.zoom, p: find('[data-do="pin"]') ? acts.pin : undefined, t: find('[data-do="retake"]') ? acts.retake : undefined, "?": acts.help,
  }[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});
