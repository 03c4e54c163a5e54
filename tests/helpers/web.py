"""A real local web server that stands in for one that has history files."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """Serves `files` (path -> bytes) with ETag, Range and If-Range; use as a context manager.

    cut: bytes after which a body is broken off, for the answers to come that
    many are listed; answers: path -> (status, headers, body) given as they
    are; seen: (path with query, headers) of each request.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, tuple] = {}
        self.cut: list[int] = []
        self.seen: list[tuple[str, dict]] = []
        self.held = threading.Event()  # a path /held waits for it
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                web.seen.append((self.path, dict(self.headers)))
                path = self.path.split("?")[0]
                if path in web.answers:
                    return self.say(*web.answers[path])
                if path not in web.files:
                    return self.say(404, {}, b"")
                self.file(web.files[path])

            def file(self, content):
                tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
                if self.headers.get("If-None-Match") == tag:
                    return self.say(304, {"ETag": tag}, b"")
                asked = self.headers.get("Range")
                if asked and self.headers.get("If-Range") == tag:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    of = f"bytes {start}-{len(content) - 1}/{len(content)}"
                    return self.say(206, {"ETag": tag, "Content-Range": of}, content[start:])
                self.say(200, {"ETag": tag}, content)

            def say(self, status, headers, body):
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                cut = web.cut.pop(0) if web.cut and body else None
                self.wfile.write(body[:cut])
                if self.path.startswith("/held"):
                    self.wfile.flush()
                    web.held.wait()

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="web")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *args):
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
