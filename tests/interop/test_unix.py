"""Unix sockets: listening, backends, the inbox; files, rights, and whose request it is. docs/operations.md, section Unix sockets."""

import grp
import os
import signal
import socket
import stat
import subprocess
import threading

import pytest
import redis

from gatewaylab import PATIENCE, wire
from gatewaylab import gateway as gateways
from gatewaylab.gateway import route
from gatewaylab.peers import node_env, pattern
from gatewaylab.process import Process
from gatewaylab.results import PREFIX, Waiter, new_task
from gatewaylab.wire import BINARY, eventually

FORWARDED = [("X-Forwarded-For", "203.0.113.9")]


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return wire.Client(sock)


class UnixBackend(wire.Backend):
    """A raw backend on a Unix socket."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(str(path))
        self.sock.listen(128)
        self.sock.settimeout(PATIENCE)
        self.path, self.port, self.peers = path, 0, []

    def url(self, path="/ws/input"):
        return f"ws+unix://{self.path}:{path}"


@pytest.fixture
def place(lab, tmp_path):
    """A gateway that also listens on `path`."""

    def start(options="", *, server=None, **config):
        path = tmp_path / "gateway.sock"
        listen = {"listen": ["127.0.0.1:0", f"unix:{path}{options}"]}
        gateway = lab.gateway({"server": {**listen, **(server or {})}, **config})
        gateway.path = path
        return gateway

    return start


def unix_backend(lab, tmp_path):
    backend = UnixBackend(tmp_path / "backend.sock")
    lab.backends.append(backend)
    return backend


# ---- clients and backends


def test_clients_and_backends_on_unix_sockets_are_relayed(lab, place, tmp_path):
    backend = unix_backend(lab, tmp_path)
    gateway = place(route=[route(backend=backend.url())])
    gateway.process.wait_for_line(rf"listening address=unix:{gateway.path}$")
    client = lab.adopt(connect(gateway.path))
    client.upgrade("/ws/input?a=b", host="gateway.test")
    peer = backend.accept_upgraded()
    client.read_switch()
    assert peer.head["X-Forwarded-For"] == "unknown"
    assert peer.head["Host"] == "gateway.test"
    gateway.process.wait_for_line(r"input_\d+ opened client=unix\b")
    gateway.process.wait_for_line(rf"dial input_\d+ = connecting to backend ws\+unix://{backend.path}:/ws/input$")
    for size in (1, 1000, 70_000, 5_000_000):
        data = pattern(size)
        for sender, reader in [(client, peer), (peer, client)]:
            sending = threading.Thread(target=sender.frame, args=(BINARY, data))
            sending.start()
            assert reader.read_frame().payload == data
            sending.join()
    client.close_frame(4001, "done")
    assert peer.read_close().code == 4001


def test_a_slow_reader_on_a_unix_socket_gets_every_byte_and_holds_the_sender_up(lab, place, tmp_path):
    backend = unix_backend(lab, tmp_path)
    gateway = place(route=[route(backend=backend.url())])
    client = lab.adopt(connect(gateway.path))
    client.upgrade("/ws/input")
    peer = backend.accept_upgraded()
    client.read_switch()
    before = gateway.resident_bytes()
    data, sent = pattern(1_000_000), 0
    peer.sock.settimeout(1)
    try:
        for _ in range(40):
            peer.frame(BINARY, data)
            sent += 1
    except TimeoutError:
        pass
    assert sent < 40, "the sender was held up"
    assert gateway.resident_bytes() < before + 8_000_000
    for _ in range(sent):
        assert client.read_frame().payload == data


def test_libraries_talk_through_unix_sockets(place, tmp_path):
    """The form that the `ws` package knows, on both sides."""
    script = """
        const { WebSocket, WebSocketServer } = require("ws");
        const [backend, gateway] = process.argv.slice(1);
        const http = require("http").createServer().listen(backend, () => {
          new WebSocketServer({ server: http }).on("connection", (socket, request) =>
            socket.on("message", (data) => socket.send(request.url + " " + data)));
          const client = new WebSocket(`ws+unix://${gateway}:/ws/input`);
          client.on("open", () => client.send("hello"));
          client.on("error", (error) => { console.log(error.message); process.exit(); });
          client.on("message", (data) => { console.log(String(data)); process.exit(); });
        });
    """
    backend = tmp_path / "node.sock"
    gateway = place(route=[route(backend=f"ws+unix://{backend}:/from/gateway")])
    done = subprocess.run(
        ["node", "-e", script, str(backend), str(gateway.path)], capture_output=True, text=True, timeout=PATIENCE, env=node_env()
    )
    assert done.stdout == "/from/gateway hello\n", done.stdout + done.stderr


def test_a_backend_whose_socket_is_missing_or_stale_fails_like_any_other(lab, tmp_path):
    good = lab.backend()
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    gateway = lab.gateway(backend=f"ws+unix://{tmp_path}/missing.sock:/ws/input")
    client = lab.client(gateway)
    client.upgrade("/ws/input")
    client.read_switch()
    assert client.read_close().code == 1011
    gateway = lab.gateway(backend=[f"ws+unix://{stale}:/ws/input", f"ws+unix://{tmp_path}/missing.sock:/", good.url()])
    for _ in range(4):
        lab.pair(gateway, good)


def test_a_backend_that_accepts_nothing_is_passed_over(lab, tmp_path):
    """Its queue of connections is full: that is a failure of the backend, not a shortage of the gateway."""
    stuck, good = UnixBackend(tmp_path / "stuck.sock"), unix_backend(lab, tmp_path)
    lab.backends.append(stuck)
    stuck.sock.listen(0)
    lab.adopt(connect(stuck.path))  # the only one that may wait
    gateway = lab.gateway(backend=[stuck.url(), good.url()])
    client, peer = lab.pair(gateway, good)
    client.say("hello")
    assert peer.read_frame().text == "hello"
    gateway.process.wait_for_line('stuck.sock:/ws/input failed what="it accepts no further connection')
    alone = lab.gateway(backend=stuck.url())
    client = lab.client(alone)
    client.upgrade()
    client.read_switch()
    closed = client.read_close()
    assert (closed.code, closed.reason) == (1011, "backend unavailable: it accepts no further connection at the moment")
    assert alone.get("/health").json()["backends"] == {"input": "failed"}


def test_results_with_audio_are_delivered_by_unix_sockets(results, tmp_path):
    path, inbox = tmp_path / "gateway.sock", tmp_path / "inbox.sock"
    gateway = results.gateway(
        f"embedded+unix://{inbox}?mode=0600", config={"server": {"listen": ["127.0.0.1:0", f"unix:{path}"]}}
    )
    assert stat.S_IMODE(os.stat(inbox).st_mode) == 0o600
    gateway.process.wait_for_line(rf"inbox +listening address=unix:{inbox}\?mode=0600")
    audio = pattern(2_000_003)
    results.write("a.wav", audio)
    task = new_task()
    waiter = results.lab.adopt(Waiter(connect(path).sock)).wait(task)
    with redis.Redis(unix_socket_path=str(inbox), socket_timeout=PATIENCE) as worker:
        assert worker.publish(PREFIX + task, '{"text":"heard","audio_file":"a.wav"}') == 1
    result = waiter.result()
    assert (result.content, result.audio) == ("heard", audio)
    waiter.done()
    gateway.process.wait_for_line(r"inbox_\d+ opened client=unix")


# ---- whose request it is


def test_peers_on_unix_sockets_are_admins_by_default(lab, place):
    gateway = place()
    assert connect(gateway.path).get("/metrics").status == 200
    assert connect(gateway.path).get("/metrics", host="elsewhere.test").status == 403, "Host is asked all the same"
    assert connect(gateway.path).get("/metrics", headers=FORWARDED).status == 403, "it says that it is a proxy"
    with_others = lab.gateway({"server": {"listen": ["127.0.0.1:0", f"unix:{gateway.path}2"], "admin_from": ["192.0.2.0/24"]}})
    with_others.may_end = True  # its reports are for admins only
    assert connect(f"{gateway.path}2").get("/metrics").status == 403


def test_a_trusted_proxy_on_a_unix_socket_names_its_clients(lab, place):
    backend = lab.backend()
    server = {"trusted_proxies": ["unix"], "max_connections_per_ip": 1, "admin_from": ["127.0.0.0/8", "unix", "203.0.113.9"]}
    gateway = place(server=server, route=[route(backend=backend.url())])
    assert connect(gateway.path).get("/metrics").status == 403, "it hides its client"
    assert connect(gateway.path).get("/metrics", headers=FORWARDED).status == 200
    assert connect(gateway.path).get("/metrics", headers=[("X-Forwarded-For", "127.0.0.1")]).status == 403
    client = lab.adopt(connect(gateway.path))
    client.upgrade("/ws/input", headers=[*FORWARDED, ("X-Forwarded-Proto", "https")])
    peer = backend.accept_upgraded()
    client.read_switch()
    assert peer.head["X-Forwarded-For"] == "203.0.113.9", "a proxy without an address adds none"
    assert peer.head["X-Forwarded-Proto"] == "https"
    gateway.process.wait_for_line(r"input_\d+ opened client=203\.0\.113\.9")
    second = lab.adopt(connect(gateway.path))
    second.upgrade("/ws/input", headers=FORWARDED)
    assert second.read_reply().status == 503, "the limit is the client's"


def test_the_limit_per_address_does_not_count_unix_sockets(lab, place):
    backend = lab.backend()
    gateway = place(server={"max_connections_per_ip": 1}, route=[route(backend=backend.url())])
    for _ in range(3):
        client = lab.adopt(connect(gateway.path))
        client.upgrade("/ws/input")
        backend.accept_upgraded()
        client.read_switch()


def test_admins_may_have_a_socket_of_their_own(lab, tmp_path):
    path = tmp_path / "admin.sock"
    gateway = lab.gateway({"server": {"admin_listen": [f"unix:{path}?mode=0600"], "admin_from": ["127.0.0.0/8"]}})
    assert connect(path).get("/metrics").status == 200
    assert connect(path).get("/ws/input").status == 404, "no routes"
    done = gateways.run("healthcheck", "--config", gateway.file)
    assert (done.returncode, done.stdout) == (0, "degraded\n"), done.stderr


# ---- files


def test_stale_files_are_replaced_and_foreign_ones_never(lab, tmp_path):
    path = tmp_path / "gateway.sock"
    config = tmp_path / "config.toml"
    config.write_text(gateways.toml({"server": {"listen": [f"unix:{path}"]}}))
    path.write_text("precious")
    done = gateways.run("--config", config)
    assert done.returncode == 1 and f"cannot listen on unix:{path}: there is a file of this name that is no socket" in done.stderr
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        done = gateways.run("--config", config)
        assert done.returncode == 1 and "another program listens there" in done.stderr
        assert stat.S_ISSOCK(path.stat().st_mode)
    # From here on it is stale. A gateway that is killed leaves one behind, too.
    for number in (signal.SIGKILL, signal.SIGTERM):
        gateway = lab.gateway(config.read_text(), wait=False)
        gateway.may_end = True
        eventually(lambda: gateway.process.wait_for_line("listening address=unix"), "it listens")
        assert connect(path).get("/health").status == 200
        gateway.signal(number)
        gateway.process.wait()
        assert path.exists() == (number == signal.SIGKILL)


def test_mode_and_group_are_those_of_the_configuration(lab, tmp_path):
    group = grp.getgrall()[-1]
    path = tmp_path / "gateway.sock"
    listen = ["127.0.0.1:0", f"unix:{path}?mode=0606&group={group.gr_name}"]
    gateway = lab.gateway({"server": {"listen": listen}})
    assert connect(path).get("/health").status == 200
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o606, group.gr_gid)
    assert gateways.run("--config", gateway.file, "--print-config").stdout.count(listen[1]) == 1


def test_wrong_places_are_refused_with_what_is_expected(tmp_path):
    config = tmp_path / "config.toml"
    for sections, why in [
        ({"server": {"listen": ["unix:run/a.sock"]}}, "absolute path"),
        ({"server": {"listen": ["unix:/a?mode=888"]}}, "octal"),
        ({"server": {"listen": ["unix:/a", "unix:/a?mode=0600"]}}, "listed twice"),
        ({"server": {"admin_listen": ["tls://127.0.0.1:1"]}}, "TLS is not spoken"),
        ({"route": [route(backend="ws+unix://a.sock:/x")]}, "ws+unix:///run/input.sock:/ws/input"),
        ({"server": {"listen": ["unix:/a"]}, "route": [route(backend="ws+unix:///a:/x")]}, "is the gateway itself"),
        ({"redis": {"url": "embedded+unix://a"}}, "absolute path"),
    ]:
        config.write_text(gateways.toml(sections))
        done = gateways.run("--config", config, "--check")
        assert done.returncode == 2 and why in done.stderr, done.stderr


def test_doctor_tries_unix_sockets(lab, tmp_path):
    backend, path = tmp_path / "backend.sock", tmp_path / "gateway.sock"
    script = """
        const http = require("http").createServer().listen(process.argv[1], () => console.log("up"));
        new (require("ws").WebSocketServer)({ server: http });
    """
    node = lab.adopt_proxy(NodeProcess(script, backend))
    node.wait_for_line("up")
    config = {"server": {"listen": [f"unix:{path}"]}, "route": [route(backend=f"ws+unix://{backend}:/ws/input")]}
    file = tmp_path / "config.toml"
    file.write_text(gateways.toml(config))
    shown = gateways.run("doctor", "--config", file).stdout
    assert f"unix:{path} is free" in shown and f"{backend} has upgraded" in shown, shown
    gateway = lab.gateway(file.read_text(), wait=False)
    gateway.process.wait_for_line("listening address=unix")
    assert f"unix:{path} is held by the running gateway" in gateways.run("doctor", "--config", file).stdout
    path.unlink()
    path.write_text("foreign")
    assert "no socket" in gateways.run("doctor", "--config", file).stdout
    path.unlink()


class NodeProcess(Process):
    """A node script, to be ended with the test."""

    def __init__(self, script, *arguments):
        super().__init__(["node", "-e", script, *arguments], env=node_env())

    def stop(self):
        self.kill()
