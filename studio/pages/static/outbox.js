// Comments that the server does not have yet, of all assets: kept in this browser, sent from whatever page is open.
import { ask, say, told } from "./page.js";

const me = document.querySelector('meta[name="me"]').content; // nobody else's words are sent from a browser that is shared
const PREFIX = `unsent ${me} `;
const EVERY_MS = 5000;

/** What stands in localStorage under a name; nothing where that cannot be read. */
export function stored(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Put it there; says whether that could be done. */
export function store(name, value) {
  try {
    if (value === null || value.length === 0) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    say("This browser keeps nothing for this page: what is not sent is lost when it closes.");
    return false;
  }
}

export const unsentOf = (asset) => stored(PREFIX + asset, []);
/** Changed on what another tab may have kept meanwhile. */
const change = (asset, how) => store(PREFIX + asset, how(unsentOf(asset)));
const changed = (asset, comment) => document.dispatchEvent(new CustomEvent("outbox", { detail: { asset, comment } }));

export function put(asset, comment) {
  change(asset, (all) => [...all, comment]);
  changed(asset);
  return send();
}

export function drop(asset, id) {
  change(asset, (all) => all.filter((c) => c.id !== id));
  changed(asset);
}

let sending = false;
/** Each under its own id: sent twice, it is written once. What is refused stays, with why. */
export async function send() {
  if (sending) return;
  sending = true;
  const assets = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX)).map((name) => name.slice(PREFIX.length));
  all: for (const asset of assets) {
    for (const { refused, ...comment } of unsentOf(asset)) {
      const answer = await ask("POST", `/v1/assets/${asset}/comments`, comment);
      if (answer.ok) {
        change(asset, (all) => all.filter((c) => c.id !== comment.id));
        changed(asset, answer.body);
      } else if (answer.status === 0 || answer.status >= 500 || answer.status === 429) {
        say("The comment is kept here and sent when the server can be reached.");
        break all;
      } else {
        change(asset, (all) => all.map((c) => (c.id === comment.id ? { ...comment, refused: told(answer.body) } : c)));
        changed(asset);
        if (answer.status === 401) break all;
      }
    }
  }
  sending = false;
}

const waits = () => Object.keys(localStorage).some((name) => name.startsWith(PREFIX) && stored(name, []).some((c) => !c.refused));
if (me) {
  addEventListener("online", send);
  setInterval(() => waits() && send(), EVERY_MS);
  if (Object.keys(localStorage).some((name) => name.startsWith(PREFIX))) send();
}
