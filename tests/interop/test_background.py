"""What may be slow (names, the configuration file) delays only those who need it (docs/architecture.md, "Background threads")."""

import contextlib
import ctypes
import os
import signal
import socket
import time

import pytest

from gatewaylab.gateway import route
from gatewaylab.wire import eventually

# As many as the gateway has threads for names.
THREADS = 6


@pytest.fixture
def hanging_names(tmp_path):
    """For `before`: a network in which `good.example` is this machine and no other name is ever answered."""
    libc = ctypes.CDLL(None, use_errno=True)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        server.bind(("127.0.0.77", 53))
    except PermissionError:
        pytest.skip("needs the right to bind port 53")
    resolv, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    # The server never answers, and each question is asked for thirty seconds.
    resolv.write_text("nameserver 127.0.0.77\noptions timeout:30 attempts:1\n")
    hosts.write_text("127.0.0.1 good.example\n")

    def enter():
        clone_newns, ms_bind, ms_rec, ms_private = 0x20000, 4096, 16384, 1 << 18
        calls = [libc.unshare(clone_newns), libc.mount(b"none", b"/", None, ms_rec | ms_private, None)]
        for file, place in [(resolv, b"/etc/resolv.conf"), (hosts, b"/etc/hosts")]:
            calls.append(libc.mount(os.fsencode(file), place, None, ms_bind, None))
        if any(calls):
            raise OSError(ctypes.get_errno(), "needs the right to mount")

    with contextlib.closing(server):
        yield enter


def served_within(lab, gateway, backend, target, seconds):
    """Checks that a client of this route is served; returns how long that took."""
    began = time.monotonic()
    client, peer = lab.pair(gateway, backend, target)
    client.say("hello")
    assert peer.read_frame().text == "hello"
    took = time.monotonic() - began
    client.vanish()
    peer.vanish()
    assert took < seconds
    return took


def test_a_name_that_hangs_delays_no_other(lab, hanging_names):
    """Two names that a slow one does not delay: one from the hosts file, which another thread looks up, and `localhost`, which
    needs no thread even when all are busy."""
    backend = lab.backend()
    routes = [route(f"hangs{n}", f"/hangs/{n}", backend=f"ws://hangs{n}.example:9/") for n in range(THREADS)]
    routes.append(route("good", "/good", backend=f"ws://good.example:{backend.port}/"))
    routes.append(route("local", "/local", backend=f"ws://localhost:{backend.port}/"))
    gateway = lab.gateway({"route": routes, "proxy": {"connect_timeout": "25s"}}, before=hanging_names)
    waiting = []
    for n in range(THREADS - 1):
        waiting.append(lab.client(gateway))
        waiting[-1].upgrade(f"/hangs/{n}")
    served_within(lab, gateway, backend, "/good", 1.5)
    waiting.append(lab.client(gateway))
    waiting[-1].upgrade(f"/hangs/{THREADS - 1}")
    served_within(lab, gateway, backend, "/local", 1.5)
    for client in waiting:
        client.vanish()


def test_a_configuration_that_waits_for_a_name_delays_nobody(lab, hanging_names):
    """A host name in `listen` is looked up again on HUP. Meanwhile messages pass, and other signals are handled."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url(), before=hanging_names)
    client, peer = lab.pair(gateway, backend)
    gateway.configure({"server": {"listen": ["hangs.example:8000"]}, "route": [route(backend=backend.url())]})
    gateway.signal(signal.SIGHUP)
    gateway.process.wait_for_line(r"signal reload")
    for number in range(10):
        began = time.monotonic()
        client.say(f"undisturbed {number}")
        assert peer.read_frame().text == f"undisturbed {number}"
        assert time.monotonic() - began < 1
    gateway.signal(signal.SIGUSR1)
    gateway.process.wait_for_line(r"signal reopen")
    client.vanish()
    peer.vanish()


def test_a_configuration_that_is_a_pipe_is_refused(lab):
    """The configuration is a pipe that nothing writes to, so reading it would never end. The gateway logs that, and reads the
    next file."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    text = gateway.file.read_text()
    gateway.file.unlink()
    os.mkfifo(gateway.file)
    gateway.signal(signal.SIGHUP)
    gateway.process.wait_for_line(r"not reloaded: .*config\.toml: cannot be read: it is not a regular file")
    client.say("undisturbed")
    assert peer.read_frame().text == "undisturbed"
    gateway.file.unlink()
    gateway.file.write_text(text)
    gateway.signal(signal.SIGHUP)
    eventually(lambda: "read again" in gateway.log, "the file is read again")
    client.vanish()
    peer.vanish()
