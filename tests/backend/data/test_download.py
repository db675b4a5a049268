"""Data over HTTP, from a real server: who gets the token, where a redirect may lead, a sentence for each refusal."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from arkor.backend.data import download as room
from arkor.backend.data.datasets import DataError, load_rows
from arkor.backend.data.download import download
from arkor.protocol.datasets import BlobDataset
from tests.fakes.corporate_proxy import CorporateProxy

ROWS = b'{"text": "a"}\n{"text": "b"}\n'

Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A web server whose pages are functions; it keeps the `Authorization` of every request."""

    def __init__(self) -> None:
        self.pages: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers["Authorization"]))
                site.pages[self.path](self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server.server_address[1]}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def body(data: bytes, **headers: str) -> Answer:
    return status(200, data, **headers)


def status(code: int, data: bytes = b"", **headers: str) -> Answer:
    length = str(len(data))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = headers.get("Content_Length", length) != length
        handler.send_response(code)
        for name, value in {"Content_Length": length, **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


@pytest.fixture
def site() -> Iterator[Site]:
    started = Site()
    yield started
    started.close()


@pytest.fixture
def other_site() -> Iterator[Site]:
    started = Site()
    yield started
    started.close()


def fetch(url: str, token: str | None = None, *, allow_private: bool = True, limit: int = 10**6) -> bytes:
    target = io.BytesIO()
    download(url, target, name="rows.jsonl", token=token, allow_private=allow_private, limit=limit)
    return target.getvalue()


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        fetch(url, **options)
    return str(raised.value)


def test_a_blob_becomes_rows(site: Site, tmp_path: Path) -> None:
    site.pages["/data/rows.jsonl?key=1"] = body(ROWS)
    source = BlobDataset(site.url("/data/rows.jsonl?key=1"), "secret")
    rows = load_rows(source, home=tmp_path, token="secret", allow_private=True)
    assert [row["text"] for row in rows.train] == ["a", "b"]
    assert site.asked == [("/data/rows.jsonl?key=1", "Bearer secret")]
    assert list((tmp_path / "datasets").iterdir()) == []


def test_faults_carry_the_name_of_the_file_and_not_its_query(site: Site, tmp_path: Path) -> None:
    site.pages["/rows.jsonl?key=hidden"] = body(b"{}")
    with pytest.raises(DataError) as raised:
        load_rows(BlobDataset(site.url("/rows.jsonl?key=hidden")), home=tmp_path, allow_private=True)
    assert str(raised.value).startswith("rows.jsonl has 1 bad row")
    assert "hidden" not in str(raised.value)


def test_a_redirect_is_followed_and_keeps_the_token_at_home(site: Site, other_site: Site) -> None:
    site.pages["/a"] = status(302, Location="/b")
    site.pages["/b"] = status(307, Location=other_site.url("/c"))
    other_site.pages["/c"] = body(ROWS)
    assert fetch(site.url("/a"), "secret") == ROWS
    assert site.asked == [("/a", "Bearer secret"), ("/b", "Bearer secret")]
    assert other_site.asked == [("/c", None)]


def test_a_netrc_password_does_not_take_the_place_of_the_token(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password wrong\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    site.pages["/a"] = body(ROWS)
    fetch(site.url("/a"), "secret")
    fetch(site.url("/a"))
    assert [authorization for _, authorization in site.asked] == ["Bearer secret", None]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_private_address_is_refused_before_anything_is_sent(site: Site, host: str) -> None:
    sentence = refusal(site.url("/a", host), token="secret", allow_private=False)
    assert "leads to 127.0.0.1, an address of this machine" in sentence
    assert "ARKOR_ALLOW_PRIVATE_URLS=1" in sentence
    assert site.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
    ],
)
def test_which_addresses_are_private(address: str, public: bool) -> None:
    with socket.socket() as sock, nullcontext() if public else pytest.raises(room.PrivateAddress):
        room._reject_private(sock, (address, 80))


def test_a_redirect_that_never_ends(site: Site) -> None:
    site.pages["/a"] = status(302, Location="/a")
    assert "redirects more than 5 times" in refusal(site.url("/a"))


def test_a_redirect_to_a_file(site: Site) -> None:
    site.pages["/a"] = status(302, Location="file:///etc/passwd")
    assert "redirects to an address that does not begin with http" in refusal(site.url("/a"))


@pytest.mark.parametrize(
    ("code", "token", "words"),
    [
        (401, None, "answers 401. Give the data set a token that may read it."),
        (403, "secret", "answers 403. The token is not accepted there."),
        (404, None, "answers 404. Is the address right?"),
        (204, None, "answers 204."),
    ],
)
def test_a_status_has_its_sentence(site: Site, code: int, token: str | None, words: str) -> None:
    site.pages["/a"] = status(code)
    sentence = refusal(site.url("/a"), token=token)
    assert words in sentence
    assert "secret" not in sentence


def test_a_fault_that_passes_is_tried_again(site: Site) -> None:
    answers = iter([status(503), status(429), body(ROWS)])

    def next_answer(handler: BaseHTTPRequestHandler) -> None:
        next(answers)(handler)

    site.pages["/a"] = next_answer
    assert fetch(site.url("/a")) == ROWS


def test_a_fault_that_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ATTEMPTS", 2)
    site.pages["/a"] = status(503)
    assert "answers 503. Try again later." in refusal(site.url("/a"))
    assert len(site.asked) == 2


def test_a_server_that_is_not_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ATTEMPTS", 2)
    url = site.url("/a?key=hidden")
    site.close()
    sentence = refusal(url)
    assert "could not be fetched from 127.0.0.1 (" in sentence
    assert "hidden" not in sentence


def test_a_body_that_breaks_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ATTEMPTS", 2)
    site.pages["/a"] = body(ROWS, Content_Length=str(len(ROWS) + 10))
    assert "could not be fetched" in refusal(site.url("/a"))


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(site: Site, announced: bool) -> None:
    site.pages["/a"] = body(b"x" * 3000) if announced else body(b"x" * 3000, Content_Length="", Connection="close")
    assert "is larger than" in refusal(site.url("/a"), limit=2000)


def test_a_web_page_in_place_of_the_file(site: Site, tmp_path: Path) -> None:
    site.pages["/rows.jsonl"] = body(b"<!doctype html><html>Sign in</html>")
    with pytest.raises(DataError, match="is a web page, not data"):
        load_rows(BlobDataset(site.url("/rows.jsonl")), home=tmp_path, allow_private=True)


def test_the_token_is_in_no_representation() -> None:
    assert "secret" not in repr(BlobDataset("https://x.test/a", "secret"))


# Whom to trust


def test_an_authority_of_the_companys_own(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/rows"] = body(ROWS)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    with closing(CorporateProxy(tmp_path)) as company:
        port = company.serve("localhost", site.url(""))
        url = f"https://localhost:{port}/rows"
        assert "let SSL_CERT_FILE name its certificates" in refusal(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
        assert "nowhere.pem" in refusal(url)
        assert site.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(company.bundle))
        assert fetch(url) == ROWS
