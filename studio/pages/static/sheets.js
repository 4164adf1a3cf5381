// Character sheets: asking for one, following it as it is made, cancelling it.
import { ask, say, told } from "./page.js";

const form = document.querySelector("[data-sheet-form]"), run = document.querySelector("[data-run]");

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

let key; // of what was asked for last: pressed twice it makes one sheet
form?.addEventListener("input", () => (key = undefined));
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await ask("POST", "/v1/character-sheets", wanted(), { "Idempotency-Key": (key ??= crypto.randomUUID()) });
  if (answer.ok) location.assign(`/runs/${answer.body.id}`);
  else say(told(answer.body));
});

if (run && "going" in run.dataset) {
  const events = new EventSource(run.dataset.events);
  const show = (event) => {
    const now = JSON.parse(event.data);
    run.querySelector("[data-phase]").textContent = now.phase;
    run.querySelector("[data-done]").textContent = now.done;
    run.querySelector("[data-total]").textContent = now.total;
    Object.assign(run.querySelector("progress"), { max: now.total || 1, value: now.done });
  };
  events.addEventListener("progress", show);
  events.addEventListener("end", (event) => {
    events.close();
    show(event);
    location.reload();
  });
}
run?.querySelector("[data-cancel]")?.addEventListener("click", async () => {
  const answer = await ask("POST", `/v1/runs/${run.dataset.run}/cancellation`);
  if (!answer.ok) say(told(answer.body));
});
