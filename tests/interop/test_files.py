"""Routes with `files`: a built web page from a folder (docs/protocol.md, Files)."""

import gzip
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading

import pytest

from gatewaylab.gateway import route
from gatewaylab.peers import pattern
from gatewaylab.wire import eventually

SIZE = 300_007
SECRET = b"not for clients"
PAGE = b"<!doctype html><title>app</title><p>the page"
SCRIPT = b"console.log('\xe3\x81\x93')" * 20


@pytest.fixture
def site(lab, tmp_path):
    return Site(lab, tmp_path)


class Site:
    def __init__(self, lab, folder):
        self.lab, self.root = lab, folder / "dist"
        self.root.mkdir()
        (folder / "secret.txt").write_bytes(SECRET)
        for name, data in {
            "index.html": PAGE,
            "big.bin": pattern(SIZE),
            "empty.txt": b"",
            "assets/index-DiwrgTda.js": SCRIPT,
            "assets/index-DiwrgTda.js.br": b"brotli of it",
            "assets/index-DiwrgTda.js.gz": gzip.compress(SCRIPT),
            "sub/index.html": b"<p>sub",
            ".env": SECRET,
            ".git/config": SECRET,
            "sub/.hidden": SECRET,
            ".well-known/security.txt": b"Contact: mailto:a@example.com",
            "\u3042 b.txt": b"spaces and kana",
        }.items():
            self.write(name, data)

    def write(self, name, data):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def gateway(self, path="/{file...}", fallback="index.html", **config):
        files = route("app", path, files=str(self.root), **({"fallback": fallback} if fallback else {}))
        return self.lab.gateway({"route": [route("input", "/ws/input", backend="ws://127.0.0.1:9/"), files], **config})


def test_files_have_type_length_and_validators(site):
    """Known types, UTF-8 for text, `nosniff`, `ETag` and `Last-Modified`, `Vary`; one connection for all."""
    client = site.gateway().connect()
    for target, name, kind in [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/index.html?v=1", "index.html", "text/html; charset=utf-8"),
        ("/sub/", "sub/index.html", "text/html; charset=utf-8"),
        ("/assets/index-DiwrgTda.js", "assets/index-DiwrgTda.js", "text/javascript; charset=utf-8"),
        ("/big.bin", "big.bin", "application/octet-stream"),
        ("/empty.txt", "empty.txt", "text/plain; charset=utf-8"),
        ("/%E3%81%82%20b.txt", "\u3042 b.txt", "text/plain; charset=utf-8"),
        ("/.well-known/security.txt", ".well-known/security.txt", "text/plain; charset=utf-8"),
    ]:
        data = (site.root / name).read_bytes()
        reply = client.get(target)
        assert (reply.status, reply.body) == (200, data), target
        assert reply.head["Content-Type"] == kind
        assert reply.head["X-Content-Type-Options"] == "nosniff"
        assert reply.head["Accept-Ranges"] == "bytes"
        assert reply.head["Vary"] == "Accept-Encoding"
        assert reply.head["ETag"].startswith('"') and reply.head["Last-Modified"].endswith(" GMT")
        head = client.get(target, method="HEAD")
        assert (head.status, head.body, head.head["Content-Length"]) == (200, b"", str(len(data)))
        assert head.head["ETag"] == reply.head["ETag"]
    client.vanish()


def test_a_known_file_is_304_and_ranges_are_206(site):
    client = site.gateway().connect()
    for target, size in (("/big.bin", SIZE), ("/index.html", len(PAGE))):
        whole = client.get(target)
        for condition in (("If-None-Match", whole.head["ETag"]), ("If-Modified-Since", whole.head["Last-Modified"])):
            known = client.get(target, headers=[condition])
            assert (known.status, known.body) == (304, b"")
            for name in ("ETag", "Cache-Control", "Vary"):
                assert known.head[name] == whole.head[name]
        part = client.get(target, headers=[("Range", "bytes=3-12"), ("If-Range", whole.head["ETag"])])
        assert (part.status, part.body) == (206, whole.body[3:13])
        assert part.head["Content-Range"] == f"bytes 3-12/{size}"
        last = client.get(target, headers=[("Range", "bytes=-5")])
        assert (last.status, last.body) == (206, whole.body[-5:])
        beyond = client.get(target, headers=[("Range", f"bytes={size}-")])
        assert (beyond.status, beyond.head["Content-Range"], beyond.head["Cache-Control"]) == (416, f"bytes */{size}", "no-store")
        assert client.get(target, headers=[("If-Match", '"other"')]).status == 412
    client.vanish()


