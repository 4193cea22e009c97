"""Fixtures of the black-box tests: `lab` starts what a test needs and ends it, `way` is how a client reaches a backend.

Tests marked `transparent` say what a relay must not change. They run through one gateway and through two in a row, and with
`--through direct` with no gateway at all: what holds there is the truth that the gateway is compared with.
"""

import itertools
import os
import signal

import pytest

from gatewaylab import wire
from gatewaylab.gateway import BINARY, LISTENING, Gateway, clean_env, route
from gatewaylab.peers import Browser, LibraryBackend, NodeClients, PythonClient
from gatewaylab.process import Process
from gatewaylab.results import Results

LIBRARIES = ["websockets", "ws"]


def pytest_addoption(parser):
    parser.addoption(
        "--through",
        default="single,chained",
        help="what stands between client and backend: direct, single, chained (comma separated); direct runs only the tests "
        "marked transparent",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "transparent: what a relay must not change; also true with no gateway in between")
    needs_binary = config.getoption("through") != "direct" and not config.getoption("collectonly")
    if needs_binary and not (BINARY.is_file() and os.access(BINARY, os.X_OK)):
        pytest.exit(f"there is no gateway binary at {BINARY}: build it, or set GATEWAY_BINARY", returncode=2)


def pytest_generate_tests(metafunc):
    if "way" in metafunc.fixturenames:
        metafunc.parametrize("way", metafunc.config.getoption("through").split(","), indirect=True)


def pytest_collection_modifyitems(config, items):
    ways = config.getoption("through").split(",")
    if "direct" not in ways:
        return
    kept = []
    for item in items:
        through = item.callspec.params.get("way") if hasattr(item, "callspec") else None
        if through in ("single", "chained") or (through == "direct" and item.get_closest_marker("transparent")):
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_report_header():
    return f"gateway: {BINARY}"


class Lab:
    """Starts gateways, backends and clients of one test; ends clients and backends first, then looks at the gateways."""

    def __init__(self, folder):
        self.folder = folder
        self.gateways, self.clients, self.backends = [], [], []
        self.numbers = itertools.count(1)

    def gateway(self, config=None, *, backend=None, **options):
        """A gateway; `backend` (a URL or several) makes it relay /ws/input there."""
        config = config if config is not None else {}
        if backend is not None:
            config = {**config, "route": [route(backend=backend)]}
        gateway = Gateway(self.folder / f"gateway{next(self.numbers)}", config, **options)
        self.gateways.append(gateway)
        return gateway

    def backend(self, **options):
        backend = wire.Backend(**options)
        self.backends.append(backend)
        return backend

    def library_backend(self, library, port=0):
        """A backend process of this test's own, to be killed by it."""
        backend = LibraryBackend(library, port)
        self.backends.append(backend)
        return backend

    def client(self, where, **options):
        """A raw connection to a gateway, or to a port."""
        port = where if isinstance(where, int) else where.port
        client = wire.connect(port, **options)
        self.clients.append(client)
        return client

    def adopt(self, client):
        """A library's client, to be ended with the test."""
        self.clients.append(client)
        return client

    def adopt_proxy(self, proxy):
        """A proxy in front of a gateway, to be ended with the test."""
        self.backends.append(proxy)
        return proxy

    def pair(self, where, backend, target="/ws/input", headers=()):
        """A client and its backend's side, upgraded."""
        client = self.client(where)
        client.upgrade(target, headers)
        peer = backend.accept_upgraded()
        client.read_switch()
        return client, peer

    def stop(self):
        for client in self.clients:
            client.vanish()
        for backend in self.backends:
            backend.stop()
        troubles = []
        for gateway in self.gateways:
            try:
                gateway.stop()
            except AssertionError as trouble:
                troubles.append(str(trouble))
        assert not troubles, "\n".join(troubles)


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.stop()


@pytest.fixture
def results(lab, tmp_path):
    """What tests of results start."""
    return Results(lab, tmp_path)


class Way:
    """How clients reach backends in this test: `to(backend)` gives the place to connect to."""

    def __init__(self, kind, lab):
        self.kind, self.lab = kind, lab

    @property
    def hops(self):
        return {"direct": 0, "single": 1, "chained": 2}[self.kind]

    def to(self, *backends, config=None, path="/ws/input"):
        """Something with a `port`. `config` goes to each gateway on the way; route `path` is relayed to the same path."""
        if self.kind == "direct":
            return backends[0]
        urls = [backend.url(path) for backend in backends]
        for _ in range(self.hops):
            gateway = self.lab.gateway({**(config or {}), "route": [route(path=path, backend=urls)]})
            urls = [f"ws://127.0.0.1:{gateway.port}{path}"]
        return gateway


@pytest.fixture
def way(request, lab):
    return Way(request.param, lab)


@pytest.fixture(scope="session")
def shared_backends():
    """One backend process of each library for the whole run, started when first asked for."""
    started = {}

    def ask(library):
        if library not in started:
            started[library] = LibraryBackend(library)
        return started[library]

    yield ask
    for backend in started.values():
        backend.stop()


@pytest.fixture(params=LIBRARIES)
def library_backend(request, shared_backends):
    return shared_backends(request.param)


@pytest.fixture(scope="session")
def node_clients():
    clients = NodeClients()
    yield clients
    clients.stop()


@pytest.fixture(params=LIBRARIES)
def open_client(request, lab):
    """Opens a client of one of the libraries: `open_client(url, protocols=…, headers=…)`."""
    library = PythonClient if request.param == "websockets" else request.getfixturevalue("node_clients")

    def open(url, **options):
        client = library.open(url, **options)
        return lab.adopt(client) if hasattr(client, "vanish") else client

    return open


@pytest.fixture(scope="session")
def browser():
    browser = Browser()
    yield browser
    browser.stop()


@pytest.fixture
def demo(tmp_path):
    """The first command of the README, but for the port."""
    process = Process([BINARY, "demo", "--listen", "127.0.0.1:0"], env=clean_env(), cwd=tmp_path)
    process.port = int(process.wait_for_line(rf"gateway {LISTENING}").group(1))
    yield process
    print(process.text)
    # By a signal that it can act on: it removes the sounds that it made.
    process.signal(signal.SIGINT)
    try:
        process.wait()
    finally:
        process.kill()
