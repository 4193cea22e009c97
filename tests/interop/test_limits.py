"""Which connections are accepted, and how many (`[server]`; docs/protocol.md section 4: 1008)."""

import time

import pytest

from gatewaylab.gateway import low_descriptor_limit, run
from gatewaylab.wire import eventually


def test_connection_over_the_limit_gets_503(lab):
    """`max_connections`: one client too many gets 503 and a line in the log; when another leaves, the next gets in."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"max_connections": 3, "listen": ["127.0.0.1:0"]}}, backend=backend.url())
    pairs = [lab.pair(gateway, backend) for _ in range(3)]

    refused = lab.client(gateway)
    refused.upgrade()
    reply = refused.read_reply()
    assert reply.status == 503
    assert reply.json()["status"] == "error"
    gateway.process.wait_for_line(r"(?i)(max_connections|limit|full|refus)")

    pairs[0][0].vanish()
    pairs[0][1].vanish()
    assert eventually(lambda: served(gateway), "a place is free again")
    for client, peer in pairs[1:]:
        client.say("undisturbed")
        assert peer.read_frame().text == "undisturbed"
        client.vanish()


def served(gateway):
    """Whether a client gets in. Not asked of `/health`, which a full gateway answers, too."""
    client = gateway.connect()
    try:
        return client.get("/").status == 200
    finally:
        client.vanish()


def test_a_full_gateway_answers_an_orchestrator(lab):
    """`/health`, `/ready`, `/metrics` and `healthcheck` are answered when `max_connections` is reached, too (docs/protocol.md
    section 3)."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"max_connections": 2}}, backend=backend.url())
    pairs = [lab.pair(gateway, backend) for _ in range(2)]
    silent = [lab.client(gateway) for _ in range(150)]
    for path, status in [("/health", 200), ("/ready", 200), ("/metrics", 200), ("/", 503), ("/connections", 503)]:
        assert gateway.get(path).status == status, path
    gateway.configure({"server": {"max_connections": 2, "listen": [f"127.0.0.1:{gateway.port}"]}})
    checked = run("healthcheck", "--config", gateway.file)
    assert checked.returncode == 0, checked.stderr
    for client, peer in pairs:
        client.say("undisturbed")
        assert peer.read_frame().text == "undisturbed"
        client.vanish()
    for client in silent:
        client.vanish()


def test_when_descriptors_run_low_a_reserve_is_left(lab):
    """Out of memory: new clients get 503, open ones still get what they need, and `/health` is answered."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url(), before=low_descriptor_limit(64))
    gateway.process.wait_for_line(r"WARN .*max_connections=10000 may need .* file descriptors, and 64 are allowed")
    early = lab.client(gateway)
    assert early.get("/ready").status == 200
    crowd = []
    while (client := lab.client(gateway)).get("/").status == 200:
        crowd.append(client)
    gateway.process.wait_for_line(r'reason=refused .*why="out of file descriptors"')
    assert gateway.get("/health").status == 200
    early.upgrade()
    peer = backend.accept_upgraded()
    early.read_switch()
    early.say("served from the reserve")
    assert peer.read_frame().text == "served from the reserve"
    for client in [early, peer, *crowd]:
        client.vanish()


def test_connections_per_address_are_limited(lab):
    """`max_connections_per_ip`: one more from the same address gets 503; another address gets in."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"max_connections_per_ip": 2, "listen": ["127.0.0.1:0"]}}, backend=backend.url())
    pairs = [lab.pair(gateway, backend) for _ in range(2)]

    refused = lab.client(gateway)
    assert refused.get("/health").status == 503
    other = lab.client(gateway, source="127.0.0.2")
    assert other.get("/health").status == 200

    pairs[0][0].vanish()
    pairs[0][1].vanish()
    assert eventually(lambda: served(gateway), "a place is free again")


