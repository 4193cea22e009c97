"""The PROXY protocol in front of connections: HAProxy and nginx that pass TLS on, and commands that connect themselves.
docs/operations.md, section "Proxies that pass connections on"."""

import re
import signal
import socket
import ssl

import pytest

from gatewaylab.certificates import Authority
from gatewaylab.gateway import route, run, toml
from gatewaylab.proxies import NAME, PassingHAProxy, PassingHAProxyV1, PassingNginx, outside_address
from gatewaylab.wire import Client, connect, eventually

PROXIES = {"haproxy": PassingHAProxy, "haproxy version 1": PassingHAProxyV1, "nginx": PassingNginx}
CLIENT = outside_address()
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority")).certify(NAME, "127.0.0.1")


@pytest.fixture
def start(lab, certificate):
    """A gateway behind a proxy on this machine, with and without TLS; `port` is the one for admins."""

    def start(**server):
        backend = lab.backend()
        pem, key = certificate
        server = {
            "listen": ["127.0.0.1:0", "tls://127.0.0.1:0"], "admin_listen": ["127.0.0.1:0"],
            "trusted_proxies": ["127.0.0.1"], "proxy_protocol": True, **server,
        }  # fmt: skip
        config = {"server": server, "tls": {"certificate": str(pem), "key": str(key)}, "route": [route(backend=backend.url())]}
        gateway = lab.gateway(config)
        port = lambda pattern: int(gateway.process.wait_for_line(pattern).group(1))
        gateway.plain_port, gateway.tls_port = gateway.port, port(r"listening address=tls://127\.0\.0\.1:(\d+)")
        gateway.port = port(r"listening address=127\.0\.0\.1:(\d+) for=admins")
        return gateway, backend

    return start


class Site:
    def __init__(self, lab, start, kind, **server):
        self.gateway, self.backend = start(**server)
        self.proxy = lab.adopt_proxy(PROXIES[kind](lab.folder / "proxy", self.gateway.tls_port))

    def open(self, lab, headers=()):
        client = lab.adopt(self.proxy.connect(CLIENT))
        client.upgrade("/ws/input", headers=headers, host=NAME)
        peer = self.backend.accept_upgraded()
        client.read_switch()
        return client, peer


@pytest.mark.parametrize("kind", PROXIES)
def test_the_real_client_reaches_backend_log_and_report(lab, start, kind):
    site = Site(lab, start, kind)
    client, peer = site.open(lab, headers=[("X-Forwarded-For", "203.0.113.9")])
    address = "{}:{}".format(*client.sock.getsockname())
    assert peer.head["X-Forwarded-For"] == f"203.0.113.9, {CLIENT}"
    assert peer.head["X-Forwarded-Proto"] == "https"
    client.say("through both")
    assert peer.read_frame().text == "through both"
    site.gateway.process.wait_for_line(rf"input_\d+ opened client={re.escape(address)}")
    assert site.gateway.connections()["details"][0]["client"] == address
    client.close_frame(1000, "done")
    peer.read_close()
    peer.close_frame(1000)
    site.gateway.process.wait_for_line(r"input_\d+ closed reason=client_closed code=1000")


@pytest.mark.parametrize("kind", PROXIES)
def test_the_limit_per_address_is_the_real_clients(lab, start, kind):
    site = Site(lab, start, kind, max_connections_per_ip=1)
    site.open(lab)
    second = lab.adopt(site.proxy.connect(CLIENT))
    second.upgrade("/ws/input", host=NAME)
    assert second.read_reply().status == 503


@pytest.mark.parametrize("kind", PROXIES)
def test_admins_are_known_by_their_own_address(lab, start, kind):
    """Behind a proxy on this machine, whose address is an admin's."""
    stranger = Site(lab, start, kind)
    assert stranger.proxy.get(CLIENT, "/metrics").status == 403
    assert stranger.proxy.get("127.0.0.1", "/metrics").status == 403, "an address that a header only claims"
    stranger.proxy.stop()
    (lab.folder / "proxy").rename(lab.folder / "old")
    admin = Site(lab, start, kind, admin_from=[CLIENT], server_names=[NAME])
    assert admin.proxy.get(CLIENT, "/metrics").status == 200


