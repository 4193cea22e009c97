"""Under a service manager: what the gateway reports by sd_notify(3), the sockets that it is passed, and the units.

The service manager is a datagram socket of the test's own, `systemd-socket-activate`, or `systemd-analyze`; systemd itself
need not run.
"""

import os
import re
import signal
import socket
import subprocess
import time

import pytest

from gatewaylab import PATIENCE, ROOT, wire
from gatewaylab.gateway import BINARY, LISTENING, clean_env, route, toml
from gatewaylab.process import Process
from gatewaylab.wire import closed_port

UNITS = ROOT / "contrib/systemd"


class Supervisor:
    """The socket that NOTIFY_SOCKET names, and the reports that came."""

    def __init__(self, path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE)

    @property
    def env(self):
        return {"NOTIFY_SOCKET": str(self.path)}

    def next(self):
        """The next report, as a dict."""
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def next_but_watchdog(self):
        while "WATCHDOG" in (report := self.next()):
            pass
        return report


@pytest.fixture
def supervisor(tmp_path):
    supervisor = Supervisor(tmp_path / "notify")
    yield supervisor
    supervisor.socket.close()


def test_start_reload_and_stop_are_reported(lab, supervisor):
    """READY when it listens; RELOADING and READY around a reload, a bad one too; STOPPING when it drains."""
    gateway = lab.gateway(backend="ws://127.0.0.1:9/", env=supervisor.env)
    assert supervisor.next() == {"READY": "1", "STATUS": "Serving, connections: 0"}

    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    gateway.signal(signal.SIGHUP)
    reloading = supervisor.next()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= after
    assert supervisor.next() == {"READY": "1", "STATUS": "Serving, connections: 0"}

    gateway.configure("[server]\nnonsense = 1\n")
    gateway.signal(signal.SIGHUP)
    assert "RELOADING" in supervisor.next()
    wrong = supervisor.next()
    assert wrong["READY"] == "1"
    assert "the new configuration is wrong" in wrong["STATUS"]

    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    stopping = supervisor.next()
    assert stopping["STOPPING"] == "1"
    assert stopping["STATUS"].startswith("Draining")
    assert gateway.process.wait() == 0


def test_names_without_a_file_are_understood(lab):
    """`@name` is a name in the abstract namespace."""
    name = f"aivtuber-gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(PATIENCE)
        lab.gateway(backend="ws://127.0.0.1:9/", env={"NOTIFY_SOCKET": f"@{name}"})
        assert receiver.recv(4096).startswith(b"READY=1\n")


def test_watchdog_is_fed_by_the_loop(lab, supervisor):
    """Again and again while the loop turns, with a status; not at all while the process is stopped."""
    gateway = lab.gateway(backend="ws://127.0.0.1:9/", env={**supervisor.env, "WATCHDOG_USEC": "200000"})
    assert "READY" in supervisor.next()
    client = gateway.connect()
    for _ in range(3):
        assert supervisor.next()["WATCHDOG"] == "1"
    while supervisor.next() != {"WATCHDOG": "1", "STATUS": "Serving, connections: 1"}:
        pass
    client.vanish()

    gateway.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, gateway.pid, os.WSTOPPED | os.WNOWAIT)
    supervisor.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            supervisor.next()
    # Twice as long as the watchdog allows.
    supervisor.socket.settimeout(0.4)
    with pytest.raises(TimeoutError):
        supervisor.next()
    gateway.signal(signal.SIGCONT)
    supervisor.socket.settimeout(PATIENCE)
    assert supervisor.next()["WATCHDOG"] == "1"


