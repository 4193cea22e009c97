"""Signals: TERM and INT drain, HUP reads the configuration again, USR1 opens the log file again. docs/protocol.md section 4: 1012."""

import select
import signal

import pytest

from gatewaylab import PATIENCE
from gatewaylab.gateway import route
from gatewaylab.wire import BINARY, CONTINUATION, TEXT, eventually, frame


def drained(gateway):
    gateway.may_end = True
    gateway.process.wait_for_line(r"\bdraining\b")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_gateway_stops_cleanly(lab, number):
    """A clean stop: exit status 0."""
    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    gateway.may_end = True
    gateway.signal(number)
    assert gateway.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_open_connections_are_closed_with_1012(lab, number):
    """Drain: new connections are not accepted, and WebSockets are closed with 1012 at a frame boundary."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    pairs = [lab.pair(gateway, backend) for _ in range(5)]
    gateway.may_end = True
    gateway.signal(number)
    for client, peer in pairs:
        closed = client.read_close()
        assert closed.code == 1012
        assert closed.reason
        assert peer.read_close().code in (1001, 1012)
        client.close_frame(1012)
        client.half_close()
        client.expect_end()
        peer.vanish()
    assert gateway.process.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        gateway.connect()


@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
def test_message_in_flight_is_finished(lab, upwards):
    """Drain: a frame that has begun is finished before the 1012."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    one, other = (client, peer) if upwards else (peer, client)
    whole = frame(BINARY, bytes(range(200)), mask=b"mask" if upwards else None)
    one.send(whole[:50])
    assert other.read(50) == whole[:50]

    gateway.signal(signal.SIGTERM)
    drained(gateway)
    one.send(whole[50:])
    assert other.read(len(whole) - 50) == whole[50:]
    assert client.read_close().code == 1012
    for end in (client, peer):
        end.vanish()
    assert gateway.process.wait() == 0


def test_message_in_fragments_is_finished(lab):
    """Drain: a message that has begun is finished, with all of its fragments."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    peer.frame(TEXT, "first, ", fin=False)
    assert client.read_frame().text == "first, "

    gateway.signal(signal.SIGTERM)
    drained(gateway)
    peer.frame(CONTINUATION, "second, ", fin=False)
    peer.frame(CONTINUATION, "last")
    assert client.read_frame().text == "second, "
    assert client.read_frame().text == "last"
    assert client.read_close().code == 1012
    for end in (client, peer):
        end.vanish()
    assert gateway.process.wait() == 0


def test_drain_ends_at_the_latest_after_drain_timeout(lab):
    """Drain takes at most `drain_timeout`, even if a message never ends."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"drain_timeout": "500ms"}}, backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    half = frame(BINARY, bytes(100))[:50]
    peer.send(half)
    assert client.read(50) == half
    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    assert gateway.process.wait() == 0
    client.expect_gone()


def test_second_signal_stops_at_once(lab):
    """A second signal stops the gateway at once."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"drain_timeout": "10m"}}, backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    half = frame(BINARY, bytes(100))[:50]
    peer.send(half)
    assert client.read(50) == half
    gateway.signal(signal.SIGTERM)
    drained(gateway)
    assert gateway.process.is_running()
    gateway.signal(signal.SIGTERM)
    gateway.process.wait()
    gateway.process.wait_for_line("input_1 closed reason=stopped code=none")
    client.expect_gone()


def test_draining_gateway_is_not_ready(lab):
    """Drain: `/ready` is 503, asked on a connection that was open before; new ones are not accepted."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    peer.send(frame(BINARY, bytes(100))[:50])
    client.read(50)
    prober = lab.client(gateway)
    prober.send(b"GET /ready HTTP/1.1\r\nHost: a\r\n")
    assert gateway.get("/ready").status == 200

    gateway.signal(signal.SIGTERM)
    drained(gateway)
    prober.send(b"\r\n")
    assert prober.read_reply().status == 503
    with pytest.raises(ConnectionRefusedError):
        gateway.connect()
    gateway.signal(signal.SIGTERM)
    gateway.process.wait()


def routes(*pairs):
    return [route(name, f"/ws/{name}", backend=backend.url(f"/ws/{name}")) for name, backend in pairs]


