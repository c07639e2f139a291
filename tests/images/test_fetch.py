"""Images behind addresses, from a server on this machine."""

from __future__ import annotations

import http.server
import threading
import time

import pytest
import torch

from keyglue.base.errors import ImageError
from keyglue.images import fetch
from keyglue.images.read import image_size, read_image


@pytest.fixture
def server(assets):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = (assets / "rocket.jpg").read_bytes()
            if self.path == "/missing.jpg":
                self.send_error(404)
                return
            if self.path == "/moved.jpg":
                self.send_response(302)
                self.send_header("Location", "/rocket.jpg")
                self.end_headers()
                return
            if self.path == "/slow.jpg":
                time.sleep(0.6)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                if self.path == "/broken.jpg":
                    self.wfile.write(content[:1000])
                elif self.path == "/dripping.jpg":
                    for start in range(0, 2000, 100):
                        self.wfile.write(content[start : start + 100])
                        self.wfile.flush()
                        time.sleep(0.05)
                else:
                    self.wfile.write(b"hello" * (len(content) // 5 + 1) if self.path == "/text.jpg" else content)
            except OSError:
                pass

        def log_message(self, *args):
            pass

    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{instance.server_port}"
    instance.shutdown()
    thread.join()
    instance.server_close()


def test_image_behind_an_address(server, assets):
    expected = read_image(assets / "rocket.jpg")
    assert torch.equal(read_image(f"{server}/rocket.jpg"), expected)
    assert torch.equal(read_image(f"{server}/moved.jpg"), expected)
    assert image_size(f"{server}/rocket.jpg") == (427, 640)


@pytest.mark.parametrize(
    ("path", "timeout", "message"),
    [
        ("/missing.jpg", None, "answered 404"),
        ("/text.jpg", None, "not an image"),
        ("/broken.jpg", None, "1000 of"),
        ("/slow.jpg", 0.2, "within 0.2 seconds"),
        ("/dripping.jpg", 0.3, "within 0.3 seconds"),
        ("/rocket.jpg", 0, "positive"),
    ],
)
def test_failures_name_the_address(server, path, timeout, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(server + path, timeout=timeout)
    if timeout != 0:
        assert path in str(caught.value)


def test_too_large_downloads_stop(server, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", 10_000)
    with pytest.raises(ImageError, match="more than"):
        read_image(f"{server}/rocket.jpg")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/a.jpg", "http://", "http://[bad/a.jpg", "http://127.0.0.1:bad/a.jpg"]
)
def test_addresses_that_lead_nowhere(url):
    with pytest.raises(ImageError, match="http"):
        read_image(url, timeout=2)
