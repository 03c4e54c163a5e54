"""Real clients against one running bridge, each with every way to send a body that it has."""

import asyncio
import gzip
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import httpx
import pytest
import requests

from tests.helpers.support import PATIENCE, RunningBridge, eventually

MB = 1 << 20
SIZES = {"3 MB": 3 * MB, "5 MB": 5 * MB}
WAYS = ("normal", "chunked", "gzip", "expect", *SIZES)
NODE = """
const [url, way, kind] = process.argv.slice(1);
const http = require('http'), zlib = require('zlib');
let body = require('fs').readFileSync(0), headers = {'Content-Type': 'application/json'};
if (way == 'gzip') { body = zlib.gzipSync(body); headers['Content-Encoding'] = 'gzip'; }
async function* pieces() { yield body.subarray(0, 5); yield body.subarray(5); }
async function viaFetch() {
  const chunked = way == 'chunked' ? {body: ReadableStream.from(pieces()), duplex: 'half'} : {body};
  const answer = await fetch(url, {method: 'POST', headers, ...chunked});
  await answer.text();
  console.log(answer.status);
}
function viaRequest() {
  if (way != 'chunked') headers['Content-Length'] = body.length;
  if (way == 'expect') headers['Expect'] = '100-continue';
  const asked = http.request(url, {method: 'POST', headers}, a => { a.resume(); console.log(a.statusCode); });
  asked.on('error', e => { console.error(e); });
  if (way == 'expect') asked.on('continue', () => asked.end(body));
  else { asked.write(body.subarray(0, 5)); asked.end(body.subarray(5)); }
}
kind == 'fetch' ? viaFetch() : viaRequest();
"""
NGINX = """
user root; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; client_max_body_size 100m;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream bridge {{ server 127.0.0.1:{bridge}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://bridge; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    with RunningBridge(tmp_path_factory.mktemp("clients") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def proxy(bridge, tmp_path_factory):
    """The address of a real nginx that keeps its connections."""
    program = shutil.which("nginx") or pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, bridge=bridge.port, port=port))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")])

    def listens():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(listens, "nginx listens")
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def pieces(body: bytes):
    yield body[:5]
    yield body[5:]


def headers_and_body(way: str, body: bytes) -> tuple[dict[str, str], bytes]:
    headers = {"Content-Type": "application/json"}
    if way == "gzip":
        return headers | {"Content-Encoding": "gzip"}, gzip.compress(body)
    return headers | ({"Expect": "100-continue"} if way == "expect" else {}), body


def curl(url: str, way: str, body: bytes) -> int:
    headers, body = headers_and_body(way, body)
    if way == "chunked":
        headers["Transfer-Encoding"] = "chunked"
    lines = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *lines, "--data-binary", "@-", url]
    return int(subprocess.run(command, input=body, stdout=subprocess.PIPE, timeout=PATIENCE, check=True).stdout)


def with_requests(url: str, way: str, body: bytes) -> int:
    headers, body = headers_and_body(way, body)
    return requests.post(url, data=pieces(body) if way == "chunked" else body, headers=headers, timeout=10).status_code


def with_http_client(url: str, way: str, body: bytes) -> int:
    headers, body = headers_and_body(way, body)
    asked = http.client.HTTPConnection(url.split("/")[2], timeout=PATIENCE)
    try:
        asked.request("POST", "/uw", pieces(body) if way == "chunked" else body, headers)
        return asked.getresponse().status
    finally:
        asked.close()


def with_httpx(url: str, way: str, body: bytes) -> int:
    headers, body = headers_and_body(way, body)
    return httpx.post(url, content=pieces(body) if way == "chunked" else body, headers=headers, timeout=10).status_code


def with_aiohttp(url: str, way: str, body: bytes) -> int:
    headers, body = headers_and_body(way, body)
    headers.pop("Expect", None)

    async def stream():
        for piece in pieces(body):
            yield piece

    async def post() -> int:
        async with aiohttp.ClientSession() as session:
            data = stream() if way == "chunked" else io.BytesIO(body)
            async with session.post(url, data=data, headers=headers, expect100=way == "expect") as answer:
                return answer.status

    # In a thread of its own: a test of the page may have left its event loop running in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, post()).result(PATIENCE)


def node(kind: str):
    def post(url: str, way: str, body: bytes) -> int:
        if not shutil.which("node") and not os.environ.get("CI"):
            pytest.skip("node is not installed")
        command = ["node", "-e", NODE, url, way, kind]
        return int(subprocess.run(command, input=body, stdout=subprocess.PIPE, timeout=PATIENCE, check=True).stdout)

    return post


CLIENTS = {
    "curl": curl,
    "requests": with_requests,
    "http.client": with_http_client,
    "httpx": with_httpx,
    "aiohttp": with_aiohttp,
    "node fetch": node("fetch"),
    "node http.request": node("request"),
}


def payload(way: str, client: str) -> bytes:
    return json.dumps({"topic": "x", "client": client, "filler": "x" * SIZES.get(way, 10)}).encode()


# Node's fetch has no way to send Expect.
PAIRS = [(client, way) for client in CLIENTS for way in WAYS if (client, way) != ("node fetch", "expect")]


@pytest.mark.parametrize(("client", "way"), PAIRS)
def test_a_real_client_gets_the_answer_to_what_it_sends(bridge, client, way):
    status = CLIENTS[client](f"http://127.0.0.1:{bridge.port}/uw", way, payload(way, client))
    assert status == (413 if way == "5 MB" else 200)


@pytest.mark.parametrize("way", WAYS)
def test_a_proxy_that_keeps_its_connections_gets_the_answer_to_what_it_sends(bridge, proxy, way):
    for _ in range(2):
        assert curl(f"http://127.0.0.1:{proxy}/uw", way, payload(way, "nginx")) == (413 if way == "5 MB" else 200)
