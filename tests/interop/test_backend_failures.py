"""What clients get when a backend refuses, times out, or answers other than 101 (docs/protocol.md section 1; close codes 1011 and
1013 in section 4)."""

import signal
import socket
import threading
import time

import pytest

from gatewaylab import PATIENCE
from gatewaylab.gateway import route
from gatewaylab.wire import CLOSE, TEXT, closed_port, eventually, frame

SHORT = {"connect_timeout": "400ms", "handshake_timeout": "400ms"}


def answer(status, headers=(), body=b"", length=True):
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


CHUNKED = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\nX-Why: no\r\n\r\n4\r\nnot \r\n5\r\ntoday\r\n0\r\n\r\n"

GARBAGE = {
    "noise": b"\x00\xffnot http at all\r\n\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web",
    "an endless head": b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 4000,
    "no upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
}


def ask(lab, gateway, backend=None, said=None, ends=True):
    """A client asks for an upgrade; the backend, if it is reached, answers `said`."""
    client = lab.client(gateway)
    client.upgrade()
    if backend:
        peer = backend.accept()
        peer.read_upgrade()
        if said is not None:
            try:
                peer.send(said)
                if ends:
                    peer.half_close()
            except OSError:
                pass  # The gateway may have turned away before it was all out.
    return client


def read_unavailable(client):
    """The upgrade is completed, then closed, as a browser can read it. Returns code and reason."""
    client.read_switch()
    closed = client.read_close()
    assert closed.mask is None
    assert closed.reason.startswith("backend unavailable: "), closed.reason
    assert len(closed.payload) - 2 <= 123
    assert len(closed.reason) > len("backend unavailable: "), "it must say what happened"
    client.half_close()
    client.expect_end()
    return closed.code, closed.reason


def failing_gateway(lab, mode, url):
    """One gateway; with `mode` None it has the default."""
    proxy = dict(SHORT, **({"on_backend_failure": mode} if mode else {}))
    return lab.gateway({"proxy": proxy}, backend=url)


def test_refused_closes_with_1011(lab, way):
    """`on_backend_failure = "close"`, the default: 101, then Close 1011 with the reason `backend unavailable: ...`."""

    class Nobody:
        def url(self, path):
            return f"ws://127.0.0.1:{port}{path}"

    port = closed_port()
    code, reason = read_unavailable(ask(lab, way.to(Nobody())))
    assert code == 1011
    assert "refused" in reason.lower()


def test_refused_is_502_in_http_mode(lab):
    """`"http"`: 502 for a backend that refuses or answers nonsense."""
    client = ask(lab, failing_gateway(lab, "http", f"ws://127.0.0.1:{closed_port()}/"))
    reply = client.read_reply()
    assert reply.status == 502
    assert reply.json()["status"] == "error"


@pytest.fixture
def deaf_port():
    """A port whose accept queue is full: the kernel drops every further SYN, so a connect hangs."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    held = []
    while True:
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        held.append(one)
        one.settimeout(0.2)
        try:
            one.getpeername()
        except OSError:
            if len(held) > 2:
                break
    yield port
    for one in [*held, listener]:
        one.close()


def test_connect_that_hangs_ends_after_connect_timeout(lab, deaf_port):
    """`connect_timeout`: Close 1011."""
    code, _ = read_unavailable(ask(lab, failing_gateway(lab, None, f"ws://127.0.0.1:{deaf_port}/")))
    assert code == 1011


def test_connect_that_hangs_is_504_in_http_mode(lab, deaf_port):
    """`"http"`: 504 after a timeout."""
    client = ask(lab, failing_gateway(lab, "http", f"ws://127.0.0.1:{deaf_port}/"))
    assert client.read_reply().status == 504


def test_backend_that_accepts_and_says_nothing_closes_with_1011(lab):
    """`handshake_timeout` runs until the backend's 101: Close 1011."""
    backend = lab.backend()
    code, _ = read_unavailable(ask(lab, failing_gateway(lab, None, backend.url()), backend))
    assert code == 1011
    backend.peers[0].expect_gone()


def test_backend_that_accepts_and_says_nothing_is_504_in_http_mode(lab):
    """`"http"`: 504 after a timeout."""
    backend = lab.backend()
    client = ask(lab, failing_gateway(lab, "http", backend.url()), backend)
    assert client.read_reply().status == 504


