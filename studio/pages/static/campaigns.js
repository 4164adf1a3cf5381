// Campaigns: starting or scheduling one from a brief, pausing and ending what runs by the calendar.
import { ask, onceSent, say, told } from "./page.js";

const form = document.querySelector("[data-brief-form]"), schedule = document.querySelector("[data-schedule]");

const keys = {}; // of what was asked for last: sent twice it starts once
form?.addEventListener("input", () => Object.keys(keys).forEach((name) => delete keys[name]));
onceSent(form, async (event) => {
  const when = event.submitter?.value ?? "now", mistakes = form.querySelector("[data-mistakes]");
  const body = { brief: form.elements.brief.value, reason: form.elements.reason.value.trim() };
  const address = when === "now" ? "/v1/campaigns" : "/v1/schedules";
  const answer = await ask("POST", address, body, { "Idempotency-Key": (keys[when] ??= crypto.randomUUID()) });
  if (answer.ok) {
    location.assign(when === "now" ? `/runs/${answer.body.id}` : `/schedules/${answer.body.id}`);
    return true;
  }
  mistakes.textContent = answer.body.problems?.map((p) => (p.line ? `Line ${p.line}: ${p.says}` : p.says)).join("\n") ?? told(answer.body);
  mistakes.hidden = false;
  mistakes.scrollIntoView({ block: "nearest" });
  return false;
});

for (const button of schedule?.querySelectorAll("[data-change]") ?? [])
  button.addEventListener("click", async () => {
    const change = button.dataset.change, address = `/v1/schedules/${schedule.dataset.schedule}`;
    const act = async () => {
      const answer = await (change ? ask("POST", `${address}/${change}`) : ask("DELETE", address));
      if (answer.ok) location.reload();
      else say(told(answer.body));
    };
    if (change) await act();
    else say("It will never run again; what it made stays.", { name: "End it", act });
  });
