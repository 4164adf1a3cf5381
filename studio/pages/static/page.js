// What every page has: asking /v1, saying what happened, roving focus in a grid, signing out.

const csrf = document.querySelector('meta[name="csrf"]').content;

/** Ask /v1; answers {ok, status, body}. A lost connection is status 0. */
export async function ask(method, address, body, headers = {}) {
  try {
    const answer = await fetch(address, {
      method, credentials: "same-origin",
      headers: { "X-CSRF-Token": csrf, ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    return { ok: answer.ok, status: answer.status, body: text ? JSON.parse(text) : {} };
  } catch {
    return { ok: false, status: 0, body: { title: "The server cannot be reached.", next_step: "Try again when it can." } };
  }
}

let quiet = 0;
/** Say it to eyes and screen readers; `undo` is {name, act}. */
export function say(words, undo) {
  const place = document.getElementById("said");
  place.replaceChildren(words);
  if (undo) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = undo.name;
    button.addEventListener("click", undo.act);
    place.append(button);
  }
  clearTimeout(quiet);
  quiet = setTimeout(() => place.replaceChildren(), undo ? 12000 : 6000);
}

export const told = (problem) => [problem.title, problem.next_step].filter(Boolean).join(" ");

/** Whether a key press is meant for a field and not for the page. */
export const typing = (event) =>
  event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, [contenteditable], dialog[open]") !== null;

/** One picture of a grid is in the tab order; arrows, J and K go on from it. */
function rove() {
  for (const grid of document.querySelectorAll("[data-roving]")) {
    const all = [...grid.querySelectorAll(".frame")], at = all.find((l) => l.tabIndex === 0 && l.dataset.roves);
    for (const link of all) {
      link.dataset.roves = "true";
      link.tabIndex = link === (at ?? all[0]) ? 0 : -1;
    }
  }
}
document.addEventListener("keydown", (event) => {
  const grid = event.target.closest?.("[data-roving]");
  if (!grid || typing(event)) return;
  const all = [...grid.querySelectorAll(".frame")], here = all.indexOf(document.activeElement);
  if (here < 0) return;
  const top = (l) => l.getBoundingClientRect().top, across = Math.max(1, all.filter((l) => top(l) === top(all[here])).length);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, j: 1, k: -1 }[event.key];
  const next = step === undefined ? undefined : all[Math.min(all.length - 1, Math.max(0, here + step))];
  if (!next) return;
  event.preventDefault();
  all[here].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
document.addEventListener("htmx:after:swap", rove);
rove();

document.querySelector("[data-sign-out]")?.addEventListener("click", async () => {
  const answer = await ask("DELETE", "/v1/sessions/current");
  answer.ok || answer.status === 401 ? location.assign("/sign-in") : say(told(answer.body));
});