def test_backend_that_stops_inside_its_101_times_out(lab):
    """Half a head is not an answer, so the timeout applies."""
    backend = lab.backend()
    client = ask(lab, failing_gateway(lab, None, backend.url()), backend, b"HTTP/1.1 101 Swi", ends=False)
    assert read_unavailable(client)[0] == 1011


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE.keys())
def test_bad_answer_closes_with_1011(lab, said):
    """An answer other than 101, or one that cannot be read: Close 1011."""
    backend = lab.backend()
    assert read_unavailable(ask(lab, failing_gateway(lab, None, backend.url()), backend, said))[0] == 1011


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE.keys())
def test_bad_answer_is_502_in_http_mode(lab, said):
    """`"http"`: 502 for a backend that refuses or answers nonsense."""
    backend = lab.backend()
    client = ask(lab, failing_gateway(lab, "http", backend.url()), backend, said)
    assert client.read_reply().status == 502


@pytest.mark.parametrize(
    "status, code",
    [("403 Forbidden", 1011), ("404 Not Found", 1011), ("200 OK", 1011), ("500 Oops", 1011), ("302 Found", 1011)]
    + [("503 Service Unavailable", 1013), ("429 Too Many Requests", 1013)],
)
def test_another_answer_closes_with_1011_or_1013(lab, status, code):
    """Close 1011, or 1013 after a 503 or 429; the reason says what the backend answered."""
    backend = lab.backend()
    got, reason = read_unavailable(ask(lab, failing_gateway(lab, None, backend.url()), backend, answer(status, body=b"no")))
    assert got == code
    assert status[:3] in reason


def test_long_failure_is_cut_to_a_legal_close_reason(lab):
    """Reasons have at most 123 bytes, and whole characters."""
    backend = lab.backend()
    said = answer("418 " + "I am a very long teapot " * 20, body=b"x")
    assert read_unavailable(ask(lab, failing_gateway(lab, None, backend.url()), backend, said))[0] == 1011


def test_backends_own_answer_is_passed_on_in_http_mode(lab):
    """`"http"`: the client gets the backend's own HTTP answer, if there is one."""
    backend = lab.backend()
    said = answer("401 Unauthorized", [("WWW-Authenticate", 'Bearer realm="x"'), ("Content-Type", "text/plain")], b"who are you?")
    client = ask(lab, failing_gateway(lab, "http", backend.url()), backend, said, ends=False)
    reply = client.read_reply()
    assert (reply.status, reply.body) == (401, b"who are you?")
    assert reply.head["WWW-Authenticate"] == 'Bearer realm="x"'
    assert reply.head["Content-Type"] == "text/plain"


@pytest.mark.parametrize(
    "said, body",
    [
        (CHUNKED, b"not today"),
        (answer("403 Forbidden", body=b"until the end", length=False), b"until the end"),
        (answer("403 Forbidden", body=bytes(60_000)), bytes(60_000)),
        (answer("503 Busy"), b""),
    ],
    ids=["chunked", "until the end", "large", "empty"],
)
def test_backends_body_is_whole_however_its_end_is_marked(lab, said, body):
    """`"http"`: the backend's own HTTP answer arrives with all of its body."""
    backend = lab.backend()
    client = ask(lab, failing_gateway(lab, "http", backend.url()), backend, said)
    reply = client.read_reply()
    assert reply.body == body
    assert reply.head.first.startswith(said.split(b"\r\n")[0].decode()[:12])


def test_http_mode_still_upgrades(lab):
    """`on_backend_failure = "http"` changes failures only."""
    backend = lab.backend()
    client, peer = lab.pair(failing_gateway(lab, "http", backend.url()), backend)
    client.say("fine")
    assert peer.read_frame().text == "fine"


# several backends for one route


def test_least_loaded_backend_is_next(lab):
    """Several backends: the one with the fewest connections is chosen, so four clients on two backends are two each."""
    backends = [lab.backend(), lab.backend()]
    gateway = lab.gateway(backend=[backend.url() for backend in backends])
    for _ in range(4):
        client = lab.client(gateway)
        client.upgrade()
        taken = eventually(lambda: accept_any(backends), "a backend is asked")
        taken.read_upgrade()
        taken.switch()
        client.read_switch()
    assert [len(backend.peers) for backend in backends] == [2, 2]


def accept_any(backends):
    for backend in backends:
        backend.sock.setblocking(False)
        try:
            return backend.accept()
        except BlockingIOError:
            pass
        finally:
            backend.sock.settimeout(PATIENCE)
    return None


