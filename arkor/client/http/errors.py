"""What goes wrong between us and a backend → an error whose sentence says what to do.

Pure: responses and exceptions of requests go in, errors of arkor come out. Who tries again is in `client.py`.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from arkor.client.http.versions import upgrade_command
from arkor.errors import BackendUnavailable, CloudApiError
from arkor.settings import VERSION, ca_bundle_from_env

#: An error page longer than this is not read to its end.
MAX_ERROR_BYTES = 64 * 1024
_MAX_MESSAGE_LENGTH = 500
_MIN_SECRET_LENGTH = 8  # characters; what is shorter is no secret, and may be part of a word

_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_NO_TEXT = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_REFUSED_TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3}[ \w-]{0,60})")
_CERTIFICATE_ERROR = re.compile(r"certificate verify failed: ([^(]{1,200})")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


#: What to do where a backend names its reason by a word.
_REMEDIES = dict.fromkeys(
    ("anonymous_token_single_device", "anonymous_account_not_found"),
    " Sign in again (arkor logout, arkor login); a project's .arkor/state.json that names the old organisation must "
    "be removed.",
)

# An answer that is an error


def parse_error(response: requests.Response) -> CloudApiError:
    """The error that a non-2xx answer stands for; reads a bounded part of its body and closes it.

    The token that was sent is cut out of all that the backend says, should it have been echoed.
    """
    text, request = _read_limited(response).decode("utf-8", "replace"), response.request
    body = without_token(text, request)
    sentence, code = _from_json(body)
    sentence = without_token(sentence or _from_html(response, body), request) + _REMEDIES.get(code or "", "")
    if response.status_code == 426 and (command := upgrade_command()) not in sentence:
        sentence = f"{sentence.rstrip('. ')}. This arkor is too old for the backend; upgrade it: {command}"
    request_id = response.headers.get("X-Request-Id")
    return CloudApiError(
        response.status_code,
        code and without_token(_one_line(code, 100), request),
        sentence,
        method=request.method,
        path=urlsplit(request.url or "").path,
        request_id=request_id and without_token(_one_line(request_id, 200), request),
        retry_after=retry_after(response.headers),
    )


def without_token(text: str, request: requests.PreparedRequest) -> str:
    """The text with the token of that request cut out, as it is and as it stands in an address."""
    header: Any = request.headers.get("Authorization") or ""
    header = header.decode("latin-1") if isinstance(header, bytes) else str(header)
    token = header.removeprefix("Bearer ")
    if len(token) < _MIN_SECRET_LENGTH:
        return text
    for written in (token, quote(token, safe="")):
        text = text.replace(written, "[token]")
    return text


def invalid_response_error(response: requests.Response, problem: str) -> CloudApiError:
    """The error for an answer that is a success by its status and nonsense by its body."""
    where = urlsplit(response.url)
    message = without_token(_one_line(problem), response.request)
    sentence = f"{where.scheme}://{where.netloc} {message}; is this really the address of an Arkor backend?"
    method = response.request.method
    return CloudApiError(response.status_code, "bad_answer", sentence, method=method, path=where.path)


def error_in_stream(data: Any, response: requests.Response) -> CloudApiError | None:
    """The error that a frame of that answer carries, in our shape or OpenAI's; None when it carries none."""
    if not isinstance(data, dict) or not data.get("error"):
        return None
    sentence, code = _from_object(data)
    inner = data["error"] if isinstance(data["error"], dict) else {}
    status = data.get("status", inner.get("status"))
    message = without_token(sentence or "the answer broke off with an error", response.request)
    return CloudApiError(status if type(status) is int else 500, code, message)


def _read_limited(response: requests.Response) -> bytes:
    try:
        body: bytes = response.raw.read(MAX_ERROR_BYTES, decode_content=True)
    except (OSError, HTTPError):
        body = b""
    finally:
        response.close()
    return body


def _from_json(body: str) -> tuple[str | None, str | None]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None, None
    return _from_object(data) if isinstance(data, dict) else (None, None)


