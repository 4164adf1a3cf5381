// Taking a reference back, and reading what that reached.
import { ask, say, told } from "./page.js";

const dialog = document.querySelector("[data-recall-dialog]"), form = document.querySelector("[data-recall-form]");
const report = document.querySelector("[data-recall-report]");
let reference = "";

for (const button of document.querySelectorAll("[data-recall]")) {
  button.addEventListener("click", () => {
    reference = button.closest("[data-reference]").dataset.reference;
    report.hidden = true;
    form.hidden = false;
    form.reset();
    dialog.showModal();
  });
}

document.querySelector("[data-recall-close]")?.addEventListener("click", () => dialog.close());
dialog?.addEventListener("close", () => report.hidden || location.reload());

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await ask("POST", `/v1/references/${reference}/recall`, { reason: form.elements.reason.value }, { "Idempotency-Key": crypto.randomUUID() });
  if (!answer.ok) {
    dialog.close();
    return say(told(answer.body));
  }
  const reached = answer.body.report, suspended = reached.assets.filter((a) => a.suspended);
  const lines = [
    `${suspended.length} released pictures are suspended.`, `${reached.cancelled_jobs.length} queued jobs are cancelled.`,
    reached.addresses.length ? "It had gone to:" : "It had been delivered nowhere.", ...reached.addresses,
  ];
  report.replaceChildren(...lines.map((line) => Object.assign(document.createElement("p"), { textContent: line })));
  form.hidden = true;
  report.hidden = false;
});
