"""A web server on this machine, for downloads that a test can break."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What is served: path -> content. `cut` serves half of every file, `redirect` sends every path elsewhere."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.cut = False
        self.redirect: str | None = None
        self.refuse_head = False
        self.asked: list[str] = []
        self.url = ""


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(f"{self.command} {self.path}")
            content = site.files.get(self.path.partition("?")[0])
            if site.redirect is not None:
                self.send_response(302)
                self.send_header("Location", site.redirect + self.path)
            elif self.command == "HEAD" and site.refuse_head:
                self.send_response(403)
            elif content is None:
                self.send_response(404)
            else:
                self.send_response(200)
                for name, value in site.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[: len(content) // 2] if site.cut else content)
                return
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