def test_refused_connections_leave_no_descriptor(lab):
    """`max_connections`: a hundred rejected connections leak no descriptor."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"max_connections": 1, "listen": ["127.0.0.1:0"]}}, backend=backend.url())
    client, _ = lab.pair(gateway, backend)
    before = gateway.descriptors()
    for _ in range(100):
        refused = gateway.connect()
        assert refused.get("/").status == 503
        refused.vanish()
    eventually(lambda: gateway.descriptors() <= before, "no descriptor is left")
    client.vanish()


def test_out_of_descriptors_is_survived(lab):
    """Accepting pauses when the process is out of file descriptors: open connections go on, and later ones get in."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url(), before=low_descriptor_limit(48))
    first, first_peer = lab.pair(gateway, backend)
    crowd = [lab.client(gateway) for _ in range(100)]
    for client in crowd:
        client.upgrade()
    first.say("still talking")
    assert first_peer.read_frame().text == "still talking"
    assert processor_share(gateway.pid) < 0.5, "it spins while it cannot accept"
    first.say("and on")
    assert first_peer.read_frame().text == "and on"
    for client in crowd:
        client.vanish()
    assert eventually(lambda: answers(gateway), "it accepts again")


def answers(gateway):
    client = gateway.connect()
    try:
        return client.get("/health").status == 200
    except AssertionError:
        return False
    finally:
        client.vanish()


def processor_share(pid):
    """The share of one processor that an idle gateway takes, 0 to 1. The only test that watches for a while."""

    def used():
        with open(f"/proc/{pid}/schedstat") as stat:
            return int(stat.read().split()[0]) / 1e9

    before, began = used(), time.monotonic()
    time.sleep(0.5)
    return (used() - before) / (time.monotonic() - began)


ALLOWED = {"server": {"allowed_origins": ["https://app.example", "*.vtuber.example", "http://localhost:3000"]}}

GOOD = [
    "https://app.example",
    "https://a.vtuber.example",
    "http://a.b.vtuber.example",
    "http://localhost:3000",
]

BAD = [
    "https://other.example",
    "https://app.example.evil",
    "https://evilvtuber.example",
    "https://vtuber.example.evil",
    "http://localhost:3001",
    "https://xapp.example",
    "null",
]


@pytest.mark.parametrize("origin", GOOD)
def test_allowed_origin_is_accepted(lab, origin):
    """`allowed_origins`: `Origin` must match a rule (`https://app.example`, `*.example`)."""
    backend = lab.backend()
    client = lab.client(lab.gateway(ALLOWED, backend=backend.url()))
    client.upgrade(headers=[("Origin", origin)])
    peer = backend.accept_upgraded()
    client.read_switch()
    assert peer.head["Origin"] == origin


@pytest.mark.parametrize("origin", BAD)
def test_another_origin_is_closed_with_1008(lab, origin):
    """1008, Origin not allowed: the upgrade is completed so that the page can read the reason; no backend is connected to."""
    backend = lab.backend()
    gateway = lab.gateway(ALLOWED, backend=backend.url())
    client = lab.client(gateway)
    client.upgrade(headers=[("Origin", origin)])
    client.read_switch()
    closed = client.read_close()
    assert (closed.code, closed.reason) == (1008, "Origin not allowed")
    client.half_close()
    client.expect_end()
    assert gateway.connections()["total_connections"] == 0
    backend.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        backend.sock.accept()


def test_any_origin_comes_through_by_default(lab):
    """`allowed_origins` empty: any origin."""
    backend = lab.backend()
    client = lab.client(lab.gateway(backend=backend.url()))
    client.upgrade(headers=[("Origin", "https://anybody.example")])
    backend.accept_upgraded()
    client.read_switch()


def test_program_without_an_origin_comes_through(lab):
    """`allowed_origins` is about web pages: a client without `Origin` is no browser."""
    backend = lab.backend()
    lab.pair(lab.gateway(ALLOWED, backend=backend.url()), backend)
