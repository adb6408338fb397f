"""Tokens: renewed before they end, asked for no more often than that, and never told."""

from __future__ import annotations

import base64
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from burnfuse.tokens import ClientCredentials, FileTokens, TokenError, check_url


class Endpoint:
    """A token endpoint: answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: tuple[int, bytes, dict[str, str]] = (200, b"", {})
        self.give("t1", 100)
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                endpoint.asked.append((self.headers["Authorization"], dict(urllib.parse.parse_qsl(form))))
                code, body, headers = endpoint.answer
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                endpoint.asked.append(("a redirect was followed", {}))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"

    def give(self, token: str, life_s: Any) -> None:
        self.answer = (200, json.dumps({"access_token": token, "expires_in": life_s}).encode(), {})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    one = Endpoint()
    thread = threading.Thread(target=one.server.serve_forever, daemon=True)
    thread.start()
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def client(endpoint: Endpoint, time: Time, secret: str = "s3:cret/+") -> ClientCredentials:
    return ClientCredentials(endpoint.url, "id", lambda: secret, "kafka", monotonic=time)


def test_a_token_is_asked_for_as_the_standard_says(endpoint: Endpoint) -> None:
    assert client(endpoint, Time()).token() == "t1"
    ((authorization, form),) = endpoint.asked
    assert form == {"grant_type": "client_credentials", "scope": "kafka"}
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"id:s3%3Acret%2F%2B"


def test_a_token_is_renewed_before_it_ends_and_no_sooner(endpoint: Endpoint) -> None:
    time = Time()
    tokens = client(endpoint, time)
    assert tokens.token() == "t1"
    endpoint.give("t2", "100")  # some endpoints send text
    time.now = 79.0
    assert tokens.token() == "t1"
    time.now = 80.0
    assert tokens.token() == "t2"
    assert len(endpoint.asked) == 2


def test_while_the_endpoint_fails_the_old_token_serves_until_it_ends(endpoint: Endpoint) -> None:
    time = Time()
    tokens = client(endpoint, time)
    tokens.token()
    endpoint.answer = (503, b"", {})
    for time.now in (80.0, 81.0, 99.0):
        assert tokens.token() == "t1"
    assert len(endpoint.asked) == 3  # not at every connection
    time.now = 100.0
    with pytest.raises(TokenError, match="answers 503 for client id"):
        tokens.token()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((401, b'{"error": "planted"}', {}), "answers 401 for client id: check the client id and its secret"),
        ((302, b"", {"Location": "http://127.0.0.1:9/"}), "answers 302"),
        ((200, b"planted", {}), "answers without an access token"),
        ((200, b'{"access_token": 3}', {}), "answers without an access token"),
        ((200, b'{"access_token": "a", "expires_in": "planted"}', {}), "answers without an access token"),
        ((200, b'{"access_token": "planted\\u0001auth="}', {}), "holds no token"),
        ((200, b'{"access_token": ""}', {}), "holds no token"),
    ],
)
def test_what_is_no_token_is_told_without_what_it_was(endpoint: Endpoint, answer: Any, says: str) -> None:
    endpoint.answer = answer
    with pytest.raises(TokenError) as refused:
        client(endpoint, Time(), "planted").token()
    assert says in str(refused.value)
    assert "planted" not in str(refused.value)
    assert len(endpoint.asked) == 1


def test_nobody_at_the_endpoint_is_told() -> None:
    tokens = ClientCredentials("http://127.0.0.1:1/token", "id", lambda: "s", timeout_s=5.0)
    with pytest.raises(TokenError, match=r"cannot be reached: .*refused"):
        tokens.token()


@pytest.mark.parametrize(("content", "says"), [(None, "No such file or directory"), ("text", "not in PEM format")])
def test_certificates_that_cannot_be_used_are_told_by_name(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    tokens = ClientCredentials("https://127.0.0.1:1/token", "id", lambda: "s", ca_file=str(file))
    with pytest.raises(TokenError, match=f"cannot use the certificates in .*ca.pem for https://.*: {says}"):
        tokens.token()


@pytest.mark.parametrize("url", ["http://idp.example/token", "ftp://localhost/", "file:///etc/passwd", ""])
def test_secrets_do_not_travel_in_clear(url: str) -> None:
    with pytest.raises(ValueError, match="must be https"):
        check_url(url)


def test_a_url_holds_no_password_for_it_is_printed() -> None:
    with pytest.raises(ValueError, match="the URL of a token endpoint holds no name or password") as refused:
        check_url("https://id:planted@idp.example/token")
    assert "planted" not in str(refused.value)


def test_a_token_file_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    tokens = FileTokens(str(path))
    with pytest.raises(TokenError, match=r"cannot read a token from .*: No such file"):
        tokens.token()
    for text in ("a.b.c\n", "d.e.f"):
        path.write_text(text)
        assert tokens.token() == text.strip()
    for content in (b"", b"two words", b"\xff\xfe", b"a\x01b"):
        path.write_bytes(content)
        with pytest.raises(TokenError, match="holds no token"):
            tokens.token()
