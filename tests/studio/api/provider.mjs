// An OpenID provider for the tests, in a process of its own: `node provider.mjs oidc-provider/lib/index.js CLIENTS`.
// Its accounts are what was last put to /accounts, as {"sub": {claims}}. The first line that it prints is its address.
import { createServer } from "node:http";
import { randomBytes } from "node:crypto";
import { pathToFileURL } from "node:url";

const [entry, clients] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(entry));
let accounts = {};

const server = createServer();
await new Promise((listens) => server.listen(0, "127.0.0.1", listens));
const issuer = `http://127.0.0.1:${server.address().port}`;
const provider = new Provider(issuer, {
  clients: JSON.parse(clients),
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"] },
  cookies: { keys: [randomBytes(16).toString("hex")] },
  findAccount: (context, sub) =>
    accounts[sub] && { accountId: sub, claims: () => ({ sub, ...accounts[sub] }) },
  pkce: { required: () => true },
});
const answer = provider.callback();

server.on("request", async (request, response) => {
  if (request.method !== "PUT" || request.url !== "/accounts") return answer(request, response);
  let body = "";
  for await (const part of request) body += part;
  accounts = JSON.parse(body);
  return response.end();
});
console.log(issuer);
