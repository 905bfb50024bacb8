"""Asking whether a file or a host is there."""

import socket
import time

import pytest

from driftkit.storage.download import host_of, require_file, unreachable_hosts
from tests.web import serve


def test_a_file_that_is_there_passes_and_one_that_is_not_does_not():
    with serve() as site:
        site.files["/a"] = b"x"
        require_file(f"{site.url}/a")
        with pytest.raises(OSError, match="404"):
            require_file(f"{site.url}/b")
    with pytest.raises(OSError):
        require_file(f"{site.url}/a")


def test_a_redirect_to_an_address_signed_for_get_alone_counts_as_there():
    with serve() as store, serve() as site:
        store.files["/a"], store.refuse_head = b"x", True
        with pytest.raises(OSError, match="403"):
            require_file(f"{store.url}/a")
        site.redirect = store.url
        require_file(f"{site.url}/a")


def test_every_answer_of_a_host_is_one_and_silence_is_named():
    with serve() as site, socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()  # takes connections and never answers
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        found = unreachable_hosts([f"{site.url}/a", f"{site.url}/b", f"{silent}/a", "file:///a"], timeout_s=0.5)
        assert time.monotonic() - started < 2
        assert list(found) == [silent]
        assert found[silent]
        assert site.asked == ["HEAD /"]


def test_hosts_by_scheme():
    assert host_of("https://a.org:8/b/c?d") == "https://a.org:8"
    assert host_of("file:///a/b") == "file:"