def _from_object(data: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Our shape `{"error", "code"}`, OpenAI's `{"error": {"message", "code"}}`, and what proxies make up."""
    error = data.get("error")
    if isinstance(takes := data.get("supportedRange"), str) and takes.strip():
        return f"the backend takes clients of version {_one_line(takes, 40)}, and this is {VERSION}", str(error)
    inner: Mapping[str, Any] = error if isinstance(error, dict) else data
    candidates = (error, inner.get("message"), inner.get("detail"))
    sentence = next((_one_line(c) for c in candidates if isinstance(c, str) and c.strip()), None)
    code = inner.get("code") or data.get("code")
    return sentence, code if isinstance(code, str) else None


def _from_html(response: requests.Response, text: str) -> str:
    """One line for what is no JSON: the status, and the title or the first words of the page."""
    title = _TITLE.search(text)
    if title or "<" in text[:200]:
        text = html.unescape(title.group(1) if title else _NO_TEXT.sub(" ", text))
    excerpt = _one_line(text, 200)
    status = f"the backend answered {response.status_code} {response.reason or ''}".rstrip()
    return f"{status}: {excerpt}" if excerpt else status


def _one_line(text: str, max_length: int = _MAX_MESSAGE_LENGTH) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text[: max_length * 20])
    line = " ".join(printable.split())
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as `Retry-After` has them, given as a number or as a date; None when it says nothing useful.

    A date is reckoned from the `Date` of the same answer, for the clock of the backend may differ from ours.
    """
    value = (headers.get("Retry-After") or "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    then = _timestamp(value)
    if then is None:
        return None
    server_time = _timestamp(headers.get("Date") or "")
    return max(0.0, then - (time.time() if server_time is None else server_time))


def _timestamp(date: str) -> float | None:
    """An HTTP date → unix seconds; None for what is none."""
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


# No answer at all


def unavailable_error(base_url: str, error: Exception) -> BackendUnavailable:
    """The error for a backend that could not be reached, or did not answer to the end."""
    return BackendUnavailable(f"{base_url} {_describe_failure(error)}")


def was_never_sent(error: BaseException) -> bool:
    """Whether the request cannot have reached a backend, so that sending it again is safe whatever it asks."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectionError) and isinstance(reason, NewConnectionError)


def is_certificate_error(error: BaseException) -> bool:
    """A certificate that is not trusted; no second attempt changes that."""
    return isinstance(error, requests.exceptions.SSLError)


def _describe_failure(error: Exception) -> str:
    if "certificate bundle" in str(error):  # requests has no error of its own for one that is not there
        return f"cannot be called: {error}; look at {(ca_bundle_from_env() or ['REQUESTS_CA_BUNDLE'])[0]}"
    if is_certificate_error(error):
        return _describe_certificate_failure(error)
    if isinstance(error, requests.exceptions.ProxyError):
        refusal = _REFUSED_TUNNEL.search(str(error))
        status = f" ({refusal[1].strip()})" if refusal else ""
        return f"cannot be reached through the proxy{status}; look at HTTPS_PROXY and NO_PROXY"
    return _describe_connection_failure(error)


def _describe_certificate_failure(error: Exception) -> str:
    reason = _CERTIFICATE_ERROR.search(str(error))
    because = f" ({reason[1].strip(' .')})" if reason else ""
    what = f"has a certificate that this machine does not trust{because}"
    if "mismatch" in what:
        return f"{what}; look at the address: it must be called by the name that the certificate is for"
    named = ca_bundle_from_env()
    if named is None:
        advice = "point SSL_CERT_FILE or REQUESTS_CA_BUNDLE to its certificates"
    else:
        advice = f"its certificates belong into {named[1]}, which {named[0]} names"
    return f"{what}; if your company has its own authority, {advice}"


def _describe_connection_failure(error: Exception) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return "cannot be reached (no connection in time); look at the address and the network"
    if isinstance(error, requests.Timeout):
        return "did not answer in time; try again, or look whether it is overloaded"
    if was_never_sent(error):
        return f"cannot be reached ({_root_cause(error)}); look at the address, and whether the backend runs"
    return f"broke off the connection ({_root_cause(error)}); try again"


def _root_cause(error: BaseException) -> str:
    """The innermost reason, in the words of the operating system where it has any; never a URL with a query."""
    inner: Any = error
    while True:
        wrapped = getattr(inner, "reason", None) or (inner.args[-1] if getattr(inner, "args", None) else None)
        if not isinstance(wrapped, BaseException):
            break
        inner = wrapped
    cause = inner.__cause__ or inner.__context__
    words = getattr(cause, "strerror", None) or getattr(inner, "strerror", None)
    return str(words or type(inner).__name__)
