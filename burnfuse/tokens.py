"""Access tokens for SASL OAUTHBEARER: from a file, or from an OAuth 2.0 token endpoint.

Whoever connects asks for a token each time; a token that is still good is given again.
"""

from __future__ import annotations

import base64
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

_RENEW_AT = 0.8
"""A token is renewed after this share of its life, as Kafka's own clients do (sasl.login.refresh.window.factor)."""
_LIFE_S = 300.0
"""Taken for the life of a token whose endpoint does not say (`expires_in` is optional in RFC 6749)."""
_RETRY_S = 5.0
"""After a failure the old token serves on; the endpoint is asked again this much later."""
_MOST_BYTES = 1 << 20


class TokenError(Exception):
    """There is no token; the text says why, in one sentence, and holds no secret."""


class Tokens(Protocol):
    """Where tokens come from; thread-safe."""

    def token(self) -> str:
        """A token that is good now.

        Raises:
            TokenError: there is none.
        """


class FileTokens:
    """The token in a file that somebody else renews, such as Kubernetes; it is read each time."""

    def __init__(self, path: str) -> None:
        self._path = path

    def token(self) -> str:
        try:
            token = Path(self._path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it holds no token"
            raise TokenError(f"cannot read a token from {self._path}: {why}") from error
        return _checked(token, self._path)


class _Answer(msgspec.Struct):
    access_token: str
    expires_in: float | str | None = None


class ClientCredentials:
    """Tokens from an endpoint, by the client credentials grant (RFC 6749, 4.4).

    Args:
        url: Of the endpoint; https, or http on this machine.
        client_id: Who asks.
        client_secret: Gives the secret each time it is needed, so that it can change.
        scope: What for; empty: the endpoint's default.
        ca_file: Certificates (PEM) of who may vouch for the endpoint; the system's if not given.
        timeout_s: How long the endpoint may take, s.
        monotonic: Clock, s.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: Callable[[], str],
        scope: str = "",
        *,
        ca_file: str | None = None,
        timeout_s: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        check_url(url)
        self._url, self._client_id, self._client_secret, self._scope = url, client_id, client_secret, scope
        self._ca_file, self._timeout_s, self._monotonic = ca_file, timeout_s, monotonic
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = self._ends_at = float("-inf")

    def token(self) -> str:
        with self._lock:
            now = self._monotonic()
            if now >= self._renew_at:
                try:
                    self._token, life_s = self._fetch()
                except TokenError:
                    if now >= self._ends_at:
                        raise
                    self._renew_at = min(now + _RETRY_S, self._ends_at)
                else:
                    self._renew_at, self._ends_at = now + _RENEW_AT * life_s, now + life_s
            return self._token

    def _fetch(self) -> tuple[str, float]:
        """A new token, and how long it lives, s."""
        form = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        # RFC 6749, 2.3.1: both are form-encoded before they are put together.
        who = ":".join(urllib.parse.quote_plus(part) for part in (self._client_id, self._client_secret()))
        request = urllib.request.Request(  # noqa: S310  check_url has seen the scheme
            self._url,
            urllib.parse.urlencode(form).encode(),
            {"Authorization": f"Basic {base64.b64encode(who.encode()).decode()}", "Accept": "application/json"},
        )
        try:
            with self._opener().open(request, timeout=self._timeout_s) as reply:
                body = reply.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            error.close()
            raise TokenError(
                f"the token endpoint {self._url} answers {error.code} for client {self._client_id}: "
                "check the client id and its secret"
            ) from None
        except OSError as error:
            why = getattr(error, "reason", error)
            raise TokenError(f"the token endpoint {self._url} cannot be reached: {why}") from error
        try:
            answer = msgspec.json.decode(body, type=_Answer)
            life_s = _LIFE_S if answer.expires_in is None else float(answer.expires_in)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            # The cause is left out: it might quote the answer.
            raise TokenError(f"the token endpoint {self._url} answers without an access token") from None
        return _checked(answer.access_token, self._url), life_s

    def _opener(self) -> Any:
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:  # an ssl.SSLError is one
            why = "not in PEM format" if isinstance(error, ssl.SSLError) else error.strerror
            raise TokenError(f"cannot use the certificates in {self._ca_file} for {self._url}: {why}") from error
        return urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The client's secret goes to the endpoint that was named, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def check_url(url: str, what: str = "a token endpoint") -> None:
    """Refuses endpoints to which a secret would travel unencrypted, and secrets in what is printed.

    Raises:
        ValueError: the URL is neither https nor on this machine, or it holds a name or password.
    """
    parts = urllib.parse.urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(f"the URL of {what} holds no name or password")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")):
        raise ValueError(f"{what} must be https://..., or http on this machine")


def _checked(token: str, where: str) -> str:
    # RFC 6750, 2.1; anything else could end the message it is put into.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(f"{where} holds no token")
    return token
