"""Turn failed responses and exceptions of requests into errors of arkor."""

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
from arkor.errors import BackendUnavailable, CloudApiError, Problem
from arkor.formatting import one_line
from arkor.settings import VERSION, ca_bundle_from_env

#: The remedy where a response is not one of an Arkor backend.
CHECK_ADDRESS = "check that this is the address of an Arkor backend"

#: The most bytes that are read of an error page.
MAX_ERROR_BYTES = 64 * 1024
_MAX_MESSAGE_LENGTH = 500
_MIN_SECRET_LENGTH = 8  # characters; a shorter token is not secret and may be part of a word

_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_REFUSED_TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3}[ \w-]{0,60})")
_CERTIFICATE_ERROR = re.compile(r"certificate verify failed: ([^(]{1,200})")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

#: What to do about error codes of a backend.
_REMEDIES = dict.fromkeys(
    ("anonymous_token_single_device", "anonymous_account_not_found"),
    "Sign in again (arkor logout, arkor login), and remove the .arkor/state.json of projects of the old organisation.",
)


def parse_error(response: requests.Response) -> CloudApiError:
    """Return the error of a non-2xx response, and close it; the sent token is redacted."""
    request = response.request
    body = without_token(_read_limited(response).decode("utf-8", "replace"), request)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    message, code = _from_object(data)
    message = without_token(message or _from_page(response, body), request)
    if remedy := _REMEDIES.get(code or ""):
        message = f"{message} {remedy}"
    if response.status_code == 426 and (command := upgrade_command()) not in message:
        message = f"{message} (this arkor is too old for the backend; upgrade it: {command})"
    request_id = response.headers.get("X-Request-Id")
    return CloudApiError(
        response.status_code,
        code and without_token(one_line(code, 100), request),
        message,
        method=request.method,
        path=urlsplit(request.url or "").path,
        request_id=request_id and without_token(one_line(request_id, 200), request),
        retry_after=retry_after(response.headers),
        **_field_parts(data, request),
    )


def _field_parts(data: Any, request: requests.PreparedRequest) -> dict[str, str]:
    """Return the parts of an error about a field, which arkor's own backend sends."""
    found = {name: data.get(name) for name in ("field", "problem", "remedy")} if isinstance(data, dict) else {}
    if not (isinstance(found.get("field"), str) and isinstance(found["problem"], str)):
        return {}
    return {name: without_token(_excerpt(part), request) for name, part in found.items() if isinstance(part, str)}


def without_token(text: str, request: requests.PreparedRequest) -> str:
    """Return the text with the token of that request redacted, also in its URL-encoded form."""
    header: Any = request.headers.get("Authorization") or ""
    header = header.decode("latin-1") if isinstance(header, bytes) else str(header)
    token = header.removeprefix("Bearer ")
    if len(token) < _MIN_SECRET_LENGTH:
        return text
    for written in (token, quote(token, safe="")):
        text = text.replace(written, "[token]")
    return text


def invalid_response_error(response: requests.Response, problem: str) -> CloudApiError:
    """Return the error for a response with a success status and an unusable body."""
    where = urlsplit(response.url)
    problem = without_token(one_line(problem, _MAX_MESSAGE_LENGTH), response.request)
    message = str(Problem(f"{where.scheme}://{where.netloc} {problem}", remedy=CHECK_ADDRESS))
    method = response.request.method
    return CloudApiError(response.status_code, "bad_answer", message, method=method, path=where.path)


def stream_error(data: Mapping[str, Any], response: requests.Response) -> CloudApiError:
    """Return the error in a frame of that response, in our format or OpenAI's."""
    message, code = _from_object(data)
    inner = data["error"] if isinstance(data["error"], dict) else {}
    status = data.get("status", inner.get("status"))
    message = without_token(message or "the response ended with an error", response.request)
    return CloudApiError(status if type(status) is int else 500, code, message)


def _read_limited(response: requests.Response) -> bytes:
    try:
        body: bytes = response.raw.read(MAX_ERROR_BYTES, decode_content=True)
    except (OSError, HTTPError):
        body = b""
    finally:
        response.close()
    return body