@pytest.mark.parametrize("mode", ["close", "http"])
def test_failing_backend_is_skipped_within_the_same_wait(lab, mode):
    """A failed backend rests for a while: no client of a route with one good backend sees the bad one."""
    good = lab.backend()
    urls = [f"ws://127.0.0.1:{closed_port()}/", f"ws://127.0.0.1:{closed_port()}/", good.url()]
    gateway = lab.gateway({"proxy": {"on_backend_failure": mode}}, backend=urls)
    for number in range(6):
        client, peer = lab.pair(gateway, good)
        client.say(f"client {number}")
        assert peer.read_frame().text == f"client {number}"


def test_client_gets_1011_when_all_backends_fail(lab):
    """Several backends, all of them away: one answer, 1011."""
    urls = [f"ws://127.0.0.1:{closed_port()}/" for _ in range(3)]
    assert read_unavailable(ask(lab, lab.gateway(backend=urls)))[0] == 1011


def test_backend_that_comes_back_serves_the_next_client(lab, way):
    """While the backend is away: 1011 with a readable reason. Once it is back, the next client gets through."""
    backend = lab.backend()
    gateway = way.to(backend)
    client, peer = lab.pair(gateway, backend)
    backend.stop()
    closed = client.read_frame()
    assert (closed.opcode, closed.code) == (CLOSE, 1011)
    client.vanish()
    assert read_unavailable(ask(lab, gateway))[0] == 1011

    again = lab.backend(port=backend.port)
    client, peer = lab.pair(gateway, again)
    client.say("welcome back")
    assert peer.read_frame().text == "welcome back"


@pytest.mark.parametrize("library", ["websockets", "ws"])
def test_killed_library_backend_comes_back(lab, library):
    """The backend is killed (SIGKILL), and a new one starts on its port: the next client gets through."""
    backend = lab.library_backend(library)
    gateway = lab.gateway(backend=backend.url())

    def echo(text):
        client = lab.client(gateway)
        client.upgrade()
        client.read_switch()
        client.say(text)
        return client, client.read_frame()

    client, got = echo("before")
    assert got.text == "before"
    backend.process.kill()
    assert client.read_close().code == 1011
    client.vanish()
    lab.library_backend(library, backend.port)
    assert echo("after")[1].text == "after"


def test_first_message_is_kept_for_a_slow_backend(lab):
    """Bytes behind the request head are not lost, even if a first backend was tried and failed."""
    good = lab.backend()
    gateway = lab.gateway(backend=[f"ws://127.0.0.1:{closed_port()}/", good.url()])
    early = frame(TEXT, "early bird", mask=b"bird")
    client = lab.client(gateway)
    client.upgrade(behind=early)
    peer = good.accept_upgraded()
    client.read_switch()
    assert peer.read(len(early)) == early


# a sick backend beside a good one


