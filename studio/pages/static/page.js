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

for (const grid of document.querySelectorAll("[data-roving]")) {
  const links = () => [...grid.querySelectorAll(".frame")];
  links().forEach((link, i) => { link.tabIndex = i === 0 ? 0 : -1; });
  grid.addEventListener("keydown", (event) => {
    const all = links(), here = all.indexOf(document.activeElement);
    if (here < 0) return;
    const across = Math.max(1, all.filter((l) => l.getBoundingClientRect().top === all[0].getBoundingClientRect().top).length);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, j: 1, k: -1 }[event.key];
    const next = step === undefined ? undefined : all[Math.min(all.length - 1, Math.max(0, here + step))];
    if (!next) return;
    event.preventDefault();
    all[here].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

document.querySelector("[data-sign-out]")?.addEventListener("click", async () => {
  const answer = await ask("DELETE", "/v1/sessions/current");
  answer.ok || answer.status === 401 ? location.assign("/sign-in") : say(told(answer.body));
});
