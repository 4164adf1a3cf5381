// Choosing many and deciding on them at once; undo takes one's own decisions back.
import { ask, say, told, typing } from "./page.js";

const bulk = document.querySelector("[data-bulk]");
const boxes = [...document.querySelectorAll("[data-pick]")];
let last = null;

const cardOf = (box) => box.closest(".card");
const picked = () => boxes.filter((box) => box.checked).map(cardOf);

function shown() {
  for (const box of boxes) cardOf(box).toggleAttribute("data-picked", box.checked);
  const count = picked().length;
  bulk.hidden = count === 0;
  bulk.querySelector("[data-count]").textContent = `${count} selected`;
}

for (const box of boxes) {
  box.addEventListener("click", (event) => {
    if (event.shiftKey && last) {
      const [from, to] = [boxes.indexOf(last), boxes.indexOf(box)].sort((a, b) => a - b);
      for (const between of boxes.slice(from, to + 1)) between.checked = box.checked;
    }
    last = box;
    shown();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "x" || typing(event)) return;
  const box = document.activeElement?.closest(".card")?.querySelector("[data-pick]");
  if (box) box.click();
});

bulk?.querySelector("[data-clear]").addEventListener("click", () => {
  for (const box of boxes) box.checked = false;
  shown();
});

for (const button of bulk?.querySelectorAll("[data-decide]") ?? []) {
  button.addEventListener("click", async () => {
    const cards = picked(), reason = bulk.querySelector("input[name=reason]").value;
    const items = cards.map((card) => ({
      asset_id: card.dataset.asset, row_version: Number(card.dataset.rowVersion), sha256: card.dataset.sha256,
      verdict: button.dataset.decide, reason,
    }));
    const all = [...bulk.querySelectorAll("[data-decide]")];
    all.forEach((b) => { b.disabled = true; });
    const answer = await ask("POST", "/v1/decisions", { items }, { "Idempotency-Key": keyOf(items) });
    all.forEach((b) => { b.disabled = false; });
    if (!answer.ok) return say(told(answer.body));
    const done = [], refused = [];
    for (const result of answer.body.results) {
      const card = cards.find((c) => c.dataset.asset === result.asset_id);
      if (result.problem) refused.push(result.problem);
      else {
        done.push(result.asset);
        redrawn(card, result.asset);
        card.querySelector("[data-pick]").checked = false;
      }
    }
    shown();
    const words = `${done.length} decided` + (refused.length ? `, ${refused.length} refused: ${told(refused[0])}` : "");
    say(words, done.length ? { name: "Undo", act: () => undo(done) } : undefined);
  });
}

let lastAsked = "", lastKey = "";
/** The same decisions sent again, as after a lost answer, go under the same key: they are made once. */
function keyOf(items) {
  const asked = JSON.stringify(items);
  if (asked !== lastAsked) [lastAsked, lastKey] = [asked, crypto.randomUUID()];
  return lastKey;
}

async function undo(assets) {
  let back = 0, refusal = "";
  for (const asset of assets) {
    const answer = await ask("POST", `/v1/assets/${asset.id}/take-backs`, undefined, { "If-Match": `"${asset.row_version}"` });
    if (answer.ok) {
      back += 1;
      redrawn(document.querySelector(`.card[data-asset="${asset.id}"]`), answer.body);
    } else refusal = told(answer.body);
  }
  say(`${back} taken back` + (refusal ? `; ${refusal}` : ""));
}

function redrawn(card, asset) {
  card.dataset.rowVersion = asset.row_version;
  card.dataset.review = asset.review;
  const state = card.querySelector(".state");
  state.dataset.state = asset.review;
  state.textContent = [asset.review, asset.waits_at.join(", ")].filter(Boolean).join(" · ");
}

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
