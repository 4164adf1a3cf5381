// What every page has: asking /v1, saying what happened, roving focus in a grid, signing out.

const csrf = document.querySelector('meta[name="csrf"]').content;

const PATIENT_S = 5; // of a server that asks to wait, so long at most
const wait = (s) => new Promise((done) => setTimeout(done, s * 1000));

/** Ask /v1; answers {ok, status, body}. A lost connection is status 0; what is too much for the server is asked again when it says.
 * `keepalive`: also when the page is left meanwhile. */
export async function ask(method, address, body, headers = {}, { keepalive = false } = {}) {
  try {
    for (let tries = 0; ; tries += 1) {
      const answer = await fetch(address, {
        method, keepalive, credentials: "same-origin",
        headers: { "X-CSRF-Token": csrf, ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
      const later = Number(answer.headers.get("Retry-After"));
      if (answer.status === 429 && tries < 3 && later > 0 && later <= PATIENT_S) await wait(later);
      else {
        const text = await answer.text();
        return { ok: answer.ok, status: answer.status, body: text ? JSON.parse(text) : {} };
      }
    }
  } catch {
    return { ok: false, status: 0, body: { title: "The server cannot be reached.", next_step: "Try again when it can." } };
  }
}

/** `act` when the form is sent; sent again meanwhile, or once `act` gave true for going on to another page, it does nothing. */
export function onceSent(form, act) {
  let asking = false;
  addEventListener("pageshow", () => (asking = false)); // also where somebody comes back to it
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (asking) return;
    asking = true;
    asking = await act(event);
  });
}

const SAID_MS = 6000;
let quiet = 0;
/** Say it to eyes and screen readers; what comes with something to do, {name, act}, stays until it is done or dismissed. */
export function say(words, todo) {
  const place = document.getElementById("said");
  const button = (name, act) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    made.addEventListener("click", () => {
      place.replaceChildren();
      act?.();
    });
    return made;
  };
  place.replaceChildren(words, ...(todo ? [button(todo.name, todo.act), button("Dismiss")] : []));
  clearTimeout(quiet);
  if (!todo) quiet = setTimeout(() => place.replaceChildren(), SAID_MS);
}

export const told = (problem) => [problem.title, problem.next_step].filter(Boolean).join(" ");

/** Whether a key press is meant for a field and not for the page. */
export const typing = (event) =>
  event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, [contenteditable], dialog[open]") !== null;

const KEYS = "keys"; // in localStorage: "off" where they are switched off
/** The switch in a part of the page that turns the room's keys off and on. */
export function switchKeys(part) {
  const box = part.querySelector("[data-keys-on]");
  box.checked = localStorage.getItem(KEYS) !== "off";
  box.addEventListener("change", () => localStorage.setItem(KEYS, box.checked ? "on" : "off"));
}

/** One picture of a grid is in the tab order; arrows, J and K go on from it. */
export function rove() {
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

// ------------------------------------------------------------------ what goes wrong behind a page that is filled in parts

document.addEventListener("htmx:before:response", (event) => {
  const { raw, status } = event.detail.ctx.response;
  if (raw?.redirected && new URL(raw.url).pathname === "/sign-in") {
    event.preventDefault();
    location.assign("/sign-in");
  } else if (status >= 400) {
    event.preventDefault();
    say(status === 429 ? "Too much was asked for at once: try again in a moment." : "The server could not answer: try again.");
  }
});
document.addEventListener("htmx:error", () => say("The server cannot be reached. Try again when it can."));

document.querySelector("[data-sign-out]")?.addEventListener("click", async () => {
  const answer = await ask("DELETE", "/v1/sessions/current");
  answer.ok || answer.status === 401 ? location.assign("/sign-in") : say(told(answer.body));
});
