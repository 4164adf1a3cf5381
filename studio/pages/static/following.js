// A run: following it as it is made, cancelling it.
import { ask, say, told } from "./page.js";

const run = document.querySelector("[data-run]");

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
