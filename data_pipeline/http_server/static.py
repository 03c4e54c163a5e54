"""The page's files: our own from the folder `page/`, and Plotly's as its package ships it."""

import functools
import gzip
import hashlib
import importlib.util
import pathlib
from dataclasses import dataclass

FOLDER = pathlib.Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
PLOTLY = "/page/plotly.min.js"
# What a client names is looked up here and never becomes a path.
FILES = {"/": "index.html", **{f"/page/{name}": name for name in ("page.css", "page.js", "charts.js")}}
PATHS = frozenset(FILES) | {PLOTLY}

# Plotly writes style elements and draws its pictures from data: and blob: addresses; nothing else leaves 'self'.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
    " object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class StaticFile:
    """A file as it is served: content type, content, the same gzipped, ETag."""

    kind: str
    body: bytes
    packed: bytes
    tag: str


@functools.cache
def get(path: str) -> StaticFile | None:
    """The file of a path of PATHS, read at the first question; None where it is not installed."""
    source = _plotly() if path == PLOTLY else FOLDER / FILES[path]
    if source is None or not source.is_file():
        return None
    body = source.read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return StaticFile(KINDS[source.suffix], body, gzip.compress(body, 6), tag)


def _plotly() -> pathlib.Path | None:
    """Found without importing the package, which would cost half a second and 30 MB."""
    found = importlib.util.find_spec("plotly")
    if found is None or not found.origin:
        return None
    return pathlib.Path(found.origin).parent / "package_data" / "plotly.min.js"
