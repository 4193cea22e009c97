"""HTTP on the gateway's port (docs/protocol.md section 3): methods, bad heads, limits, keep-alive, pipelining."""

import signal

import pytest

from gatewaylab import ROOT
from gatewaylab.gateway import route
from gatewaylab.wire import eventually, plain_request

QUICK = {"server": {"header_timeout": "400ms", "keep_alive": "400ms"}}

ENDPOINTS = [
    *("/", "/gateway", "/events", "/events/frames", "/health", "/ready", "/connections", "/connections/closed", "/metrics", "/client.js"),
    "/status/7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111",
    "/audio/7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111",
    "/audio/7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111/0",
    "/control/stop",
]

BACKEND = "ws://127.0.0.1:9/ws/input"


@pytest.fixture
def gateway(lab):
    routes = [route(backend=BACKEND), route("output", "/ws/output/{task_id}", backend="ws://127.0.0.1:9/o/{task_id}")]
    return lab.gateway({"route": routes})


def ask_raw(lab, gateway, data, method="GET"):
    client = lab.client(gateway)
    client.send(data)
    return client, client.read_reply(method)


def expect_error(reply, status):
    assert reply.status == status, reply.head.raw
    body = reply.json()
    assert body["status"] == "error"
    assert isinstance(body["error"], str) and body["error"]


@pytest.mark.parametrize("target", ["/nope", "/health/", "/Health", "/connections/x", "//", "/ws/nothing"])
def test_unknown_path_is_404(lab, gateway, target):
    """Unknown path: 404, as JSON."""
    expect_error(gateway.get(target), 404)