class Sick:
    """A backend that accepts every connection and mistreats it in one of several ways."""

    def __init__(self, how):
        self.how = how
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.asked = 0
        self.held = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def url(self):
        return f"ws://127.0.0.1:{self.port}/"

    def serve(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.asked += 1
            if self.how == "closes":
                peer.close()
            elif self.how == "hangs":
                self.held.append(peer)
            else:
                peer.recv(65536)
                peer.sendall(self.how)
                peer.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for peer in self.held:
            peer.close()


SICK = {
    "closes": "closes",
    "hangs": "hangs",
    "502": answer("502 Bad Gateway"),
    "503": answer("503 Service Unavailable", body=b"busy"),
    "504": answer("504 Gateway Timeout"),
    "429": answer("429 Too Many Requests"),
    "no http": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "a 101 for another key": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
}


@pytest.fixture
def sick(request):
    backend = Sick(request.param)
    yield backend
    backend.close()


@pytest.mark.parametrize("sick", SICK.values(), ids=SICK.keys(), indirect=True)
@pytest.mark.parametrize("mode", ["close", "http"])
def test_a_sick_backend_beside_a_good_one_costs_no_client(lab, sick, mode):
    """An attempt has succeeded only when the backend has answered 101: 20 of 20 clients are served."""
    good = lab.library_backend("websockets")
    proxy = {"on_backend_failure": mode, "handshake_timeout": "1s"}
    gateway = lab.gateway({"proxy": proxy}, backend=[sick.url(), good.url()])
    for number in range(20):
        client = lab.client(gateway)
        client.upgrade()
        client.read_switch()
        client.say(f"client {number}")
        assert client.read_frame().text == f"client {number}"
        client.vanish()
    assert sick.asked > 0, "it was never asked, so this shows nothing"
    name = "aivtuber_gateway_backend_dials_total"
    failed = (("backend", sick.url()), ("result", "failed"))
    assert gateway.metrics().samples[name, failed] > 0, "failed attempts are counted"


def test_a_dead_host_beside_a_good_one_costs_one_attempt(lab, deaf_port):
    """`attempt_timeout`: the time for one attempt while others are left."""
    good = lab.library_backend("websockets")
    proxy = {"attempt_timeout": "200ms"}
    gateway = lab.gateway({"proxy": proxy}, backend=[f"ws://127.0.0.1:{deaf_port}/", good.url()])
    began = time.monotonic()
    for number in range(20):
        client = lab.client(gateway)
        client.upgrade()
        client.read_switch()
        client.vanish()
    assert time.monotonic() - began < 5, "clients must not wait for connect_timeout each"


def test_health_recovers_without_a_client(lab):
    """`/health` is `degraded` while a backend is failed. A probe finds out when it is well again; no client has to."""
    backend = lab.library_backend("websockets")
    gateway = lab.gateway(backend=backend.url())
    backend.process.kill()
    backend.process.wait()
    assert read_unavailable(ask(lab, gateway))[0] == 1011
    assert gateway.get().json()["status"] == "degraded"
    lab.library_backend("websockets", backend.port)
    eventually(lambda: gateway.get().json()["status"] == "ok", "the backend is found well again")


HOPS = 9
"""A request is passed on by at most this many gateways."""


def ring(lab, scheme, **keys):
    """Two gateways, each the backend of the other. Neither can know that at its start."""
    one = lab.gateway({"log": {"level": "info"}}, backend=f"ws://127.0.0.1:{closed_port()}/ws/input")
    config = {"server": {"listen": ["127.0.0.1:0"]}, "log": {"level": "info"}, "proxy": {**SHORT, **keys}}
    to = lambda port: [route(backend=f"{scheme}://127.0.0.1:{port}/ws/input")]
    other = lab.gateway({**config, "route": to(one.port)})
    one.configure({**config, "route": to(other.port)})
    one.signal(signal.SIGHUP)
    one.process.wait_for_line(f"route input path=/ws/input to=.*:{other.port}/")
    return one, other


def check_bounded(gateways, lines_before, dials=HOPS):
    """How often the gateways dialed each other, and how much they logged about it."""
    made = sum(gateway.metrics().total("dial_seconds_count") for gateway in gateways)
    assert made == dials, f"{made} connections for one client"
    lines = sum(len(gateway.log.splitlines()) for gateway in gateways) - lines_before
    # A few for each connection, and the story of each.
    assert lines <= 10 * (HOPS + 1), f"{lines} lines in the logs"
    for gateway in gateways:
        health = gateway.get("/health").json()
        assert health["problems"] == [], "no backend has failed"


def test_gateways_that_lead_to_each_other_end_a_request_after_nine_hops(lab):
    """A loop that no gateway can know of: nine connections, a clear reason for the client and in the log."""
    gateways = ring(lab, "ws")
    before = sum(len(gateway.log.splitlines()) for gateway in gateways)
    client = lab.client(gateways[0])
    client.upgrade()
    assert read_unavailable(client) == (1011, "backend unavailable: request loop")
    # The tenth request to arrive is the one that is stopped: that of the gateway that did not begin.
    gateways[1].process.wait_for_line("request loop")
    eventually(lambda: all(gateway.is_empty() for gateway in gateways), "all ten sessions are over")
    check_bounded(gateways, before)


def test_gateways_that_lead_to_each_other_answer_508_in_http_mode(lab):
    gateways = ring(lab, "ws", on_backend_failure="http")
    before = sum(len(gateway.log.splitlines()) for gateway in gateways)
    client = lab.client(gateways[0])
    client.upgrade()
    reply = client.read_reply()
    assert (reply.status, reply.json()["error"]) == (508, "backend unavailable: request loop")
    gateways[1].process.wait_for_line("request loop")
    check_bounded(gateways, before)


def test_gateways_that_lead_to_each_other_answer_508_to_plain_http(lab):
    gateways = ring(lab, "http")
    before = sum(len(gateway.log.splitlines()) for gateway in gateways)
    reply = gateways[0].get("/ws/input")
    assert (reply.status, reply.json()["error"]) == (508, "backend unavailable: request loop")
    check_bounded(gateways, before)