def test_hup_reads_the_configuration_again(lab):
    """HUP reads the configuration again: a new route works, open connections stay."""
    one, two = lab.backend(), lab.backend()
    gateway = lab.gateway({"route": routes(("one", one))})
    client, peer = lab.pair(gateway, one, "/ws/one")
    assert gateway.get("/ws/two").status == 404

    gateway.configure({"route": routes(("two", two))})
    gateway.signal(signal.SIGHUP)
    eventually(lambda: gateway.get("/ws/two").status == 426, "the new route is there")
    gateway.process.wait_for_line("route two path=/ws/two to=")
    assert gateway.get("/ws/one").status == 404
    client.say("undisturbed")
    assert peer.read_frame().text == "undisturbed"
    newcomer, its_peer = lab.pair(gateway, two, "/ws/two")
    newcomer.say("new")
    assert its_peer.read_frame().text == "new"


def test_hup_with_a_bad_configuration_keeps_the_old_one(lab):
    """A bad configuration is logged, and the old one stays in use."""
    backend = lab.backend()
    gateway = lab.gateway({"route": routes(("one", backend))})
    client, peer = lab.pair(gateway, backend, "/ws/one")
    gateway.configure("[server]\nlissten = []\n")
    gateway.signal(signal.SIGHUP)
    gateway.process.wait_for_line(r"(ERROR|WARN).*lissten")
    client.say("undisturbed")
    assert peer.read_frame().text == "undisturbed"
    lab.pair(gateway, backend, "/ws/one")

    gateway.file.unlink()
    gateway.signal(signal.SIGHUP)
    gateway.process.wait_for_line(r"(ERROR|WARN).*config\.toml", after=len(gateway.log.splitlines()) - 1)
    lab.pair(gateway, backend, "/ws/one")


def test_hup_takes_new_limits_and_levels_into_use(lab):
    """HUP: limits for new clients and the log's level change."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "info"}}, backend=backend.url())
    gateway.configure(
        {"server": {"allowed_origins": ["https://app.example"]}, "log": {"level": "debug"}, "route": [route(backend=backend.url())]}
    )
    gateway.signal(signal.SIGHUP)

    # Whoever is still let in is dropped by the backend, which is another code.
    eventually(lambda: outcome(lab, gateway, backend) == 1008, "the new rule holds")
    client = lab.client(gateway)
    client.upgrade(headers=[("Origin", "https://app.example")])
    backend.accept_upgraded()
    client.read_switch()
    gateway.process.wait_for_line(r"DEBUG.*\binput_\d+\b")


def outcome(lab, gateway, backend):
    """The close code of a client from another origin; a backend that is connected to for it hangs up."""
    client = lab.client(gateway)
    client.upgrade(headers=[("Origin", "https://other.example")])
    if select.select([backend.sock, client.sock], [], [], PATIENCE)[0] == [backend.sock]:
        backend.accept().vanish()
    client.read_switch()
    return client.read_close().code


def test_hup_compares_backends_with_the_addresses_that_are_listened_on(lab):
    """The kernel chose the port, and the file may name another address by now."""
    backend = lab.backend()
    gateway = lab.gateway({}, backend=backend.url())
    own = f"ws://127.0.0.1:{gateway.port}/ws/input"
    for listen in ("127.0.0.1:0", "127.0.0.1:9"):
        seen = len(gateway.log.splitlines())
        gateway.configure({"server": {"listen": [listen]}, "route": [route(backend=own)]})
        gateway.signal(signal.SIGHUP)
        gateway.process.wait_for_line(rf"not reloaded: .*is the gateway itself.*:{gateway.port}\b", after=seen)
    client, peer = lab.pair(gateway, backend)
    client.say("still there")
    assert peer.read_frame().text == "still there"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_log_file_is_opened_again(lab, tmp_path, number):
    """USR1 and HUP reopen the log file, as logrotate needs it."""
    log = tmp_path / "gateway.log"
    gateway = lab.gateway({"log": {"level": "info", "file": str(log)}}, backend="ws://127.0.0.1:9/", wait=False)
    gateway.port = eventually(gateway.listening_ports, "it listens")[0]
    eventually(lambda: "listening" in log.read_text(), "the log has begun")
    moved = tmp_path / "gateway.log.old"
    log.rename(moved)
    gateway.signal(number)
    eventually(log.exists, "there is a new log file")
    was = moved.stat().st_size
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    client.read_close()
    eventually(lambda: "input_1" in log.read_text(), "lines go to the new file")
    assert "input_1" not in moved.read_text()[was:]