@pytest.mark.parametrize("target", [*ENDPOINTS, "/ws/input", "/ws/output/1"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_wrong_method_is_405_with_allow(gateway, target, method):
    """Wrong method: 405 with `Allow`."""
    if target == "/control/stop":
        method = "GET" if method in ("POST", "OPTIONS") else method
    if target.startswith(("/audio", "/client.js")) and method == "OPTIONS":
        method = "POST"
    reply = gateway.get(target, method=method)
    expect_error(reply, 405)
    assert ("post" if target == "/control/stop" else "get") in reply.head.tokens("Allow")


@pytest.mark.parametrize("target", [*(one for one in ENDPOINTS if not one.startswith("/events")), "/nope", "/ws/input"])
def test_head_works_wherever_get_does(gateway, target):
    """`HEAD` works wherever `GET` does: same status and type, no body, and the connection stays open."""
    get = gateway.get(target)
    client = gateway.connect()
    head = client.get(target, method="HEAD")
    assert head.status == get.status
    assert head.head.all("Content-Type") == get.head.all("Content-Type")
    assert "Content-Length" in head.head
    assert client.get("/health").status == 200, "a body came although none was asked for"
    client.vanish()


def test_plain_get_on_a_websocket_path_is_426(gateway):
    """A plain GET on a WebSocket path: 426 with `Upgrade: websocket`."""
    for target in ("/ws/input", "/ws/output/abc"):
        reply = gateway.get(target)
        expect_error(reply, 426)
        assert reply.head["Upgrade"].lower() == "websocket"


@pytest.mark.parametrize("version", ["8", "12", "14", "x"])
def test_another_websocket_version_is_426(lab, gateway, version):
    """`Sec-WebSocket-Version` other than 13: 426 with `Sec-WebSocket-Version: 13`."""
    client = lab.client(gateway)
    client.upgrade(headers=[("Sec-WebSocket-Version", version)])
    reply = client.read_reply()
    assert reply.status == 426
    assert reply.head["Sec-WebSocket-Version"] == "13"


UPGRADE = b"GET /ws/input HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n"

BAD_HEADS = {
    "conflicting Content-Length": GET + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "Content-Length that is a list": GET + b"Content-Length: 0, 5\r\n\r\n",
    "Content-Length that is no number": GET + b"Content-Length: +0\r\n\r\n",
    "Transfer-Encoding on a GET": GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bare CR": GET + b"X-A: b\rc\r\n\r\n",
    "a space before the colon": GET + b"X-A : b\r\n\r\n",
    "two Hosts": GET + b"Host: b\r\n\r\n",
    "two keys": UPGRADE + KEY + KEY + b"\r\n",
    "no key": UPGRADE + b"\r\n",
    "a short key": UPGRADE + b"Sec-WebSocket-Key: short\r\n\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
    "a header without a colon": GET + b"nonsense\r\n\r\n",
    "a folded header": GET + b"X-A: b\r\n c\r\n\r\n",
    "a NUL": GET + b"X-A: b\x00c\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD_HEADS.values(), ids=BAD_HEADS.keys())
def test_bad_head_is_400_and_closes(lab, gateway, data):
    """Bad heads: 400. What follows one is not trusted, so the connection is closed."""
    client = lab.client(gateway)
    client.send(data + plain_request("/health"))
    expect_error(client.read_reply(), 400)
    client.half_close()
    assert_ended(client)
    gateway.process.wait_for_line("closed reason=bad_request code=none duration=.* status=400")


def assert_ended(client):
    """Reads to the end, orderly or not: unread bytes make it an RST."""
    try:
        client.expect_end()
    except AssertionError as ended:
        assert "reset" in str(ended)


def test_too_many_bytes_of_headers_are_431(lab, gateway):
    """A head over 16 KiB: 431."""
    client, reply = ask_raw(lab, gateway, GET + b"X-Big: " + b"a" * 20_000 + b"\r\n\r\n")
    expect_error(reply, 431)
    assert_ended(client)


def test_head_that_never_ends_is_431(lab, gateway):
    """431 comes as soon as the limit is exceeded, without waiting for the end of the head."""
    client, reply = ask_raw(lab, gateway, GET + b"X-Line: of many\r\n" * 2_000)
    expect_error(reply, 431)


def test_too_many_headers_are_431(lab, gateway):
    """More than 100 header lines: 431."""
    lines = b"".join(b"X-%d: a\r\n" % number for number in range(101))
    _, reply = ask_raw(lab, gateway, GET + lines + b"\r\n")
    expect_error(reply, 431)


def test_many_headers_within_the_limits_are_fine(lab, gateway):
    """90 lines and 12 KiB are within the limits."""
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 120) for number in range(90))
    _, reply = ask_raw(lab, gateway, GET + lines + b"\r\n")
    assert reply.status == 200


def test_target_that_is_too_long_is_414(lab, gateway):
    """A request target that is too long: 414."""
    _, reply = ask_raw(lab, gateway, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    expect_error(reply, 414)


def test_request_body_is_413(lab, gateway):
    """Request bodies are not taken: 413, and the connection ends, so that the body is not read as a request."""
    client, reply = ask_raw(lab, gateway, GET + b"Content-Length: 30\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a")
    expect_error(reply, 413)
    assert_ended(client)


def test_content_length_zero_is_no_body(lab, gateway):
    """`Content-Length: 0` is no body."""
    client, reply = ask_raw(lab, gateway, GET + b"Content-Length: 0\r\n\r\n")
    assert reply.status == 200
    assert client.get("/ready").status == 200


def test_late_request_head_is_408(lab):
    """`header_timeout`: the whole request head must have arrived by then."""
    gateway = lab.gateway(QUICK, backend=BACKEND)
    client = lab.client(gateway)
    client.send(b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow:")
    expect_error(client.read_reply(), 408)
    client.expect_end()
    client.vanish()
    gateway.process.wait_for_line("closed reason=header_timeout code=none .* status=408")


def test_trickling_head_does_not_extend_the_timeout(lab):
    """`header_timeout`: bytes that keep coming do not extend it."""
    client = lab.client(lab.gateway(QUICK, backend=BACKEND))
    client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n")
    client.sock.settimeout(0.05)
    for _ in range(200):
        try:
            client.send(b"X-Slow: 1\r\n")
            data = client.sock.recv(4096)
        except TimeoutError:
            continue
        assert data.startswith(b"HTTP/1.1 408 ")
        return
    raise AssertionError("no answer to a head that never ends")


def test_connection_without_a_request_is_closed(lab):
    """`header_timeout`: a connection without a request ends, too."""
    client = lab.client(lab.gateway(QUICK, backend=BACKEND))
    said = client.read_to_end()
    assert said == b"" or said.startswith(b"HTTP/1.1 408 ")


def test_idle_connection_is_closed_after_keep_alive(lab):
    """`keep_alive`: an idle HTTP connection ends without an answer."""
    client = lab.client(lab.gateway(QUICK, backend=BACKEND))
    assert client.get("/health").status == 200
    client.expect_end()


def test_requests_share_a_connection(lab, gateway):
    """A connection can carry several requests to these endpoints."""
    client = lab.client(gateway)
    for target, status in [("/", 200), ("/health", 200), ("/nope", 404), ("/metrics", 200), ("/ws/input", 426), ("/ready", 200)] * 3:
        assert client.get(target).status == status


def test_pipelined_requests_are_answered_in_order(lab, gateway):
    """Fifty pipelined requests in one write are all answered."""
    client = lab.client(gateway)
    targets = ["/health", "/nope", "/ready", "/connections", "/"] * 10
    client.send(b"".join(plain_request(target) for target in targets))
    statuses = [client.read_reply().status for _ in targets]
    assert statuses == [200, 404, 200, 200, 200] * 10


def test_request_may_come_byte_by_byte(lab, gateway):
    """A head that arrives byte by byte is accepted."""
    client = lab.client(gateway)
    client.send_bytewise(plain_request("/health"))
    assert client.read_reply().status == 200


def test_connection_close_ends_keep_alive(lab, gateway):
    """The client decides whether the connection is kept alive."""
    client = lab.client(gateway)
    reply = client.get("/health", headers=[("Connection", "close")])
    assert reply.status == 200
    assert "close" in reply.head.tokens("Connection")
    client.expect_end()


def test_http_1_0_is_answered_and_closed(lab, gateway):
    """An HTTP/1.0 client gets its answer, and then the end of the connection."""
    client = lab.client(gateway)
    assert client.get("/health", version="HTTP/1.0").status == 200
    client.expect_end()


def test_client_that_stops_sending_still_gets_its_answer(lab, gateway):
    """A half-closed client (such as `nc -N`) gets the answer to its request."""
    client = lab.client(gateway)
    client.ask("/health")
    client.half_close()
    assert client.read_reply().status == 200
    client.expect_end()


def test_query_does_not_change_an_endpoint(gateway):
    """`/health?probe=1` is `/health`."""
    assert gateway.get("/health?probe=1").status == 200


@pytest.mark.parametrize("origins", [[], ["https://app.example"]])
def test_client_library_is_a_module_for_every_page(lab, origins):
    """`GET /client.js`: an ES module with an `ETag`, and always `Access-Control-Allow-Origin: *`."""
    gateway = lab.gateway({"server": {"allowed_origins": origins}, "route": [route(backend=BACKEND)]})
    reply = gateway.get("/client.js", headers=[("Origin", "https://other.example")])
    assert reply.status == 200
    assert reply.head.all("Content-Type") == ["text/javascript; charset=utf-8"]
    assert reply.head.all("Access-Control-Allow-Origin") == ["*"]
    assert reply.body == (ROOT / "assets/client.js").read_bytes()


def test_client_library_is_not_sent_to_a_browser_that_has_it(lab, gateway):
    """Its `ETag` in `If-None-Match` gives 304, and the connection stays open."""
    client = lab.client(gateway)
    first = client.get("/client.js")
    [etag] = first.head.all("ETag")
    assert first.head.all("Cache-Control") == ["no-cache"]
    again = client.get("/client.js", headers=[("If-None-Match", etag)])
    assert (again.status, again.body) == (304, b"")
    assert again.head.all("ETag") == [etag]
    assert client.get("/client.js", headers=[("If-None-Match", '"other"')]).status == 200


def test_the_largest_head_is_the_configured_one(lab):
    """`max_head`, for requests, their targets and backends' answers; a reload takes it into use."""
    backend = lab.backend()

    def config(size):
        return {"server": {"max_head": size}, "route": [route(backend=backend.url())]}

    gateway = lab.gateway(config("1KiB"))

    def status(bytes, target="/health"):
        return lab.client(gateway).get(target, headers=[("Cookie", "a" * bytes)]).status

    assert (status(800), status(1100)) == (200, 431)
    assert lab.client(gateway).get("/" + "t" * 520).status == 414
    # More has come of a head than the new limit allows.
    slow = lab.client(gateway)
    slow.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"a" * 900)
    gateway.configure(config("64KiB"))
    gateway.signal(signal.SIGHUP)
    eventually(lambda: status(60_000) == 200, "the limit is a larger one")
    slow.send(b"a" * 30_000 + b"\r\n\r\n")
    assert slow.read_reply().status == 200
    assert (status(66_000), lab.client(gateway).get("/" + "t" * 33_000).status) == (431, 414)
    client = lab.client(gateway)
    client.upgrade("/ws/input", headers=[("Cookie", "b" * 60_000)], behind=b"")
    peer = backend.accept()
    peer.read_upgrade()
    assert peer.head["Cookie"] == "b" * 60_000
    peer.switch(headers=[("Set-Cookie", "c" * 60_000)])
    client.read_switch()
    client.say("whole")
    assert peer.read_frame().text == "whole"
    held = lab.client(gateway)
    held.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"a" * 30_000)
    gateway.configure(config("1KiB"))
    gateway.signal(signal.SIGHUP)
    eventually(lambda: status(1100) == 431, "the limit is a smaller one")
    held.send(b"a")
    assert held.read_reply().status == 431
    second = lab.client(gateway)
    second.upgrade("/ws/input")
    peer = backend.accept()
    peer.read_upgrade()
    peer.switch(headers=[("Set-Cookie", "c" * 2000)])
    second.read_switch()
    assert second.read_close().code == 1011
