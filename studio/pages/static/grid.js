// The grid: endless, with only what is near on the page; choosing many and deciding on them at once; filters that are kept.
import { ask, rove, say, told, typing } from "./page.js";

// ------------------------------------------------------------------ blocks: one that is far from what is seen is kept beside the page

const away = new Map(); // block -> its cards, while it is far
const near = new IntersectionObserver((seen) => {
  for (const { target: block, isIntersecting } of seen) {
    const cards = away.get(block);
    if (isIntersecting && cards) {
      block.append(cards);
      block.style.height = "";
      away.delete(block);
    } else if (!isIntersecting && !cards && block.isConnected && !block.contains(document.activeElement)) {
      const kept = document.createDocumentFragment();
      block.style.height = `${block.getBoundingClientRect().height}px`;
      kept.append(...block.childNodes);
      away.set(block, kept);
    }
  }
  rove();
}, { rootMargin: "1600px" });

const blocks = () => [...document.querySelectorAll("[data-block]")];
const everywhere = (what) => blocks().flatMap((block) => [...(away.get(block) ?? block).querySelectorAll(what)]);
const cardOf = (box) => box.closest(".card");

function watched() {
  for (const block of away.keys()) if (!block.isConnected) away.delete(block);
  near.disconnect();
  for (const block of blocks()) near.observe(block);
  shown();
}

// ------------------------------------------------------------------ filters

document.querySelector("[data-filters]").addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (!value.trim()) formData.delete(name);
});
document.addEventListener("htmx:after:swap", watched);

const saving = document.querySelector("[data-save-dialog]"), saveForm = document.querySelector("[data-save-form]");
document.querySelector("[data-save]").addEventListener("click", () => {
  if (![...new URLSearchParams(location.search).keys()].length) return say("There are no filters to save: choose some first.");
  saving.showModal();
});
document.querySelector("[data-save-close]").addEventListener("click", () => saving.close());
saveForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const filters = Object.fromEntries([...new URLSearchParams(location.search)].filter(([name, value]) => value && name !== "after"));
  const answer = await ask("PUT", `/v1/filters/${encodeURIComponent(saveForm.elements.name.value.trim())}`, { filters });
  saving.close();
  answer.ok ? location.reload() : say(told(answer.body));
});
for (const button of document.querySelectorAll("[data-forget]")) {
  button.addEventListener("click", async () => {
    const answer = await ask("DELETE", `/v1/filters/${encodeURIComponent(button.dataset.forget)}`);
    if (!answer.ok) return say(told(answer.body));
    button.closest(".chip").remove();
    say(`${button.dataset.forget} is kept no more.`);
  });
}

// ------------------------------------------------------------------ choosing many

const bulk = document.querySelector("[data-bulk]");
const picked = () => everywhere("[data-pick]:checked").map(cardOf);
let last = null;

function shown() {
  if (!bulk) return;
  for (const box of everywhere("[data-pick]")) cardOf(box).toggleAttribute("data-picked", box.checked);
  const count = picked().length;
  bulk.hidden = count === 0;
  bulk.querySelector("[data-count]").textContent = `${count} selected`;
}

document.addEventListener("click", (event) => {
  const box = event.target.closest("[data-pick]");
  if (!box) return;
  const boxes = everywhere("[data-pick]");
  if (event.shiftKey && last && boxes.includes(last)) {
    const [from, to] = [boxes.indexOf(last), boxes.indexOf(box)].sort((a, b) => a - b);
    for (const between of boxes.slice(from, to + 1)) between.checked = box.checked;
  }
  last = box;
  shown();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "x" || typing(event)) return;
  document.activeElement?.closest(".card")?.querySelector("[data-pick]")?.click();
});

bulk?.querySelector("[data-clear]").addEventListener("click", () => {
  for (const box of everywhere("[data-pick]")) box.checked = false;
  shown();
});

// ------------------------------------------------------------------ deciding on many, and taking it back

