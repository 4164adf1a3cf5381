// Character sheets: asking for one.
import { ask, onceSent, say, told } from "./page.js";

const form = document.querySelector("[data-sheet-form]");

/** What the form asks for; rows are words by commas, and what is empty is not said. */
function wanted() {
  const chosen = form.elements.who.selectedOptions[0].dataset;
  const body = { brand: chosen.brand, character: chosen.character };
  for (const field of form.elements) {
    if (!field.name || field.name === "who") continue;
    const value = field.value.trim();
    if ("many" in field.dataset) body[field.name] = value.split(",").map((word) => word.trim()).filter(Boolean);
    else if (value) body[field.name] = field.type === "number" ? Number(value) : value;
  }
  return body;
}

let key; // of what was asked for last: sent twice it makes one sheet
form?.addEventListener("input", () => (key = undefined));
onceSent(form, async () => {
  const answer = await ask("POST", "/v1/character-sheets", wanted(), { "Idempotency-Key": (key ??= crypto.randomUUID()) });
  if (answer.ok) location.assign(`/runs/${answer.body.id}`);
  else say(told(answer.body));
  return answer.ok;
});
