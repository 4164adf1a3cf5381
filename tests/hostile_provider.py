"""An OpenID provider that lies as it is told: `python -m tests.hostile_provider`. It signs everybody in at once.

PUT /lies takes, each if wanted: `about` (changes of the discovery document), `answer` (of what the browser brings back), `claims` (of
the id_token), `header` (of its header), `sign` (a way of signing), `userinfo`, and `raw` (path to [status, body]) for nonsense.
None takes a value out.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jws
from joserfc.jwk import RSAKey

KEYS = {
    kid: RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"}) for kid in ("first", "second", "own")
}
lies: dict[str, Any] = {}
asked: list[dict[str, Any]] = []
codes: dict[str, dict[str, str]] = {}


def changed(truth: dict[str, Any], changes: dict[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in {**truth, **(changes or {})}.items() if v is not None}


def compact(header: dict[str, Any], payload: bytes, kid: str) -> str:
    return jws.serialize_compact(header, payload, KEYS[kid], algorithms=["RS256"])


def by_public_key(header: dict[str, Any], payload: bytes) -> str:
    """As HMAC, keyed by what everybody knows."""
    signed = f"{_coded(json.dumps({**header, 'alg': 'HS256'}).encode())}.{_coded(payload)}"
    return f"{signed}.{_coded(hmac.digest(KEYS['first'].as_pem(private=False), signed.encode(), 'sha256'))}"


def without_signature(header: dict[str, Any], payload: bytes) -> str:
    return f"{_coded(json.dumps({**header, 'alg': 'none'}).encode())}.{_coded(payload)}."


def changed_afterwards(header: dict[str, Any], payload: bytes) -> str:
    parts = compact(header, payload, "first").split(".")
    parts[1] = _coded(payload.replace(b"grace@", b"admin@"))
    return ".".join(parts)


SIGNING: dict[str, Callable[[dict[str, Any], bytes], str]] = {
    "well": lambda header, payload: compact(header, payload, "first"),
    "by another key": lambda header, payload: compact(header, payload, "own"),
    "by a new key": lambda header, payload: compact({**header, "kid": "second"}, payload, "second"),
    "by the public key": by_public_key,
    "not at all": without_signature,
    "and changed": changed_afterwards,
}


def _coded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def about(issuer: str) -> dict[str, Any]:
    return {
        "issuer": issuer, "authorization_endpoint": f"{issuer}/authorize", "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/jwks", "userinfo_endpoint": f"{issuer}/userinfo", "response_types_supported": ["code"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
        "authorization_response_iss_parameter_supported": True,
    }  # fmt: skip


def id_token(issuer: str, of: dict[str, str]) -> str:
    now = int(time.time())
    claims = {"iss": issuer, "sub": "1", "aud": of["client_id"], "iat": now, "exp": now + 300, "nonce": of["nonce"],
              "email": "grace@lumen.example", "email_verified": True, "name": "Grace"}  # fmt: skip
    header = changed({"alg": "RS256", "kid": "first"}, lies.get("header"))
    return SIGNING[lies.get("sign", "well")](header, json.dumps(changed(claims, lies.get("claims"))).encode())


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        issuer, asks = f"http://{self.headers['Host']}", urlsplit(self.path)
        given = {k: v[0] for k, v in parse_qs(asks.query).items()}
        if asks.path == "/asked":
            return self._say(200, json.dumps(asked))
        if self._noted(asks.path, given):
            return None
        if asks.path == "/authorize":
            code = secrets.token_hex(8)
            codes[code] = given
            back = changed({"code": code, "state": given["state"], "iss": issuer}, lies.get("answer"))
            return self._say(303, "", Location=f"{given['redirect_uri']}?{urlencode(back)}")
        known = "second" if lies.get("sign") == "by a new key" and self._count("/jwks") > 1 else "first"
        answers: dict[str, Any] = {
            "/.well-known/openid-configuration": lambda: changed(about(issuer), lies.get("about")),
            "/jwks": lambda: {"keys": [KEYS[known].as_dict(private=False)]},
            "/userinfo": lambda: changed({"sub": "1"}, lies.get("userinfo")),
        }
        return self._say(200, json.dumps(answers[asks.path]())) if asks.path in answers else self._say(404, "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        given = {k: v[0] for k, v in parse_qs(body).items()}
        if not self._noted(self.path, given):
            token = {"access_token": "a", "token_type": "Bearer", "id_token": id_token(f"http://{self.headers['Host']}", codes.pop(given["code"]))}  # fmt: skip
            self._say(200, json.dumps(token))

    def do_PUT(self) -> None:
        lies.clear()
        lies.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        asked.clear()
        self._say(200, "")

    def _noted(self, path: str, given: dict[str, str]) -> bool:
        """Whether it was answered with nonsense."""
        asked.append({"path": path, "given": given, "authorization": self.headers.get("Authorization", "")})
        raw = lies.get("raw", {}).get(path)
        if raw is not None:
            self._say(*raw)
        return raw is not None

    def _count(self, path: str) -> int:
        return sum(a["path"] == path for a in asked)

    def _say(self, status: int, body: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body.encode())),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is printed besides the address."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