@pytest.mark.parametrize("kind", [kind for kind in PROXIES if kind.startswith("haproxy")])
def test_health_checks_of_haproxy_succeed(lab, start, kind):
    site = Site(lab, start, kind)
    assert eventually(lambda: site.proxy.check_status() == "L7OK", "a check was answered"), site.proxy.process.text
    assert "bad_proxy_header" not in site.gateway.log


def test_a_header_byte_by_byte_before_tls(lab, start):
    gateway, backend = start()
    raw = socket.create_connection(("127.0.0.1", gateway.tls_port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    for byte in f"PROXY TCP4 {CLIENT} 192.0.2.9 5000 443\r\n".encode():
        raw.sendall(bytes([byte]))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = lab.adopt(Client(context.wrap_socket(raw, server_hostname=NAME)))
    client.upgrade("/ws/input", host=NAME)
    peer = backend.accept_upgraded()
    assert peer.head["X-Forwarded-For"] == CLIENT
    client.read_switch()


def test_what_is_wrong_with_a_header_is_in_the_log(lab, start):
    gateway, _ = start(header_timeout="500ms")
    for sent, why in [
        (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", "it does not begin with one"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.9 5000\r\n", ".+"),
        (b"PROXY UNKNOWN " + 100 * b"x", "it is too long"),
        (b"PROXY ", "it was not complete within header_timeout"),
        (b"", "it was not complete within header_timeout"),
    ]:
        client = lab.adopt(connect(gateway.plain_port))
        if sent:
            client.send(sent)
        found = gateway.process.wait_for_line(r'closed reason=bad_proxy_header .*why="([^"]+)" client=127\.0\.0\.1:' + str(client.sock.getsockname()[1]))
        assert re.fullmatch(why, found.group(1)), found.group(0)
        client.expect_gone()
    ended = gateway.get("/connections/closed?reason=bad_proxy_header").json()["closed"]
    assert len(ended) == 5 and {end["phase"] for end in ended} == {"accept"}


def test_peers_that_are_not_trusted_send_none(lab, start):
    gateway, _ = start(trusted_proxies=["192.0.2.0/24"])
    assert lab.client(gateway.plain_port).get("/health").status == 200
    client = lab.client(gateway.plain_port)
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.9 5000 8000\r\n")
    reply = client.read_reply()
    assert reply.status == 400 and "trusted_proxies" in reply.json()["error"]
    client.vanish()
    gateway.process.wait_for_line("closed reason=bad_proxy_header .*status=400")


def test_commands_send_a_header_where_one_is_expected(lab, start, tmp_path):
    gateway, backend = start()
    for listen in (f"127.0.0.1:{gateway.plain_port}", f"tls://127.0.0.1:{gateway.tls_port}"):
        server = {"listen": [listen], "trusted_proxies": ["127.0.0.1"], "proxy_protocol": True}
        file = tmp_path / "config.toml"
        file.write_text(toml({"server": server, "route": [route(backend=backend.url())]}))
        done = run("healthcheck", "--config", file)
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
        # This machine is the proxy, so its own commands are strangers': the cure is named.
        done = run("tap", "--config", file)
        assert done.returncode == 1 and 'admin_listen = ["127.0.0.1:8009"]' in done.stderr, done.stderr
        done = run("doctor", "--config", file)
        assert "is held by the running gateway" in done.stdout, done.stdout
        assert 'admin_listen = ["127.0.0.1:8009"]' in done.stdout
    assert "bad_proxy_header" not in gateway.log


def test_a_reload_takes_it_into_use(lab, start):
    gateway, _ = start(proxy_protocol=False)
    client = lab.client(gateway.plain_port)
    assert client.get("/health").status == 200
    config = gateway.file
    config.write_text(config.read_text().replace("proxy_protocol = false", "proxy_protocol = true"))
    gateway.signal(signal.SIGHUP)
    gateway.process.wait_for_line("read again config=")
    assert client.get("/health").status == 200, "a connection that is open stays"
    late = lab.client(gateway.plain_port)
    late.send(LOCAL)
    assert late.get("/health").status == 200