for (const button of bulk?.querySelectorAll("[data-decide]") ?? []) {
  button.addEventListener("click", async () => {
    const cards = picked(), reason = bulk.querySelector("input[name=reason]").value;
    const items = cards.map((card) => ({
      asset_id: card.dataset.asset, row_version: Number(card.dataset.rowVersion), sha256: card.dataset.sha256,
      verdict: button.dataset.decide, reason,
    }));
    const all = [...bulk.querySelectorAll("[data-decide]")];
    all.forEach((b) => { b.disabled = true; });
    const results = await decided(items);
    all.forEach((b) => { b.disabled = false; });
    const done = [], refused = [];
    for (const result of results) {
      if (result.problem) refused.push(result.problem);
      else {
        done.push(result.asset);
        const box = redrawn(result.asset)?.querySelector("[data-pick]");
        if (box) box.checked = false;
      }
    }
    shown();
    const words = `${done.length} decided` + (refused.length ? `, ${refused.length} refused: ${told(refused[0])}` : "");
    say(words, done.length ? { name: "Undo", act: () => undo(done) } : undefined);
  });
}

const AT_ONCE = 200, LARGEST = 700_000; // of /v1: items and, with room for the rest, bytes of a request
let lastAsked = "", lastKeys = [];
/** Their results, as many a request as /v1 takes. Where one is not answered, what is left is told as a problem; sent again, each part goes
    under the same key, and is made once. */
async function decided(items) {
  const asked = JSON.stringify(items), results = [];
  if (asked !== lastAsked) [lastAsked, lastKeys] = [asked, []];
  const size = new TextEncoder().encode(asked).length / items.length, part = Math.max(1, Math.min(AT_ONCE, Math.floor(LARGEST / size)));
  for (let from = 0; from < items.length; from += part) {
    const key = (lastKeys[from] ??= crypto.randomUUID());
    const answer = await ask("POST", "/v1/decisions", { items: items.slice(from, from + part) }, { "Idempotency-Key": key });
    if (!answer.ok) return [...results, ...items.slice(from).map(() => ({ problem: answer.body }))];
    results.push(...answer.body.results);
  }
  return results;
}

async function undo(assets) {
  let back = 0, refusal = "";
  for (const asset of assets) {
    const answer = await ask("POST", `/v1/assets/${asset.id}/take-backs`, undefined, { "If-Match": `"${asset.row_version}"` });
    if (answer.ok) {
      back += 1;
      redrawn(answer.body);
    } else refusal = told(answer.body);
  }
  say(`${back} taken back` + (refusal ? `; ${refusal}` : ""));
}

function redrawn(asset) {
  const card = everywhere(`.card[data-asset="${asset.id}"]`)[0];
  if (!card) return null; // other filters are shown by now
  card.dataset.rowVersion = asset.row_version;
  card.dataset.review = asset.review;
  const state = card.querySelector(".state");
  state.dataset.state = asset.review;
  state.textContent = [asset.review, asset.waits_at.join(", ")].filter(Boolean).join(" · ");
  return card;
}

// ------------------------------------------------------------------ sharing

const sharing = document.querySelector("[data-share-dialog]"), shareForm = document.querySelector("[data-share-form]");
const address = document.querySelector("[data-share-address]");

document.querySelector("[data-share]")?.addEventListener("click", () => {
  address.hidden = true;
  sharing.showModal();
});
document.querySelector("[data-share-close]")?.addEventListener("click", () => sharing.close());
shareForm?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { title, days, password, can_comment: comment } = shareForm.elements;
  const body = { assets: picked().map((card) => card.dataset.asset), title: title.value, days: Number(days.value), can_comment: comment.checked };
  if (password.value) body.password = password.value;
  const answer = await ask("POST", "/v1/shares", body);
  if (!answer.ok) {
    sharing.close();
    return say(told(answer.body));
  }
  address.hidden = false;
  const field = address.querySelector("input");
  field.value = answer.body.address;
  field.select();
});

watched();
