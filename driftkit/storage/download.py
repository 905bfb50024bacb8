"""Downloads, and asking shortly whether a host or a file is there."""

import contextlib
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from driftkit.errors import ArtifactError
from driftkit.runtime.progress import phase
from driftkit.storage.atomic import atomic_path, require_free

TIMEOUT_S = 10.0
STALLED_S = 30.0  # without a byte, until a download is given up


def download(url: str, target: Path, check: Callable[[Path], object], *, max_bytes: int | None = None) -> None:
    """Fetch a file; its name appears only when the whole file is there and `check` accepts it.

    Args:
        max_bytes: largest size that the host may announce; None: any that fits the disk.

    Raises:
        ArtifactError: it cannot be reached, breaks off, is larger, or is another file.
        StorageError: the disk takes no more.
    """
    import torch

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_S)
    try:
        size = announced_bytes(url)
        if size and max_bytes and size > max_bytes:
            raise ArtifactError(f"{url}: the host announces {size:,} bytes, expected at most {max_bytes:,}")
        with atomic_path(target, num_bytes=size) as temporary:
            require_free(target, size or 0, target.name)
            has_bar = sys.stderr.isatty()  # torch's own, of bytes
            with contextlib.nullcontext() if has_bar else phase(f"downloading {target.name}"):
                torch.hub.download_url_to_file(url, str(temporary), progress=has_bar)
            try:
                check(temporary)
            except ArtifactError as error:  # the temporary file is gone when the message is read
                raise ArtifactError(str(error).replace(str(temporary), url)) from None
    except (OSError, HTTPException) as error:
        raise ArtifactError(f"{target.name} did not come from {url}: {error or type(error).__name__}") from None
    finally:
        socket.setdefaulttimeout(before)


def require_file(url: str, *, timeout_s: float = TIMEOUT_S) -> None:
    """Ask for the header of a file once.

    Raises:
        OSError: no network, no such host, or the host says that it has no such file.
    """
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "driftkit"})
    try:
        urllib.request.urlopen(request, timeout=timeout_s).close()
    except HTTPException as error:
        raise OSError(f"no HTTP answer: {type(error).__name__}") from None
    except urllib.error.HTTPError as error:
        # Addresses that a host redirects to are often signed for GET alone; its redirect says that the file is there.
        if urlsplit(error.url).netloc == urlsplit(url).netloc:
            raise


def announced_bytes(url: str) -> int | None:
    """The size that a host gives for a file; None where it says none."""
    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "driftkit"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            length = reply.headers.get("Content-Length")
    except (OSError, HTTPException):  # the download says what is wrong
        return None
    return int(length) if length and length.isdigit() else None


def host_of(url: str) -> str:
    """Scheme and host of an address, for example https://huggingface.co; file: where it names a local file."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else f"{parts.scheme}:"


def unreachable_hosts(urls: Iterable[str], *, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """Which hosts of these addresses give no answer of any kind, all asked at once.

    Args:
        timeout_s: for all of them together, name look-up included.

    Returns:
        Reason by host, as `host_of` names it; a host that answers is not in it.
    """
    hosts = sorted({host for host in map(host_of, urls) if not host.startswith("file:")})
    reasons = dict.fromkeys(hosts, f"no answer within {timeout_s:g} s")
    answered: dict[str, str] = {}

    def ask(host: str) -> None:
        reason = ""
        try:
            require_file(f"{host}/", timeout_s=timeout_s)
        except urllib.error.HTTPError:
            pass  # it refuses this page, so it is there
        except OSError as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        answered[host] = reason

    # Daemons, because a name look-up knows no timeout: one that hangs must not keep the program from ending.
    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    reasons |= answered.copy()
    return {host: reason for host, reason in reasons.items() if reason}
