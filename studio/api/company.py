"""The company's OpenID Connect provider, by Authlib: where a browser is sent, and who came back.

Authorization code with PKCE, state and nonce; the id_token is checked in full (OpenID Connect Core 1.0, section 3.1.3.7; Discovery
1.0, section 4.3; RFC 7636; RFC 9207 for `iss` in the response). Whatever the provider answers, what is raised is an error that a
person can read.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

import httpx2
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from authlib.oidc.discovery import get_well_known_url
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from asset_store.errors import NotSignedIn, ProviderUnreachable, StoreError
from asset_store.people.company import Attempt, Identity
from flows.settings import OidcSettings, is_protected

log = logging.getLogger("onmodel.api")
TIMEOUT_S, KNOWN_FOR_S, LEEWAY_S = 10.0, 600.0, 60
# Never `none`, and never a shared secret: whoever knows the public key could sign.
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
SIGNED = JWSRegistry(algorithms=ASYMMETRIC, strict_check_header=False)
NEEDED, OTHERS = ("authorization_endpoint", "token_endpoint", "jwks_uri"), ("userinfo_endpoint",)
AGAIN = "Sign in again; if it stays so, ask an admin."


@dataclass(frozen=True, slots=True)
class Answer:
    """What a browser brings back from the provider (RFC 6749, section 4.1.2), empty where it is not there."""

    code: str = ""
    error: str = ""
    issuer: str = ""


class Provider:
    """The provider that the settings name; its discovery document and keys are known for ten minutes."""

    def __init__(self, settings: OidcSettings, clock: Callable[[], float] = time.monotonic) -> None:
        assert settings.issuer is not None
        self.settings, self.issuer, self._clock = settings, settings.issuer, clock
        self._known: dict[str, tuple[float, Any]] = {}

    def address(self, attempt: Attempt, back_to: str) -> str:
        """Where to send the browser, to come back to `back_to`. ProviderUnreachable."""
        with self._talking(back_to) as client:
            url, _ = client.create_authorization_url(
                self._about(client)["authorization_endpoint"], state=attempt.state, nonce=attempt.nonce,
                code_verifier=attempt.code_verifier,
            )  # fmt: skip
            return str(url)

    def identity(self, answer: Answer, attempt: Attempt, back_to: str) -> Identity:
        """Who came back. NotSignedIn where they turned back, or what the provider signed is not for this attempt;
        ProviderUnreachable."""
        with self._talking(back_to) as client:
            about = self._about(client)
            if answer.issuer != self.issuer and (
                answer.issuer or about.get("authorization_response_iss_parameter_supported") is True
            ):
                raise NotSignedIn("another provider answered than the one that was asked", AGAIN)
            if answer.error or not answer.code:
                log.info("the company's sign-in was not finished: %.80r", answer.error)
                raise NotSignedIn("the company's sign-in was not finished", AGAIN)
            takes = about.get("token_endpoint_auth_methods_supported") or ()
            if "client_secret_post" in takes and "client_secret_basic" not in takes and self.settings.client_secret:
                client.token_endpoint_auth_method = "client_secret_post"
            token = client.fetch_token(
                about["token_endpoint"], grant_type="authorization_code", code=answer.code,
                code_verifier=attempt.code_verifier,
            )  # fmt: skip
            return self._identity_of(client, token, attempt.nonce)

    def about(self) -> Mapping[str, Any]:
        """The discovery document. ProviderUnreachable where it is not there, not of this issuer, or of unsafe addresses."""
        with self._talking() as client:
            return self._about(client)

    def _about(self, client: Any) -> Mapping[str, Any]:
        about: Mapping[str, Any] = self._fetched(
            client, get_well_known_url(self.issuer, external=True), self._as_discovered
        )
        return about

    def _as_discovered(self, about: dict[str, Any]) -> Mapping[str, Any]:
        if about.get("issuer") != self.issuer:
            raise self._unreachable("its discovery document is of another issuer")
        is_local = self.issuer.startswith("http:")
        for name in (*NEEDED, *OTHERS):
            url = about.get(name)
            if url is None and name in OTHERS:
                continue
            if not isinstance(url, str) or not is_protected(url) or (url.startswith("http:") and not is_local):
                raise self._unreachable(f"its {name} is no address with https")
        return about

    def _identity_of(self, client: Any, token: Mapping[str, Any], nonce: str) -> Identity:
        signed = token.get("id_token")
        if not isinstance(signed, str):
            raise self._unreachable("it gave no id_token")
        claims = self._verified(client, signed, nonce, token.get("access_token"))
        profile = claims
        if not {"email", "email_verified"} <= claims.keys() and "userinfo_endpoint" in self._about(client):
            profile = _read(client, self._about(client)["userinfo_endpoint"], withhold_token=False)
            if profile.get("sub") != claims["sub"]:
                raise NotSignedIn("the company's sign-in tells of somebody else", AGAIN)
        email, name = profile.get("email"), profile.get("name", claims.get("name"))
        verified = profile.get("email_verified")
        is_verified = (verified is True or verified == "true") and isinstance(email, str)  # some say it as a word
        return Identity(
            self.issuer, claims["sub"], email if is_verified else None, name if isinstance(name, str) else ""
        )

    def _verified(self, client: Any, signed: str, nonce: str, access_token: Any) -> Mapping[str, Any]:
        """The claims of an id_token that this provider signed, for this client and this attempt, and not long ago."""
        keys_at = self._about(client)["jwks_uri"]
        try:
            try:
                token = jwt.decode(signed, self._fetched(client, keys_at, _keys), registry=SIGNED)
            except InvalidKeyIdError:  # a key that was made since the keys were read
                self._known.pop(keys_at, None)
                token = jwt.decode(signed, self._fetched(client, keys_at, _keys), registry=SIGNED)
            must = {
                "iss": {"essential": True, "value": self.issuer},
                "aud": {"essential": True, "value": self.settings.client_id},
            }
            params = {"nonce": nonce, "client_id": self.settings.client_id, "access_token": access_token}
            claims: Mapping[str, Any] = CodeIDToken(token.claims, token.header, must, params)
            claims.validate(leeway=LEEWAY_S)  # type: ignore[attr-defined]
        except JoseError as error:
            log.warning("an id_token of %s was refused: %s", self.issuer, error)
            raise NotSignedIn("what the company's sign-in signed does not hold", AGAIN) from None
        return claims

    def _fetched(self, client: Any, url: str, read: Callable[[dict[str, Any]], Any]) -> Any:
        """What `read` makes of the JSON there, known for a while. Two who ask at once may both fetch it."""
        known = self._known.get(url)
        if known is not None and self._clock() < known[0]:
            return known[1]
        made = read(_read(client, url))
        self._known[url] = (self._clock() + KNOWN_FOR_S, made)
        return made

    @contextmanager
    def _talking(self, back_to: str | None = None) -> Iterator[Any]:
        """A client of the provider. Answers can be anything, and so can what the libraries raise of them: all of it becomes
        one of our errors here."""
        secret = self.settings.client_secret
        client = OAuth2Client(
            self.settings.client_id, secret.get_secret_value() if secret else None, scope=self.settings.scopes,
            redirect_uri=back_to, code_challenge_method="S256", timeout=TIMEOUT_S, follow_redirects=False,
        )  # fmt: skip
        client.register_client_auth_method(("client_secret_basic", _basic))
        try:
            with client:
                yield client
        except StoreError:
            raise
        except OAuthError as error:
            log.warning("%s refused the code: %.80r %.200r", self.issuer, error.error, error.description)
            raise NotSignedIn("the company's sign-in did not accept this", AGAIN) from None
        except httpx2.HTTPError as error:
            raise self._unreachable(f"{type(error).__name__} {error}") from None
        except Exception as error:
            raise self._unreachable(f"its answer makes no sense: {type(error).__name__} {error}") from None

    def _unreachable(self, why: str) -> ProviderUnreachable:
        log.warning("%s cannot be used: %.300s", self.issuer, why)
        return ProviderUnreachable(why)


def _read(client: Any, url: str, *, withhold_token: bool = True) -> dict[str, Any]:
    answer = client.request("GET", url, withhold_token=withhold_token)
    answer.raise_for_status()
    body = answer.json()
    if answer.status_code != 200 or not isinstance(body, dict):
        raise ValueError("no JSON object")
    return body


def _keys(body: dict[str, Any]) -> KeySet:
    try:
        return KeySet.import_key_set({"keys": body["keys"]})
    except JoseError as error:
        raise ValueError(f"no keys: {error}") from None


def _basic(client: Any, method: str, uri: str, headers: Any, body: Any) -> tuple[str, Any, Any]:
    """The client's id and secret, each encoded as a form first (RFC 6749, section 2.3.1), which Authlib leaves out."""
    plain = f"{quote_plus(client.client_id)}:{quote_plus(client.client_secret)}"
    headers["Authorization"] = f"Basic {base64.b64encode(plain.encode()).decode()}"
    return uri, headers, body
