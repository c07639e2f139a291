"""Bytes of an image behind an address: http, https and data URLs, with the standard library only."""

from __future__ import annotations

import base64
import binascii
import http.client
import time
import urllib.error
import urllib.request
from urllib.parse import unquote_to_bytes

from keyglue.base.errors import ImageError

DEFAULT_TIMEOUT = 60.0
MAX_BYTES = 256 * 2**20
_CHUNK = 2**18


def fetch(url: str, timeout: float | None = None) -> bytes:
    """Return what an address holds.

    Args:
        url: An http, https or data URL.
        timeout: Seconds for the whole download; 60 unless given.

    Raises:
        ImageError: The address is malformed, does not answer in time or with an error, or holds over 256 MiB.
    """
    if url[:5].lower() == "data:":
        return _decode_data_url(url)
    seconds = DEFAULT_TIMEOUT if timeout is None else timeout
    if seconds <= 0:
        raise ImageError(f"timeout must be a positive number of seconds, got {timeout!r}.")
    try:
        return _download(url, seconds)
    except urllib.error.HTTPError as error:
        with error:
            raise ImageError(f"{url} cannot be read: the server answered {error.code} {error.reason}.") from error
    except TimeoutError as error:
        raise ImageError(f"{url} did not arrive within {seconds:g} seconds. Pass a longer timeout.") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise ImageError(f"{url} did not answer within {seconds:g} seconds. Pass a longer timeout.") from error
        raise ImageError(f"{url} cannot be reached: {error.reason}.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(f"{url} cannot be read: {type(error).__name__}: {error}.") from error


def _download(url: str, seconds: float) -> bytes:
    # urllib's own timeout is for each wait on the socket; a server that drips bytes would hold us for ever.
    deadline = time.monotonic() + seconds
    request = urllib.request.Request(url, headers={"User-Agent": "keyglue"})
    chunks: list[bytes] = []
    total = 0
    with urllib.request.urlopen(request, timeout=seconds) as response:
        announced = response.headers.get("Content-Length", "")
        while chunk := response.read1(_CHUNK):
            chunks.append(chunk)
            total += len(chunk)
            if total > MAX_BYTES:
                raise ImageError(f"{url} holds more than {MAX_BYTES // 2**20} MiB. Download it and pass the file.")
            if time.monotonic() > deadline:
                raise TimeoutError
    if announced.isdecimal() and total < int(announced):
        raise ImageError(f"{url} broke off: {total} of {announced} bytes arrived. Try again.")
    return b"".join(chunks)


def _decode_data_url(url: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma:
        raise ImageError("a data URL has the form data:image/png;base64,...; this one has no comma.")
    data = unquote_to_bytes(payload)
    if not header.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(f"{url[:40]}... is not valid base64: {error}.") from error
