// Settings: each form and button says in data-send what it asks of /v1; then the page is read anew.
import { ask, say, switchKeys, told } from "./page.js";

const once = document.querySelector("[data-shown]"), asking = document.querySelector("[data-sure-dialog]");

/** What a form says, as /v1 takes it: numbers as numbers, boxes of one name as a list, nothing for what is empty. */
function said(form) {
  const body = {};
  for (const field of form.elements) {
    if (!field.name || (field.type === "checkbox" && !field.checked) || field.value.trim() === "") continue;
    if ("many" in field.dataset) (body[field.name] ??= []).push(field.value);
    else body[field.name] = field.type === "number" ? Number(field.value) : field.value.trim();
  }
  return body;
}

/** Whether they are sure; a window of its own says what it will do. */
function sure(name, words) {
  asking.querySelector("[data-sure-title]").textContent = `${name}?`;
  asking.querySelector("[data-sure-words]").textContent = words;
  asking.showModal();
  return new Promise((answered) => {
    const ended = (yes) => () => { asking.close(); answered(yes); };
    asking.querySelector("[data-sure-yes]").onclick = ended(true);
    asking.querySelector("[data-sure-no]").onclick = ended(false);
    asking.oncancel = ended(false);
  });
}

async function send(what, body) {
  const [method, place] = what.split(/ (.*)/s);
  const address = place.replace(/\{(\w+)\}/g, (_, name) => {
    const value = encodeURIComponent(body[name]);
    delete body[name];
    return value;
  });
  const answer = await ask(method, address, body, method === "GET" ? {} : { "Idempotency-Key": crypto.randomUUID() });
  if (!answer.ok) return say(told(answer.body));
  const secret = answer.body.secret ?? answer.body.address;
  if (!secret) return location.reload();
  const field = document.querySelector("[data-shown-value]");
  field.value = secret;
  once.addEventListener("close", () => location.reload(), { once: true });
  once.showModal();
  field.select();
}

for (const form of document.querySelectorAll("form[data-send]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form.dataset.send, said(form));
  });
}
for (const button of document.querySelectorAll("button[data-send]")) {
  button.addEventListener("click", async () => {
    if (button.dataset.sure && !(await sure(button.textContent, button.dataset.sure))) return;
    send(button.dataset.send);
  });
}

switchKeys(document);