def test_watchdog_of_another_process_is_not_fed(lab, supervisor):
    """WATCHDOG_PID names the process that is meant."""
    env = {**supervisor.env, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    gateway = lab.gateway(backend="ws://127.0.0.1:9/", env=env)
    assert "READY" in supervisor.next()
    gateway.signal(signal.SIGHUP)
    assert "RELOADING" in supervisor.next()


def activated(folder, sockets, config, *, env=None, names=()):
    """Starts the gateway by systemd-socket-activate, with `sockets` open. It starts with the first connection."""
    (folder / "config.toml").write_text(toml(config))
    listen = [part for address in sockets for part in ("--listen", address)]
    named = [part for name in names for part in ("--fdname", name)]
    command = ["systemd-socket-activate", *listen, *named, BINARY, "--config", folder / "config.toml"]
    return Process(command, env=clean_env(**(env or {})), cwd=folder)


def knock(process, port):
    """A connection, which starts the gateway."""
    process.wait_for_line("Listening on")
    return wire.connect(port)


def test_passed_sockets_take_the_place_of_their_addresses(tmp_path):
    """For clients, for admins and for the inbox. The other addresses are listened on as ever."""
    clients, admins, inbox = closed_port(), closed_port(), closed_port()
    config = {
        "server": {"listen": [f"127.0.0.1:{clients}", "127.0.0.1:0"], "admin_listen": [f"127.0.0.1:{admins}"]},
        "route": [route("output", "/ws/output/{task_id}", serve="output")],
        "redis": {"url": f"embedded://127.0.0.1:{inbox}"},
        "output": {"audio_root": str(tmp_path)},
    }
    gateway = activated(tmp_path, [f"127.0.0.1:{port}" for port in (admins, inbox, clients)], config)
    try:
        first = knock(gateway, clients)
        assert first.get("/ready").status == 200
        for port in (clients, admins, inbox):
            gateway.wait_for_line(rf"socket passed address=127\.0\.0\.1:{port}$")
        assert wire.connect(admins).get("/metrics").status == 200
        with socket.create_connection(("127.0.0.1", inbox), timeout=PATIENCE) as worker:
            worker.sendall(b"PING\r\n")
            assert worker.recv(7) == b"+PONG\r\n"
        others = [int(port) for port in re.findall(LISTENING, gateway.text)]
        own = [port for port in others if port not in (clients, admins, inbox)]
        assert len(own) == 1
        assert wire.connect(own[0]).get("/ready").status == 200
    finally:
        gateway.kill()


def test_passed_socket_without_an_address_in_the_configuration_is_an_error(tmp_path):
    """The configuration would not do what it says: the start fails, and the socket is named."""
    port, other = closed_port(), closed_port()
    config = {"server": {"listen": [f"127.0.0.1:{port}"]}, "route": [route(backend="ws://127.0.0.1:9/")]}
    gateway = activated(tmp_path, [f"127.0.0.1:{other}"], config, names=["web.socket"])
    try:
        client = knock(gateway, other)
        assert gateway.wait() == 1
        assert f'the passed socket "web.socket" listens on 127.0.0.1:{other}, which is not in server.listen' in gateway.text
        client.vanish()
    finally:
        gateway.kill()


def test_connections_wait_while_the_gateway_restarts(tmp_path, lab):
    """The socket stays open between two gateways: a client that connects in between is served by the second."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = {"server": {"listen": [f"127.0.0.1:{port}"]}, "route": [route(backend="ws://127.0.0.1:9/")]}
        (tmp_path / "config.toml").write_text(toml(config))

        def start():
            # Passes the socket as descriptor 3, and sets LISTEN_PID, which only the new process knows.
            script = f'exec 3<&{listener.fileno()}; exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web "$0" "$@"'
            os.set_inheritable(listener.fileno(), True)
            command = ["bash", "-c", script, BINARY, "--config", tmp_path / "config.toml"]
            child = subprocess.Popen(command, env=clean_env(), cwd=tmp_path, pass_fds=[listener.fileno()], stderr=subprocess.PIPE)
            return child

        first = start()
        assert wire.connect(port).get("/ready").status == 200
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE) == 0
        client = wire.connect(port)
        second = start()
        try:
            assert client.get("/ready").status == 200
        finally:
            second.kill()
            for child in (first, second):
                child.wait()
                child.stderr.close()


# ---- the units


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """A file system with the units and the programs that they name."""
    root = tmp_path_factory.mktemp("root")
    folder = root / "usr/lib/systemd/system"
    folder.mkdir(parents=True)
    (root / "usr/bin").mkdir()
    for program in ("usr/bin/aivtuber-gateway", "bin/kill"):
        path = root / program
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    # What systemd itself has, so that `verify` can look at everything that is referred to.
    for target in ("sysinit", "basic", "shutdown", "network-online", "network", "multi-user", "sockets", "paths"):
        (folder / f"{target}.target").write_text(f"[Unit]\nDescription={target}\nDefaultDependencies=no\n")
    for slice_ in ("system", "-"):
        (folder / f"{slice_}.slice").write_text("[Unit]\nDescription=slice\nDefaultDependencies=no\n")
    for unit in UNITS.iterdir():
        (folder / unit.name).write_bytes(unit.read_bytes())
    return root


def analyze(*args):
    return subprocess.run(["systemd-analyze", *map(str, args)], capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("unit", ["aivtuber-gateway.service", "aivtuber-gateway.socket", "aivtuber-gateway@1.service"])
def test_units_are_well_formed(units, unit):
    """`systemd-analyze verify` has nothing to say."""
    done = analyze("verify", "--man=no", f"--root={units}", unit)
    ours = [line for line in done.stderr.splitlines() if "aivtuber-gateway" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@pytest.mark.parametrize("unit", ["aivtuber-gateway.service", "aivtuber-gateway@1.service"])
def test_units_are_sandboxed(units, unit):
    """An exposure of at most 1.5 of 10, by systemd's own measure."""
    done = analyze("security", "--offline=true", "--threshold=15", f"--root={units}", unit)
    level = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert level, done.stdout + done.stderr
    assert float(level.group(1)) <= 1.5, done.stdout
    assert done.returncode == 0


def test_packaged_configuration_is_valid(tmp_path):
    """What the package installs as /etc/aivtuber-gateway/config.toml."""
    from gatewaylab.gateway import run

    done = run("--print-config", "--changed", "--config", ROOT / "contrib/debian/config.toml", cwd=tmp_path)
    assert done.stdout == '[output]\naudio_root = "/var/lib/aivtuber-gateway/audio"\n', done.stderr
