"""Behind the proxies of `docs/operations.md`: logs, limits, reports and backends see the real client, and only admins see
details."""

import re
import urllib.error
import urllib.request

import pytest

from gatewaylab.proxies import NAME, Caddy, HAProxy, Nginx, outside_address
from gatewaylab.wire import eventually

PROXIES = {"nginx": Nginx, "caddy": Caddy, "haproxy": HAProxy}
CLIENT = outside_address()


class Site:
    """A gateway behind a proxy, both set up as the manual shows."""

    def __init__(self, lab, kind, *, denies=True, **server):
        self.backend = lab.backend()
        trusted = {"trusted_proxies": ["127.0.0.1"], "admin_listen": ["127.0.0.1:0"]}
        server = {"listen": ["127.0.0.1:0"], **trusted, **server}
        self.gateway = lab.gateway({"server": server}, backend=self.backend.url())
        found = self.gateway.process.wait_for_line(r"listening address=\S+:(\d+) for=admins")
        self.admin_port = int(found.group(1))
        self.proxy = lab.adopt_proxy(PROXIES[kind](lab.folder / kind, self.gateway.port, denies=denies))

    def open(self, lab, headers=()):
        client = lab.adopt(self.proxy.connect(CLIENT))
        client.upgrade("/ws/input", headers=headers, host=NAME)
        peer = self.backend.accept_upgraded()
        client.read_switch()
        return client, peer

    def ask_as_admin(self, target, host="127.0.0.1"):
        """What curl or Prometheus on this machine gets."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin_port}{target}", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()


@pytest.mark.parametrize("kind", PROXIES)
def test_the_real_client_reaches_backend_log_and_report(lab, kind):
    site = Site(lab, kind)
    client, peer = site.open(lab)
    assert peer.head["X-Forwarded-For"].split(", ")[0] == CLIENT
    assert peer.head["X-Forwarded-Proto"] == "https"
    assert peer.head["X-Forwarded-Host"] == NAME
    assert peer.head["Host"] == NAME
    client.say("through both")
    assert peer.read_frame().text == "through both"
    site.gateway.process.wait_for_line(rf"input_\d+ opened client=\"?{re.escape(CLIENT)}")

    status, body = site.ask_as_admin("/connections")
    assert status == 200 and f'"client":"{CLIENT}"' in body, body


@pytest.mark.parametrize("kind", PROXIES)
def test_the_limit_per_address_is_the_real_clients(lab, kind):
    site = Site(lab, kind, max_connections_per_ip=2)
    pairs = [site.open(lab) for _ in range(2)]
    third = lab.adopt(site.proxy.connect(CLIENT))
    third.upgrade("/ws/input", host=NAME)
    assert third.read_reply().status == 503
    for client, peer in pairs:
        client.say("undisturbed")
        assert peer.read_frame().text == "undisturbed"
    pairs[0][0].vanish()
    pairs[0][1].vanish()

    def is_taken():
        client = lab.adopt(site.proxy.connect(CLIENT))
        client.upgrade("/ws/input", host=NAME)
        return client.read_head().status == 101

    assert eventually(is_taken, "a place is free again")


@pytest.mark.parametrize("kind", PROXIES)
@pytest.mark.parametrize("denies", [True, False], ids=["denied by the proxy", "denied by the gateway"])
def test_strangers_learn_nothing_that_names_a_client(lab, kind, denies):
    site = Site(lab, kind, denies=denies)
    site.open(lab)
    forged = [[], [("X-Forwarded-For", "127.0.0.1")], [("Forwarded", "for=127.0.0.1")], [("X-Real-IP", "127.0.0.1")]]
    for headers in forged:
        assert site.proxy.get(CLIENT, "/metrics", headers).status == 403
        report = site.proxy.get(CLIENT, "/connections", headers)
        assert report.status == 403 if denies else "details" not in report.json(), report.body
        health = site.proxy.get(CLIENT, "/health", headers)
        assert health.status == 200
        assert set(health.json()["backend_services"].values()) == {None}, health.body
        assert "problems" not in health.json()


@pytest.mark.parametrize("kind", PROXIES)
def test_a_forged_address_is_not_the_clients(lab, kind):
    site = Site(lab, kind)
    _, peer = site.open(lab, headers=[("X-Forwarded-For", "203.0.113.9")])
    status, body = site.ask_as_admin("/connections")
    assert status == 200 and f'"client":"{CLIENT}"' in body, body
    assert CLIENT in peer.head["X-Forwarded-For"]


@pytest.mark.parametrize("kind", PROXIES)
def test_an_admin_behind_the_proxy_is_known_by_address_and_name(lab, kind):
    admin = Site(lab, kind, denies=False, admin_from=[CLIENT], server_names=[NAME])
    admin.open(lab)
    assert admin.proxy.get(CLIENT, "/metrics").status == 200
    assert admin.proxy.get(CLIENT, "/connections").json()["details"][0]["client"] == CLIENT


def test_without_a_trusted_proxy_nobody_behind_it_is_an_admin(lab):
    """The proxy is on this machine, so `admin_from` contains its address."""
    site = Site(lab, "nginx", denies=False, trusted_proxies=[])
    site.open(lab)
    assert site.proxy.get(CLIENT, "/metrics").status == 403
    assert "details" not in site.proxy.get(CLIENT, "/connections").json()


def test_an_address_for_admins_serves_reports_and_nothing_else(lab):
    site = Site(lab, "nginx")
    site.open(lab)
    for target in ("/metrics", "/connections", "/health", "/ready", "/"):
        status, body = site.ask_as_admin(target)
        assert status == 200, (target, body)
    for host in ("localhost:8001", "127.0.0.1:8001", "[::1]"):
        assert site.ask_as_admin("/metrics", host)[0] == 200, host
    # A page that makes its own name point here is no admin's.
    status, body = site.ask_as_admin("/metrics", "rebound.example")
    assert status == 403, body
    assert "details" not in site.ask_as_admin("/connections", "rebound.example")[1]
    client = lab.client(site.admin_port)
    client.upgrade("/ws/input", host="127.0.0.1")
    assert client.read_head().status == 404