def _from_object(data: Any) -> tuple[str | None, str | None]:
    """Return message and code of `{"error", "code"}`, OpenAI's `{"error": {…}}` or a proxy's."""
    if not isinstance(data, dict):
        return None, None
    error = data.get("error")
    if isinstance(supported := data.get("supportedRange"), str) and supported.strip():
        return f"the backend supports clients of version {one_line(supported, 40)}, and this is {VERSION}", str(error)
    inner: Mapping[str, Any] = error if isinstance(error, dict) else data
    candidates = (error, inner.get("message"), inner.get("detail"))
    message = next((_excerpt(c) for c in candidates if isinstance(c, str) and c.strip()), None)
    code = inner.get("code") or data.get("code")
    return message, code if isinstance(code, str) else None


def _from_page(response: requests.Response, text: str) -> str:
    """Return the status and the title or first words of a page on one line."""
    title = _TITLE.search(text)
    if title or "<" in text[:200]:
        text = html.unescape(title.group(1) if title else _MARKUP.sub(" ", text))
    excerpt = _excerpt(text, 200)
    status = f"the backend answered {response.status_code} {response.reason or ''}".rstrip()
    return f"{status}: {excerpt}" if excerpt else status


def _excerpt(text: str, max_length: int = _MAX_MESSAGE_LENGTH) -> str:
    return one_line(text[: max_length * 20], max_length)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a `Retry-After` number or date; None if missing or invalid.

    A date is compared with the `Date` of the same response, because the backend's clock may differ
    from ours.
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
    """Convert an HTTP date to unix seconds; return None if it is invalid."""
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


# No response


def unavailable_error(base_url: str, error: Exception) -> BackendUnavailable:
    """Return the error for a backend that cannot be reached or did not respond completely."""
    if "certificate bundle" in str(error):  # requests raises a plain OSError for a missing one
        variable, _ = ca_bundle_from_env() or ("REQUESTS_CA_BUNDLE", "")
        problem, remedy = f"cannot be called: {error}", f"check {variable}"
    else:
        problem, remedy = _describe_failure(error)
    return BackendUnavailable(f"{base_url} {problem}", remedy=remedy)


def was_never_sent(error: BaseException) -> bool:
    """Return whether the request reached no backend, so that repeating it is always safe."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectionError) and isinstance(reason, NewConnectionError)


def _describe_failure(error: Exception) -> tuple[str, str]:
    """Return what went wrong, as the predicate of a sentence, and what to do."""
    if isinstance(error, requests.exceptions.SSLError):
        return _describe_certificate_failure(error)
    if isinstance(error, requests.exceptions.ProxyError):
        refusal = _REFUSED_TUNNEL.search(str(error))
        status = f" ({refusal[1].strip()})" if refusal else ""
        return f"cannot be reached through the proxy{status}", "check HTTPS_PROXY and NO_PROXY"
    if isinstance(error, requests.ConnectTimeout):
        return "cannot be reached (no connection in time)", "check the address and the network"
    if isinstance(error, requests.Timeout):
        return "did not answer in time", "try again, or check whether it is overloaded"
    if was_never_sent(error):
        return f"cannot be reached ({_root_cause(error)})", "check the address, and whether the backend is running"
    return f"closed the connection early ({_root_cause(error)})", "try again"


def _describe_certificate_failure(error: Exception) -> tuple[str, str]:
    reason = _CERTIFICATE_ERROR.search(str(error))
    because = f" ({reason[1].strip(' .')})" if reason else ""
    problem = f"has a certificate that this machine does not trust{because}"
    if "mismatch" in because:
        return problem, "check the address: it must be the name that the certificate is issued for"
    if named := ca_bundle_from_env():
        variable, bundle = named
        return problem, f"if your company has its own authority, add its certificates to {bundle} (from {variable})"
    return (
        problem,
        "if your company has its own authority, point SSL_CERT_FILE or REQUESTS_CA_BUNDLE to its certificates",
    )


def _root_cause(error: BaseException) -> str:
    """Return the innermost reason, as the operating system words it; never a URL with a query."""
    inner: Any = error
    while True:
        wrapped = getattr(inner, "reason", None) or (inner.args[-1] if getattr(inner, "args", None) else None)
        if not isinstance(wrapped, BaseException):
            break
        inner = wrapped
    cause = inner.__cause__ or inner.__context__
    return str(getattr(cause, "strerror", None) or getattr(inner, "strerror", None) or type(inner).__name__)