def test_siblings_are_sent_to_those_that_prefer_them(site):
    client = site.gateway().connect()
    target, tags = "/assets/index-DiwrgTda.js", set()
    for accepted, name, coding in [
        ("gzip, deflate, br", ".br", "br"),
        ("gzip", ".gz", "gzip"),
        ("br;q=0.2, gzip;q=0.8", ".gz", "gzip"),
        ("br;q=0, identity", "", None),
        ("*;q=0", "", None),
        (None, "", None),
    ]:
        reply = client.get(target, headers=[("Accept-Encoding", accepted)] if accepted else [])
        assert reply.body == (site.root / f"assets/index-DiwrgTda.js{name}").read_bytes()
        assert reply.head.all("Content-Encoding") == ([coding] if coding else [])
        assert reply.head["Content-Type"] == "text/javascript; charset=utf-8"
        assert reply.head["Vary"] == "Accept-Encoding"
        tags.add(reply.head["ETag"])
    assert len(tags) == 3
    plain = client.get("/big.bin", headers=[("Accept-Encoding", "gzip, br")])
    assert (plain.body, "Content-Encoding" in plain.head) == (pattern(SIZE), False)
    client.vanish()


def test_curl_inflates_a_sibling(site):
    gateway = site.gateway()
    url = f"http://127.0.0.1:{gateway.port}/assets/index-DiwrgTda.js"
    out = subprocess.run(["curl", "-sS", "--fail", "-H", "Accept-Encoding: gzip", "--compressed", url], capture_output=True, check=True)
    assert out.stdout == SCRIPT


def test_names_with_a_hash_are_immutable(site):
    site.write("font-12345678.woff2", b"f")
    gateway = site.gateway()
    cached = lambda target: gateway.get(target, headers=[("Accept", "text/html")]).head["Cache-Control"]
    for target in ("/assets/index-DiwrgTda.js", "/font-12345678.woff2"):
        assert cached(target) == "public, max-age=31536000, immutable"
    for target in ("/", "/big.bin", "/sub/", "/assets/gone-DiwrgTda.js"):
        assert cached(target) == "no-cache"


def test_folders_get_their_slash_and_no_list(site):
    gateway = site.gateway(fallback=None)
    for target, location in (("/sub", "/sub/"), ("/sub?a=b&c", "/sub/?a=b&c"), ("/s%75b", "/s%75b/")):
        reply = gateway.get(target)
        assert (reply.status, reply.head["Location"]) == (308, location)
    for target in ("/assets/", "/.well-known/", "/sub/index.html/", "/none/"):
        assert gateway.get(target).status == 404
    assert gateway.get("/assets", method="HEAD").status == 308


def test_the_fallback_is_for_pages(site):
    gateway = site.gateway()
    page = [("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")]
    for target in ("/talk/7", "/none/", "/talk?x=1", "/assets/"):
        reply = gateway.get(target, headers=page)
        assert (reply.status, reply.body) == (200, PAGE)
        assert reply.head["Vary"] == "Accept, Accept-Encoding"
        assert gateway.get(target, method="HEAD", headers=page).head["Content-Length"] == str(len(PAGE))
        for others in ([], [("Accept", "*/*")], [("Accept", "application/json")], [("Accept", "text/html;q=0")]):
            missing = gateway.get(target, headers=others)
            assert (missing.status, missing.json()) == (404, {"status": "error", "error": "Not found"})
    assert gateway.get("/.env", headers=page).status == 404


def test_other_methods_and_upgrades(site):
    gateway = site.gateway()
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        reply = gateway.get("/index.html", method=method)
        assert (reply.status, reply.head["Allow"]) == (405, "GET, HEAD")
    client = gateway.connect()
    client.upgrade("/index.html")
    assert client.read_reply().status == 404
    assert client.get("/index.html", headers=[("Upgrade", "h2c"), ("Connection", "Upgrade")]).status == 200
    client.vanish()


def test_origins_are_not_asked_for_files(site):
    gateway = site.gateway(server={"allowed_origins": ["https://app.example"]})
    reply = gateway.get("/big.bin", headers=[("Origin", "https://evil.example")])
    assert (reply.status, reply.body) == (200, pattern(SIZE))
    assert "Access-Control-Allow-Origin" not in reply.head


