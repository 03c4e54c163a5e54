"""Downloads: from allowed hosts alone, whole or not at all, resumed, and an address's secret part nowhere."""

import json
import socket
import threading

import pytest

from data_pipeline.history import download
from data_pipeline.history.download import Download, DownloadFailed, Limits, Refused

CONTENT = bytes(range(256)) * 4000


def fetch(tmp_path, url, hosts=("127.0.0.1",), **limits):
    return Download(url, download.folder(tmp_path, "A/B", ".."), hosts, Limits(**limits)).run()


def test_a_file_is_fetched_to_a_folder_no_name_can_leave(tmp_path, web):
    web.files["/gb/2025-11-14_SPX.json"] = CONTENT
    fetched = fetch(tmp_path, web.url + "/gb/2025-11-14_SPX.json?sig=SECRET")
    assert fetched.path == tmp_path / "source" / "gexbot" / "A%2FB" / "%2E%2E" / "2025-11-14_SPX.json"
    assert fetched.path.read_bytes() == CONTENT and fetched.new and fetched.size == len(CONTENT)
    assert web.seen[0][0].endswith("?sig=SECRET")
    for path in tmp_path.rglob("*"):
        assert "SECRET" not in path.name and (path.is_dir() or b"SECRET" not in path.read_bytes())
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "path, name",
    [
        ("/a%2F..%2Fb", "a%2F..%2Fb"),
        ("/%2e%2e", "%2E%2E"),
        ("/", "history"),
        ("/x/..", "%2E%2E"),
        ("/%00a", "%00a"),
        ("/" + "n" * 250, "n" * 150),
    ],
)
def test_the_name_of_the_file_comes_safely_from_the_path(tmp_path, web, path, name):
    web.files[path] = CONTENT
    assert fetch(tmp_path, web.url + path).path.name == name


def test_a_download_that_broke_off_is_resumed_where_it_was(tmp_path, web):
    web.files["/f"], web.cut = CONTENT, [300_000]
    with pytest.raises(DownloadFailed, match="cut short"):
        fetch(tmp_path, web.url + "/f?sig=1")
    assert len(next(tmp_path.rglob("f.part")).read_bytes()) == 300_000
    assert fetch(tmp_path, web.url + "/f?sig=2").path.read_bytes() == CONTENT
    assert web.seen[1][1]["Range"] == "bytes=300000-"


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(tmp_path, web):
    web.files["/f"], web.cut = CONTENT, [300_000]
    with pytest.raises(DownloadFailed):
        fetch(tmp_path, web.url + "/f")
    web.files["/f"] = CONTENT[::-1]
    assert fetch(tmp_path, web.url + "/f").path.read_bytes() == CONTENT[::-1]


def test_a_part_that_the_server_cannot_go_on_with_is_dropped(tmp_path, web):
    web.files["/f"], web.cut = CONTENT, [300_000]
    with pytest.raises(DownloadFailed):
        fetch(tmp_path, web.url + "/f")
    web.answers["/f"] = (416, {}, b"")
    with pytest.raises(DownloadFailed, match="416"):
        fetch(tmp_path, web.url + "/f")
    del web.answers["/f"]
    assert fetch(tmp_path, web.url + "/f").path.read_bytes() == CONTENT


def test_a_whole_file_is_not_fetched_again_unless_it_changed(tmp_path, web):
    web.files["/f"] = CONTENT
    fetch(tmp_path, web.url + "/f")
    assert not fetch(tmp_path, web.url + "/f?sig=other").new
    web.files["/f"] = b"new"
    again = fetch(tmp_path, web.url + "/f")
    assert again.new and again.path.read_bytes() == b"new"


def test_two_addresses_that_end_alike_do_not_share_a_file(tmp_path, web):
    web.files |= {"/a/f.json": b"one", "/b/f.json": b"two"}
    one, two = fetch(tmp_path, web.url + "/a/f.json"), fetch(tmp_path, web.url + "/b/f.json")
    assert (one.path.read_bytes(), two.path.read_bytes()) == (b"one", b"two")
    assert not fetch(tmp_path, web.url + "/b/f.json").new and fetch(tmp_path, web.url + "/a/f.json").path == one.path


@pytest.mark.parametrize(
    "url, hosts",
    [
        ("file:///etc/passwd", ("*",)),
        ("ftp://hist.gex.bot/x", ("*",)),
        ("gopher://x/", ("*",)),
        ("//hist.gex.bot/x", ("*",)),
        ("", ("*",)),
        ("http://", ("*",)),
        ("http://[::1", ("*",)),
        ("http://hist.gex.bot:99999/", ("*",)),
        ("http://a b/", ("*",)),
        ("http://hist.gex.bot/\r\nX: y", ("*",)),
        ("http://user:pw@hist.gex.bot/", ("*",)),
        ("http://evil.example/", ("hist.gex.bot",)),
        ("http://hist.gex.bot.evil.example/", ("hist.gex.bot",)),
        ("http://evilhist.gex.bot/", ("hist.gex.bot",)),
        ("http://hist.gex.bot@evil.example/", ("hist.gex.bot",)),
        ("123", ("*",)),
    ],
)
def test_what_is_no_http_address_of_an_allowed_host_is_refused(tmp_path, url, hosts):
    with pytest.raises(Refused):
        fetch(tmp_path, url, hosts)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.1.2.3",
        "169.254.169.254",
        "0.0.0.0",
        "[64:ff9b::7f00:1]",
        "[fe80::1]",
        "224.0.0.1",
        "100.64.0.1",
    ],
)
def test_a_star_opens_no_private_address(tmp_path, web, host):
    with pytest.raises(DownloadFailed):
        fetch(tmp_path, f"http://{host}:{web.port}/f", ("*",))
    assert not web.seen


