"""HTTP with the standard library: JSON in and out, an upload, a body in blocks. Knows nothing of batches."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, Mapping, Optional, TypeVar

from ._errors import ApiError, ConnectionLost

T = TypeVar("T")

DEFAULT_BASE_URL = "http://127.0.0.1:8080"
_BLOCK_BYTES = 64 * 1024
# Statuses after which the same request may succeed.
_TRANSIENT = (429, 500, 502, 503, 504, 507)
_PAUSE_MIN_S = 0.2
_PAUSE_MAX_S = 5.0


def find_base_url() -> str:
    """`TERNFLEET_BASE_URL`; else the fleet that runs in `ternfleet-data` of the current folder; else the default port."""
    named = os.environ.get("TERNFLEET_BASE_URL")
    if named:
        return named
    try:
        addresses = json.loads(Path("ternfleet-data/addresses.json").read_text(encoding="utf-8"))
        # A fleet that was killed leaves its file behind.
        os.kill(addresses["pid"], 0)
        return str(addresses["http"])
    except PermissionError:
        return str(addresses["http"])  # The process is there, and belongs to another user.
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_BASE_URL


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, ConnectionLost) or (isinstance(error, ApiError) and error.status in _TRANSIENT)


class Http:
    def __init__(self, base_url: Optional[str], api_key: Optional[str], timeout: float) -> None:
        base = (base_url or find_base_url()).rstrip("/")
        if "://" not in base:
            base = "http://" + base
        # OpenAI's clients are given the address with this ending.
        self.base_url = base[: -len("/v1")] if base.endswith("/v1") else base
        key = api_key or os.environ.get("TERNFLEET_API_KEY")
        self._headers = {"User-Agent": "ternfleet-python"}
        if key:
            self._headers["Authorization"] = "Bearer " + key
        self._timeout = timeout
        host = urllib.parse.urlsplit(self.base_url).hostname or ""
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if host in ("localhost", "::1") or host.startswith("127."):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def json(
        self, method: str, path: str, body: Optional[Mapping[str, Any]] = None, headers: Optional[Mapping[str, str]] = None
    ) -> Dict[str, Any]:
        """Sends `body` as JSON and returns the answer, an object."""
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        sent = {"Content-Type": "application/json", **(headers or {})} if data is not None else dict(headers or {})
        return self._object(method, path, data, sent)

    def upload(self, path: str, form: IO[bytes], length: int, content_type: str) -> Dict[str, Any]:
        """Sends a form from its beginning."""
        form.seek(0)
        return self._object("POST", path, form, {"Content-Type": content_type, "Content-Length": str(length)})

    def lines(self, path: str, skip: int = 0) -> Iterator[bytes]:
        """The lines of a body, without the first `skip`. A body that breaks off raises `ConnectionLost`."""
        left, number = b"", 0
        for block in self._blocks("GET", path, None, {}):
            *whole, left = (left + block).split(b"\n")
            for line in whole:
                number += 1
                if number > skip and line:
                    yield line
        if left and number >= skip:
            yield left

    def retried(self, call: Callable[[], T], patience: float) -> T:
        """Calls until it succeeds, for at most `patience` seconds from the first failure; then raises what came last."""
        pause, began = _PAUSE_MIN_S, time.monotonic()
        while True:
            try:
                return call()
            except (ApiError, ConnectionLost) as error:
                if not is_transient(error) or time.monotonic() - began >= patience:
                    raise
                asked = getattr(error, "retry_after", None) or 0.0
            time.sleep(max(pause, min(asked, 60.0)))
            pause = min(pause * 2, _PAUSE_MAX_S)

    def _object(self, method: str, path: str, data: Any, headers: Dict[str, str]) -> Dict[str, Any]:
        text = b"".join(self._blocks(method, path, data, headers))
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ApiError(200, f"{self.base_url}{path} did not return a JSON object: check that this is the address of a fleet")
        return answer

    def _blocks(self, method: str, path: str, data: Any, headers: Dict[str, str]) -> Iterator[bytes]:
        url = self.base_url + path
        request = urllib.request.Request(url, data=data, headers={**self._headers, **headers}, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                length, read = response.headers.get("Content-Length"), 0
                while True:
                    block = response.read(_BLOCK_BYTES)
                    if not block:
                        break
                    read += len(block)
                    yield block
                # http.client reports a chunked body that breaks off, but not this.
                if length is not None and read != int(length):
                    raise ConnectionLost(f"{url}: the connection was interrupted after {read} of {length} bytes")
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ConnectionLost(f"{url}: {reason!s}" if str(reason) else f"{url}: {type(reason).__name__}") from error


def _refusal(error: urllib.error.HTTPError) -> ApiError:
    try:
        text = error.read()
    except (OSError, http.client.HTTPException):
        text = b""
    try:
        fault = json.loads(text)["error"]
        message, code, param = str(fault["message"]), fault.get("code"), fault.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code, param = text.decode("utf-8", "replace").strip() or str(error.reason), None, None
    after = error.headers.get("Retry-After", "")
    retry_after = float(after) if after.isdigit() else None
    return ApiError(error.code, f"{message} (HTTP {error.code})" if code is None else message, code, param, retry_after)