HOSTILE = [
    *("/../secret.txt", "/..%2fsecret.txt", "/..%2Fsecret.txt", "/%2e%2e/secret.txt", "/%2e%2e%2fsecret.txt", "/.%2e/secret.txt"),
    *("/%2e./secret.txt", "/%252e%252e/secret.txt", "/%252e%252e%252fsecret.txt", "/..%252fsecret.txt", "/..%255csecret.txt"),
    *("/..\\secret.txt", "/..%5csecret.txt", "/%2e%2e%5csecret.txt", "/sub\\..\\..\\secret.txt", "/sub%5c..%5c..%5csecret.txt"),
    *("/sub/../../secret.txt", "/sub/..%2f../secret.txt", "/sub/%2e%2e/%2e%2e/secret.txt", "/sub/..;/..;/secret.txt", "/..;x=1/secret.txt"),
    *("/..%00/secret.txt", "/index.html%00", "/index.html%00.js", "/%00", "/..%c0%afsecret.txt", "/%c0%ae%c0%ae/secret.txt"),
    *("/%e0%80%ae%e0%80%ae/secret.txt", "/%uff0e%uff0e/secret.txt", "/%u002e%u002e/secret.txt", "/%ef%bc%8e%ef%bc%8e/secret.txt"),
    *("//etc/passwd", "///etc/passwd", "//index.html", "/sub//index.html", "/%2fetc/passwd", "/%2Findex.html", "/sub%2findex.html"),
    *("/etc/passwd", "/proc/self/environ", "/./index.html", "/sub/./index.html", "/index.html/.", "/index.html/..", "/."),
    *("/..", "/../", "/...", "/.../secret.txt", "/....//secret.txt", "/..../secret.txt", "/..%2e/secret.txt"),
    *("/.env", "/%2eenv", "/.git/config", "/.git%2fconfig", "/sub/.hidden", "/sub/%2ehidden", "/.well-known/../.env"),
    *("/.well-known/..%2f.env", "/.well-known/.env", "/sub/.well-known/x", "/%ff%fe", "/%e3%81", "/%", "/%2", "/%zz", "/%+1", "/a%"),
    *("/out.txt", "/out/secret.txt", "/out-absolute.txt", "/passwd", "/slash/etc/passwd", "/up/secret.txt", "/round", "/proc/environ"),
    *("/fifo", "/socket", "/null", "/~root", "/C:/windows/win.ini", "/C:%5cwindows", "/file:///etc/passwd", "/http://127.0.0.1/secret.txt"),
    *("/" + "x" * 300, "/" + "x/" * 3000, "/" + "sub/" * 1500, "/" + "%2e%2e/" * 500 + "etc/passwd", "/index.html%20"),
    *("/index.html;.js", "/index.html%3fx", "/index.html%23", "/%2e%2e%c0%2fsecret.txt", "/..%u2215secret.txt"),
]


@pytest.mark.parametrize("fallback", ["index.html", None])
def test_nothing_outside_the_folder_is_sent(site, fallback):
    """Whatever a path looks like: 404 (or 400 for no HTTP), and never a byte of another file."""
    outside = site.root.parent
    for name, to in {
        "out.txt": "../secret.txt",
        "out": "..",
        "out-absolute.txt": outside / "secret.txt",
        "passwd": "/etc/passwd",
        "slash": "/",
        "up": "sub/../..",
        "round": "round",
        "proc": "/proc/self",
    }.items():
        (site.root / name).symlink_to(to)
    os.mkfifo(site.root / "fifo")
    (site.root / "null").symlink_to("/dev/null")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(site.root / "socket"))
    gateway = site.gateway(fallback=fallback)
    assert len(set(HOSTILE)) >= 60
    for target in HOSTILE:
        client = gateway.connect()
        client.send(b"GET " + target.encode() + b" HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n")
        reply = client.read_reply()
        assert reply.status in (400, 404, 414), (target[:80], reply.status)
        assert SECRET not in reply.body and b"root:" not in reply.body
        client.vanish()
    assert gateway.get("/index.html").body == PAGE
    listener.close()


def test_links_inside_the_folder_are_followed(site):
    releases = site.root.parent / "releases"
    releases.mkdir()
    shutil.move(site.root, releases / "1")
    site.root.symlink_to(releases / "1")
    (site.root / "relative.html").symlink_to("sub/index.html")
    (site.root / "absolute.html").symlink_to(releases / "1" / "sub" / "index.html")
    (site.root / "folder").symlink_to("sub")
    gateway = site.gateway()
    for target in ("/relative.html", "/absolute.html", "/folder/", "/folder/index.html"):
        assert gateway.get(target).body == b"<p>sub", target
    # A new release: the folder's own link is replaced.
    shutil.copytree(releases / "1", releases / "2", symlinks=True)
    (releases / "2" / "index.html").write_bytes(b"<p>second")
    (site.root.parent / "next").symlink_to(releases / "2")
    os.replace(site.root.parent / "next", site.root)
    assert gateway.get("/").body == b"<p>second"


def test_an_unreadable_file_is_403(site):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    site.write("locked.txt", SECRET).chmod(0)
    assert site.gateway().get("/locked.txt").status == 403