@pytest.mark.parametrize(
    "host",
    [
        "[fec0::1]",
        "[fd00::1]",
        "[fe80::1]",
        "[::127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::192.168.0.1]",
        "[64:ff9b:1::8.8.8.8]",
        "[2002:7f00:1::]",
        "[2001:0:808:808::]",
        "[ff02::1]",
        "192.0.0.8",
        "192.88.99.1",
        "224.0.0.1",
    ],
)
def test_no_form_of_a_private_address_is_taken_for_a_public_one(tmp_path, host):
    with pytest.raises(Refused, match="private"):
        fetch(tmp_path, f"http://{host}:1/f", ("*",))


def test_public_addresses_are_public_in_each_of_their_forms():
    for address in ("8.8.8.8", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"):
        assert download._is_public(address), address


def test_a_subdomain_of_an_allowed_host_may_not_point_inside(tmp_path, web, monkeypatch):
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *a, **k: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", web.port))]
    )
    with pytest.raises(Refused, match="private"):
        fetch(tmp_path, f"http://x.hist.gex.bot:{web.port}/f", ("hist.gex.bot",))
    web.files["/f"] = b"x"
    with pytest.raises(Refused, match="private"):  # a default, which no operator named
        fetch(tmp_path, f"http://hist.gex.bot:{web.port}/f", download.DEFAULT_HOSTS)
    assert fetch(tmp_path, f"http://own.example:{web.port}/f", ("own.example",)).size == 1  # named itself
    assert len(web.seen) == 1


def test_redirects_are_followed_and_checked_like_the_first_address(tmp_path, web):
    web.files["/f"] = CONTENT
    web.answers["/r"] = (302, {"Location": "/f?sig=1"}, b"")
    web.answers["/inside"] = (302, {"Location": f"http://localhost:{web.port}/f"}, b"")
    web.answers["/local"] = (302, {"Location": "file:///etc/passwd"}, b"")
    web.answers["/round"] = (302, {"Location": "/round"}, b"")
    assert fetch(tmp_path, web.url + "/r").path.read_bytes() == CONTENT
    for path in ("/inside", "/local"):
        with pytest.raises(Refused):
            fetch(tmp_path, web.url + path)
    with pytest.raises(DownloadFailed, match="redirects"):
        fetch(tmp_path, web.url + "/round")


def test_too_large_a_file_is_refused_said_or_unsaid(tmp_path, web):
    web.files["/f"] = CONTENT
    with pytest.raises(Refused, match="1024000 bytes are more"):
        fetch(tmp_path, web.url + "/f", bytes=1000)
    web.answers["/g"] = (200, {"Content-Length": ""}, CONTENT)
    with pytest.raises(Refused, match="more than the 1000 bytes"):
        fetch(tmp_path, web.url + "/g", bytes=1000)
    assert not list(tmp_path.rglob("*.part"))


def test_a_server_that_says_nothing_or_drips_is_left_in_time(tmp_path, web):
    web.answers["/held"] = (200, {"Content-Length": "100"}, b"x")
    with pytest.raises(DownloadFailed, match="timed out"):
        fetch(tmp_path, web.url + "/held", read=0.05)
    with pytest.raises(DownloadFailed, match="not done after 0.1 s"):
        fetch(tmp_path, web.url + "/held", read=30, total=0.1)


def test_cancel_ends_a_download_that_waits(tmp_path, web):
    web.answers["/held"] = (200, {"Content-Length": "100"}, b"x")
    started = threading.Event()
    one = Download(web.url + "/held", tmp_path, ("127.0.0.1",), progress=lambda done, whole: started.set())
    problems = []

    def run():
        with pytest.raises(DownloadFailed) as caught:
            one.run()
        problems.append(str(caught.value))

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    one.cancel()
    thread.join(10)
    assert problems == ["stopped"]


def test_two_downloads_never_write_to_one_file(tmp_path, web):
    web.answers["/held"] = (200, {"Content-Length": "100"}, b"x")
    started = threading.Event()
    hosts = ("127.0.0.1",)
    first = Download(web.url + "/held", tmp_path, hosts, progress=lambda done, whole: started.set())
    thread = threading.Thread(target=lambda: pytest.raises(DownloadFailed, first.run))
    thread.start()
    assert started.wait(10)
    with pytest.raises(DownloadFailed, match="another download"):
        Download(web.url + "/held", tmp_path, hosts).run()
    first.cancel()
    thread.join(10)


