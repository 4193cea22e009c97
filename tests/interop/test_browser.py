"""A real browser: headless Chromium opens a page from another server, as front ends are served, and the page talks through the
gateway."""

import http.server
import json
import threading

import pytest

from gatewaylab.wire import closed_port

CONVERSATION = """
(url, protocols, steps) => new Promise((done) => {
  const seen = [];
  const socket = new WebSocket(url, protocols);
  socket.binaryType = "arraybuffer";
  const step = () => {
    const next = steps.shift();
    if (next === undefined) socket.close(4000, "page is done");
    else if (typeof next === "number") socket.send(new Uint8Array(next).map((_, at) => at % 251));
    else socket.send(next);
  };
  socket.onopen = () => { seen.push(["open", socket.protocol, socket.extensions]); step(); };
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") seen.push(["text", data]);
    else {
      const bytes = new Uint8Array(data);
      seen.push(["binary", bytes.length, bytes.every((byte, at) => byte === at % 251)]);
    }
    step();
  };
  socket.onerror = () => seen.push(["error"]);
  socket.onclose = ({ code, reason, wasClean }) => { seen.push(["close", code, reason, wasClean]); done(seen); };
})
"""


PAGE = b"<!doctype html><title>a front end</title><link rel=icon href=data:,><p>talks through the gateway"


class FrontEnd(http.server.BaseHTTPRequestHandler):
    """The front end's web server: it answers every request with the one page."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def origin():
    """Where the front end's page is."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FrontEnd)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Page:
    """The front end's page in the browser, with a gateway to talk through."""

    def __init__(self, browser, gateway):
        self.browser, self.gateway = browser, gateway
        self.url = f"ws://127.0.0.1:{gateway.port}/ws/input"

    def talk(self, steps, protocols=()):
        """Sends `steps`, each after the answer to the one before, then closes. Returns what the page saw."""
        arguments = ", ".join(json.dumps(one) for one in (self.url, list(protocols), steps))
        return self.browser.evaluate(f"({CONVERSATION.strip()})({arguments})")


@pytest.fixture
def open_page(lab, browser, origin):
    """Opens the page with a gateway of these routes behind it."""

    def open(backend, **config):
        gateway = lab.gateway(config, backend=backend)
        assert browser.goto(f"{origin}/")["status"] == 200
        return Page(browser, gateway)

    yield open
    assert browser.complaints() == []
    browser.leave()


def test_page_exchanges_text_and_binary(open_page, library_backend):
    """Text and binary pass from a page to a library and back, compressed as the two agreed."""
    page = open_page(library_backend.url())
    seen = page.talk(["こんにちは", 0, 70_000, "", 3_000_000], protocols=["chat.v1", "chat.v2"])
    opened, *messages, closed = seen
    assert opened[:2] == ["open", "chat.v2"]
    assert "permessage-deflate" in opened[2]
    assert messages == [["text", "こんにちは"], ["binary", 0, True], ["binary", 70_000, True], ["text", ""], ["binary", 3_000_000, True]]
    assert closed == ["close", 4000, "page is done", True]


def test_page_sees_the_backends_close_code(open_page, library_backend):
    """A close by either end reaches the other with its code and reason; the page reads both."""
    page = open_page(library_backend.url())
    assert page.talk(["!close 4321 because of you"])[-1] == ["close", 4321, "because of you", True]


def test_page_reads_why_its_backend_is_unavailable(open_page):
    """`on_backend_failure = "close"`, the default: the page reads 1011 and the reason, not 1006."""
    page = open_page(f"ws://127.0.0.1:{closed_port()}/")
    opened, *_, closed = page.talk([])
    assert opened[0] == "open"
    assert closed[:2] == ["close", 1011]
    assert closed[2].startswith("backend unavailable: ")


def test_page_learns_that_its_backend_died(open_page, lab):
    """The backend is killed in the middle of a conversation: the client gets 1011, `backend connection lost`."""
    backend = lab.library_backend("ws")
    page = open_page(backend.url())
    page.browser.evaluate(
        """new Promise((done) => {
          const socket = new WebSocket("%s");
          socket.onopen = () => socket.send("hello");
          socket.onmessage = () => done(true);
          window.ended = new Promise((tell) => { socket.onclose = ({ code, reason }) => tell([code, reason]); });
        })"""
        % page.url
    )
    assert page.gateway.connections()["total_connections"] == 1
    backend.process.kill()
    assert page.browser.evaluate("window.ended") == [1011, "backend connection lost"]


def test_page_of_another_origin_reads_1008(open_page, library_backend):
    """1008, Origin not allowed: a browser sends its page's origin, and the page reads why it was rejected."""
    page = open_page(library_backend.url(), server={"allowed_origins": ["https://app.example"]})
    assert page.talk([])[-1][:3] == ["close", 1008, "Origin not allowed"]


def test_page_of_an_allowed_origin_comes_through(open_page, origin, library_backend):
    """`allowed_origins` compares the page's whole origin, with its port."""
    page = open_page(library_backend.url(), server={"allowed_origins": [origin]})
    assert page.talk(["let in"])[1] == ["text", "let in"]


def test_page_may_read_the_endpoints_of_its_gateway(open_page, origin):
    """JSON endpoints have CORS headers for `allowed_origins`: a page of another server fetches /health."""
    page = open_page("ws://127.0.0.1:9/", server={"allowed_origins": [origin]})
    script = f"fetch('http://127.0.0.1:{page.gateway.port}/health').then((reply) => reply.json())"
    assert page.browser.evaluate(script)["gateway"] == "running"


def test_page_through_two_gateways(open_page, lab, library_backend):
    """Two gateways in a row are as transparent as one."""
    inner = lab.gateway(backend=library_backend.url())
    page = open_page(f"ws://127.0.0.1:{inner.port}/ws/input")
    seen = page.talk(["through two", 100_000])
    assert seen[1:] == [["text", "through two"], ["binary", 100_000, True], ["close", 4000, "page is done", True]]


def test_status_page_opens_without_complaints(lab, browser):
    """`GET /`: the status page, in a browser: it has a title and a body, logs no error, and loads nothing from elsewhere."""
    gateway = lab.gateway(backend="ws://127.0.0.1:9/ws/input")
    opened = browser.goto(f"http://127.0.0.1:{gateway.port}/")
    assert opened["status"] == 200
    assert "aivtuber-gateway" in opened["title"]
    assert "/ws/input" in browser.evaluate("document.body.innerText")
    assert browser.complaints() == []
    browser.leave()