def test_a_missing_folder_is_a_warning_and_404_until_it_is_there(site):
    moved = site.root.with_name("moved")
    site.root.rename(moved)
    gateway = site.gateway()
    gateway.process.wait_for_line(r"WARN .*route `app`: the folder \S*/dist cannot be opened: No such file")
    assert gateway.get("/", headers=[("Accept", "text/html")]).status == 404
    moved.rename(site.root)
    assert gateway.get("/").body == PAGE


def test_files_are_live(site):
    """Another folder and fallback by HUP; a download that has begun goes on."""
    gateway = site.gateway()
    other = site.root.with_name("other")
    other.mkdir()
    (other / "home.html").write_bytes(b"<p>other")
    page = [("Accept", "text/html")]
    assert gateway.get("/talk", headers=page).body == PAGE
    config = gateway.file.read_text().replace(str(site.root), str(other)).replace('fallback = "index.html"', 'fallback = "home.html"')
    gateway.file.write_text(config)
    gateway.signal(signal.SIGHUP)
    eventually(lambda: gateway.get("/talk", headers=page).body == b"<p>other", "the other folder is served")


def test_a_file_that_is_written_to_is_broken_off(site):
    """The client sees that less came than the head had announced, and the log says why."""
    path = site.write("large.bin", pattern(8_000_000))
    gateway = site.gateway()
    client = gateway.connect(receive_buffer=4096)
    client.send(b"GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n")
    head = client.read_head()
    assert head["Content-Length"] == "8000000"
    with path.open("r+b") as file:
        file.write(b"x")
    assert len(client.read_to_end()) < 8_000_000
    gateway.process.wait_for_line(r'= file lost why="File changed" file="large.bin"')
    # Replaced by its name, a file goes on as it was.
    client = gateway.connect(receive_buffer=4096)
    client.send(b"GET /large.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    client.read_head()
    was = path.read_bytes()
    new = site.write("new.bin", b"new")
    new.replace(path)
    assert client.read_to_end() == was


def test_python_reuses_its_connection(site):
    """http.client: keep-alive over files of all sizes, and an error between them."""
    gateway = site.gateway()
    client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    client.connect()
    first = client.sock
    for target, status, body in [("/", 200, PAGE), ("/big.bin", 200, pattern(SIZE)), ("/none", 404, None), ("/empty.txt", 200, b"")] * 3:
        client.request("GET", target)
        reply = client.getresponse()
        data = reply.read()
        assert (reply.status, data if body is not None else None) == (status, body)
        assert client.sock is first
    client.close()
    assert gateway.metrics().total("http_responses_total") >= 12


APP = b"""
import * as library from "/client.js";
const socket = new WebSocket(`ws://${location.host}/ws/input`);
window.heard = new Promise((done) => {
  socket.onopen = () => socket.send("hello");
  socket.onmessage = ({ data }) => { socket.close(1000); done(data); };
});
window.answered = fetch("/api/greeting").then((reply) => reply.json());
window.exported = Object.keys(library);
document.querySelector("#app").textContent = location.pathname;
"""


class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def api():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_one_port_serves_page_sockets_library_and_api(site, browser, library_backend, api):
    """A built single-page application in Chromium: a deep link, its module, `/client.js`, a WebSocket, and its API."""
    html = b"<!doctype html><html lang=en><title>app</title><link rel=icon href=data:,><main id=app></main>"
    site.write("index.html", html + b"<script type=module src=/assets/app-Dk3f92_x.js></script>")
    site.write("assets/app-Dk3f92_x.js", APP)
    gateway = site.lab.gateway(
        {
            "route": [
                route("input", "/ws/input", backend=library_backend.url()),
                route("api", "/api/{rest...}", backend=f"http://127.0.0.1:{api}/v1/{{rest}}"),
                route("app", "/{file...}", files=str(site.root), fallback="index.html"),
            ]
        }
    )
    for path in ("/", "/talk/7"):
        assert browser.goto(f"http://127.0.0.1:{gateway.port}{path}")["status"] == 200
        assert browser.evaluate("document.querySelector('#app').textContent") == path
        assert browser.evaluate("window.heard") == "hello"
        assert browser.evaluate("window.answered") == {"path": "/v1/greeting"}
        assert browser.evaluate("window.exported.length") > 0
    assert browser.complaints() == []
    browser.leave()


def test_a_route_may_serve_below_a_prefix(site):
    gateway = site.gateway(path="/static/{file...}")
    assert gateway.get("/static/").body == PAGE
    assert gateway.get("/static/sub/index.html").body == b"<p>sub"
    assert gateway.get("/static/sub").head["Location"] == "/static/sub/"
    assert gateway.get("/static").status == 404
    assert "Content-Security-Policy" in gateway.get("/").head, "the status page"