def test_no_message_has_the_query_of_an_address(tmp_path, web):
    web.answers["/r"] = (302, {"Location": "http://127.0.0.1:1/f?sig=SECRET"}, b"")
    for url in (
        web.url + "/none?sig=SECRET",
        "http://127.0.0.1:1/?sig=SECRET",
        "http://nowhere.invalid/?sig=SECRET",
        web.url + "/r?sig=SECRET",
        "http://evil.example/?sig=SECRET",
        "x?SECRET",
    ):
        with pytest.raises(DownloadFailed) as caught:
            fetch(tmp_path, url, ("127.0.0.1", "nowhere.invalid"))
        assert "SECRET" not in str(caught.value) and "SECRET" not in repr(caught.value.__cause__)


def test_a_damaged_note_beside_the_file_only_costs_a_new_download(tmp_path, web):
    web.files["/f"] = CONTENT
    note = fetch(tmp_path, web.url + "/f").path.with_name(".f.json")
    for damage in (b"", b"[]", b"\xff", json.dumps({"of": 5, "mark": 7}).encode()):
        note.write_bytes(damage)
        assert fetch(tmp_path, web.url + "/f").path.read_bytes() == CONTENT


def test_the_default_hosts_are_those_of_the_setting():
    from data_pipeline import config

    row = next(setting for setting in config.SETTINGS if setting.name == "HISTORY_ALLOWED_HOSTS")
    assert tuple(row.default.split(",")) == download.DEFAULT_HOSTS
    for url in (
        "https://nfagexbotresearch.blob.core.windows.net/c/2026-06-16_NQ_NDX_classic_gex_zero.json.gz?sv=1&sig=x",
        "https://api.gex.bot/v2/hist/SPX/classic/gex_zero/2025-11-14",
    ):
        assert download.checked(url, download.DEFAULT_HOSTS)


def test_an_answer_that_names_another_address_is_followed(tmp_path, web):
    web.files["/ask"] = json.dumps({"url": web.url + "/2025-11-14_SPX.json?sig=SECRET"}).encode()
    web.files["/2025-11-14_SPX.json"] = CONTENT
    fetched = fetch(tmp_path, web.url + "/ask?noredirect")
    assert fetched.path.name == "2025-11-14_SPX.json" and fetched.path.read_bytes() == CONTENT
    assert not list(tmp_path.rglob("ask*")) and not list(tmp_path.rglob(".ask*"))


@pytest.mark.parametrize("named", ["https://example.invalid/x.json", "file:///etc/passwd", "http://127.0.0.2/x"])
def test_an_address_that_an_answer_names_obeys_the_same_rules(tmp_path, web, named):
    web.files["/ask"] = json.dumps({"url": named}).encode()
    with pytest.raises(Refused):
        fetch(tmp_path, web.url + "/ask")


def test_answers_that_name_each_other_end(tmp_path, web):
    web.files["/a"] = json.dumps({"url": "/a"}).encode()
    with pytest.raises(DownloadFailed, match="redirects"):
        fetch(tmp_path, web.url + "/a")


def test_a_server_that_drips_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stopped = threading.Event()

        def drip():
            client, _ = listening.accept()
            with client:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                try:
                    while not stopped.wait(0.05):
                        client.sendall(b"x")
                except OSError:
                    pass

        server = threading.Thread(target=drip)
        server.start()
        with pytest.raises(DownloadFailed, match="slower than"):
            fetch(tmp_path, f"http://127.0.0.1:{listening.getsockname()[1]}/f", window=0.5)
        stopped.set()
        server.join()


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "x..example", "\u2488.example", "xn--\u00e9.example"])
def test_a_host_that_is_no_name_is_refused(tmp_path, host):
    with pytest.raises((Refused, DownloadFailed)):
        fetch(tmp_path, f"http://{host}/f", ("*",))


@pytest.mark.parametrize(
    "link, names",
    [
        ("https://hist.gex.bot/2025-11-14_NQ_NDX_classic_gex_zero.json", ("NQ_NDX", "gex_zero")),
        ("https://b/c/2026-06-16_SPX_classic_gex_full.json.gz?sig=x", ("SPX", "gex_full")),
        ("https://api.gex.bot/v2/hist/SPX/classic/gex_zero/2025-11-14", ("SPX", "gex_zero")),
        ("https://hist.gex.bot/whatever.json", ("", "")),
    ],
)
def test_a_links_name_tells_ticker_and_endpoint(link, names):
    assert download.named_in(link) == names


def test_the_api_key_goes_in_the_query_and_nowhere_in_the_clear(tmp_path, web, monkeypatch):
    parts = download.checked("https://api.gex.bot/v2/hist?noredirect", download.DEFAULT_HOSTS)
    assert download._target(parts, "K&Y") == "/v2/hist?noredirect&key=K%26Y"
    monkeypatch.setattr(download, "API_HOSTS", ("127.0.0.1",))
    web.files["/f"] = CONTENT
    Download(web.url + "/f", tmp_path, ("127.0.0.1",), api_key="KEY").run()
    assert "KEY" not in str(web.seen)
