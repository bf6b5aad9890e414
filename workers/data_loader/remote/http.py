"""Request a file over HTTP, from its start or from where an earlier transfer ended."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import HTTPError, NewConnectionError

from common.errors import FetchError
from common.settings import without_credentials
from workers.data_loader.remote.body import Body, TransferError
from workers.data_loader.remote.policy import RetryPolicy

CHUNK_BYTES = 1 << 18
#: Errors of a proxy that does not answer, has an unusable address, or needs a package that is not installed (SOCKS).
_OF_A_PROXY = (
    requests.exceptions.ProxyError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
)


@contextmanager
def http_body(url: str, resumable: tuple[int, str], policy: RetryPolicy, *, cached_version: str = "") -> Iterator[Body]:
    """Yield the body of a GET request, resuming after ``resumable`` (bytes and version) where the server confirms it.

    If the server's file still has ``cached_version``, the body has that version too, and may have no bytes.
    Raises TransferError if another request may succeed, and another FetchError if none would.
    """
    resumable_bytes, version = resumable
    headers = {"Accept-Encoding": "identity"}
    timeouts_s = policy.connect_timeout_s, policy.read_timeout_s
    if resumable_bytes:
        headers |= {"Range": f"bytes={resumable_bytes}-", "If-Range": version}
    # A date is compared with that of the response instead: servers answer If-Modified-Since with 304 also where the
    # file was replaced by an older one.
    if cached_version.startswith('"'):
        headers["If-None-Match"] = cached_version
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeouts_s) as response:
            if response.status_code == HTTPStatus.NOT_MODIFIED and "If-None-Match" in headers:
                yield Body(iter(()), 0, None, cached_version)
            else:
                yield _body_of(url, response, resumable)
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        raise _error_of(url, error) from None  # the original may quote the URL with its credentials


def _body_of(url: str, response: requests.Response, resumable: tuple[int, str]) -> Body:
    """Return the body of a response with status 200 or 206; raises TransferError or FetchError for any other."""
    status, headers = response.status_code, response.headers
    etag = headers.get("ETag", "W/")
    version = headers.get("Last-Modified", "") if etag.startswith("W/") else etag  # If-Range takes no weak ETag
    # read1 returns what has arrived; iter_content would wait until a whole chunk has.
    chunks: Iterator[bytes] = iter(lambda: response.raw.read1(CHUNK_BYTES, decode_content=True), b"")
    if status == HTTPStatus.OK:
        if headers.get("Content-Encoding", "identity") != "identity":  # Content-Length is not the file's then
            return Body(chunks, 0, None, "")
        length = headers.get("Content-Length", "")
        return Body(chunks, 0, int(length) if length.isdecimal() else None, version)
    resumable_bytes, part_version = resumable
    if status == HTTPStatus.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", headers.get("Content-Range", ""))
        if span and int(span[1]) == resumable_bytes and version in ("", part_version):
            return Body(chunks, resumable_bytes, int(span[2]), part_version)
    reason = f"HTTP {status} {_phrase(status)}".rstrip()
    if status in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        # Another range than requested, or more bytes are here than the file has.
        reason += " does not continue the bytes received before"
        raise TransferError(without_credentials(url), reason, no_ranges=True)
    if status in (408, 425, 429) or status >= 500:
        retry_after_s = _retry_after_s(headers.get("Retry-After", ""))
        no_ranges = status == HTTPStatus.TOO_MANY_REQUESTS and resumable_bytes > 0
        raise TransferError(without_credentials(url), reason, retry_after_s=retry_after_s, no_ranges=no_ranges)
    raise FetchError(without_credentials(url), reason)


def _phrase(status: int) -> str:
    """Return the standard text of an HTTP status, not the server's own."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _retry_after_s(value: str) -> float:
    """Return the delay that a Retry-After header asks for, in seconds or as a date; 0 if it is neither."""
    if value.isdecimal():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date - datetime.now(date.tzinfo and UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _error_of(url: str, error: Exception) -> FetchError:
    """Return what an exception of requests or urllib3 means, without the credentials that its text may hold."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(error, _OF_A_PROXY) and select_proxy(url, get_environ_proxies(url)):
        variable = f"{urlsplit(url).scheme.upper()}_PROXY"
        reason = (
            f"no connection through the proxy that {variable} or ALL_PROXY names; correct the variable, or unset it"
        )
        return TransferError(without_credentials(url), reason, unreachable=True)
    if isinstance(error, requests.ConnectTimeout) or isinstance(cause, NewConnectionError):
        return TransferError(without_credentials(url), "no connection to the server", unreachable=True)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return FetchError(
            without_credentials(url),
            "the server's TLS certificate cannot be verified; if its authority is not a public one, "
            "set REQUESTS_CA_BUNDLE to the file with its certificate",
        )
    if url.startswith("https:") and not _has_authorities(url):
        return FetchError(
            without_credentials(url),
            "the file of certificate authorities that REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names cannot be used; "
            "correct the variable, or unset it",
        )
    if isinstance(error, ValueError):
        return FetchError(without_credentials(url), f"the server's answer is not valid ({type(error).__name__})")
    dropped = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, HTTPError)
    if isinstance(error, dropped):
        return TransferError(without_credentials(url), "the connection was lost or timed out")
    return FetchError(without_credentials(url), f"the request failed ({type(error).__name__})")


def _has_authorities(url: str) -> bool:
    """Return whether the certificate authorities that the environment sets for requests, if any, can be used."""
    with requests.Session() as session:
        path = session.merge_environment_settings(url, {}, None, None, None)["verify"]
    if not isinstance(path, str):
        return True
    try:
        if os.path.isdir(path):
            ssl.create_default_context(capath=path)
        else:
            ssl.create_default_context(cafile=path)
    except OSError:  # an SSLError is one, too
        return False
    return True
