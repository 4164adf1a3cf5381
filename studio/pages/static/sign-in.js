// The token stands behind the #, which no server sees; it is used once and taken out of the address.
import { ask, told } from "./page.js";

const token = location.hash.slice(1);
if (token) {
  history.replaceState(null, "", "/sign-in");
  const answer = await ask("POST", "/v1/sessions", { link: token });
  if (answer.ok) location.assign("/");
  else document.querySelector("[data-told]").textContent = told(answer.body);
}
