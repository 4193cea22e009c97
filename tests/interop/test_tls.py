"""TLS on listeners: what browsers, libraries and tools of others see of it. docs/operations.md, section TLS."""

import json
import re
import signal
import socket
import ssl
import subprocess
import threading

import pytest
import websockets.sync.client

from gatewaylab import PATIENCE, wire
from gatewaylab import gateway as gateways
from gatewaylab.certificates import Authority, openssl, serial_of
from gatewaylab.gateway import route
from gatewaylab.peers import node_env, pattern
from gatewaylab.results import Waiter, new_task
from gatewaylab.wire import BINARY, closed_port, eventually
from test_service import activated, knock

TLS_LISTENING = r"listening address=tls://127\.0\.0\.1:(\d+)"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secure(lab, authority):
    """A gateway that listens with and without TLS; `tls_port` is the port of the former."""

    def start(names=("localhost", "127.0.0.1"), *, server=None, tls=None, kind="EC", **config):
        if tls is None:
            pem, key = authority.certify(*names, file=f"server{len(lab.gateways)}", kind=kind)
            tls = {"certificate": str(pem), "key": str(key)}
        server = {"listen": ["127.0.0.1:0", "tls://127.0.0.1:0"], "admin_listen": ["127.0.0.1:0"], **(server or {})}
        gateway = lab.gateway({"server": server, "tls": tls, **config})
        gateway.tls_port = int(gateway.process.wait_for_line(TLS_LISTENING).group(1))
        # The lab asks for open connections where no request is redirected.
        gateway.plain_port = gateway.port
        gateway.port = int(gateway.process.wait_for_line(r"listening address=127\.0\.0\.1:(\d+) for=admins").group(1))
        return gateway

    return start


def relaying(backend):
    return {"route": [route(backend=backend.url())]}


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("kind", ["EC", "RSA"])
def test_both_versions_serve_pages_and_relay(lab, secure, authority, version, kind):
    backend = lab.backend()
    gateway = secure(kind=kind, **relaying(backend))
    only = getattr(ssl.TLSVersion, version)
    context = authority.context(minimum_version=only, maximum_version=only)
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = lab.adopt(authority.connect(gateway.tls_port, context=context))
    assert client.sock.version() == version.replace("_", ".")
    assert client.sock.selected_alpn_protocol() == "http/1.1"
    assert client.get("/health").status == 200
    client.upgrade("/ws/input", headers=[("Origin", "https://localhost")])
    peer = backend.accept_upgraded()
    assert peer.head["X-Forwarded-Proto"] == "https"
    client.read_switch()
    client.say("by TLS")
    assert peer.read_frame().text == "by TLS"
    big = bytes(range(256)) * 4096
    peer.frame(BINARY, big)
    assert client.read_frame().payload == big
    client.frame(BINARY, big)
    assert peer.read_frame().payload == big
    peer.close_frame(4321, "done")
    assert client.read_close().code == 4321


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_sessions_are_resumed(lab, secure, authority, version):
    gateway = secure()
    only = getattr(ssl.TLSVersion, version)
    context = authority.context(minimum_version=only, maximum_version=only)
    first = lab.adopt(authority.connect(gateway.tls_port, context=context))
    assert first.get("/ready").status == 503
    again = socket.create_connection(("127.0.0.1", gateway.tls_port), PATIENCE)
    again = context.wrap_socket(again, server_hostname="localhost", session=first.sock.session)
    assert again.session_reused
    again.close()


def test_curl_and_openssl_verify_the_certificate(secure, authority):
    gateway = secure()
    url = f"https://localhost:{gateway.tls_port}/health"
    curl = ["curl", "--silent", "--show-error", "--max-time", str(PATIENCE), "--resolve", f"localhost:{gateway.tls_port}:127.0.0.1"]
    done = subprocess.run([*curl, "--cacert", authority.pem, url], capture_output=True, timeout=PATIENCE, check=True)
    assert json.loads(done.stdout)["gateway"] == "running"
    done = subprocess.run([*curl, url], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 60, "its root is not known"
    gateway.process.wait_for_line(r"http_\d+ closed reason=tls_failed .*why=\".*alert")
    shown = openssl(
        "s_client", "-connect", f"127.0.0.1:{gateway.tls_port}", "-servername", "localhost", "-CAfile", authority.pem,
        "-verify_return_error", "-ign_eof", input=b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    assert "Verify return code: 0 (ok)" in shown


@pytest.mark.parametrize(
    "offered, chosen",
    [
        (["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"], "TLS_AES_256_GCM_SHA384"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384"], "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ],
    ids=["1.3", "1.2"],
)
def test_the_order_of_ciphers_is_the_servers(secure, authority, offered, chosen):
    gateway = secure()
    shown = openssl("s_client", "-connect", f"127.0.0.1:{gateway.tls_port}", "-CAfile", authority.pem, *offered, input=b"")
    assert f"Cipher is {chosen}" in shown


def test_libraries_talk_through_it(lab, secure, authority, shared_backends):
    backend = shared_backends("ws")
    gateway = secure(**relaying(backend))
    url = f"wss://localhost:{gateway.tls_port}/ws/input"
    with websockets.sync.client.connect(url, ssl=authority.context(), proxy=None, open_timeout=PATIENCE) as client:
        client.send("hello")
        client.close(4000)
    script = """
        const { WebSocket } = require("ws");
        const socket = new WebSocket(process.argv[1], { ca: require("fs").readFileSync(process.argv[2]) });
        socket.on("open", () => socket.close(4001));
        socket.on("error", (error) => console.log(error.message));
        socket.on("close", (code) => console.log(code));
    """
    done = subprocess.run(
        ["node", "-e", script, url, authority.pem], capture_output=True, text=True, timeout=PATIENCE, env=node_env()
    )
    assert done.stdout == "4001\n", done.stdout + done.stderr


def test_certificates_are_chosen_by_name(lab, secure, authority):
    chosen = {name: authority.certify(name, file=name) for name in ("one.example", "two.example")}
    pems, keys = zip(*chosen.values())
    gateway = secure(tls={"certificate": [str(pem) for pem in pems], "key": [str(key) for key in keys]})
    for name, expected in [("one.example", "one.example"), ("two.example", "two.example"), ("other.example", "one.example")]:
        context = authority.context(check_hostname=False)
        client = lab.adopt(authority.connect(gateway.tls_port, name, context))
        assert client.sock.getpeercert()["subject"] == ((("commonName", expected),),)


def test_plain_http_on_a_tls_port_and_tls_on_a_plain_one(lab, secure):
    gateway = secure()
    client = lab.client(gateway.tls_port)
    reply = client.get("/health")
    assert reply.status == 400 and "HTTPS" in reply.json()["error"]
    client.expect_end()
    stranger = socket.create_connection(("127.0.0.1", gateway.plain_port), PATIENCE)
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(stranger, server_hostname="localhost")
    stranger.close()
    gateway.process.wait_for_line(r"reason=bad_request .*why=\"a TLS handshake on a port without TLS\"")


def test_browsers_without_tls_are_sent_there(lab, secure):
    backend = lab.backend()
    gateway = secure(server={"redirect_http": 8443, "trusted_proxies": ["127.0.0.0/8"]}, **relaying(backend))

    def ask(target, port=gateway.plain_port, **options):
        return lab.client(port).get(target, **options)

    reply = ask("/page?a=b", host="gateway.example:8000")
    assert (reply.status, reply.head["Location"]) == (308, "https://gateway.example:8443/page?a=b")
    assert ask("/", method="HEAD", host="[::1]").head["Location"] == "https://[::1]:8443/"
    for target in ("/health", "/ready", "/metrics"):
        assert ask(target).status != 308, target
    assert ask("/", method="POST").status == 405
    assert ask("/", headers=[("X-Forwarded-Proto", "https")]).status == 200
    assert ask("/health", port=gateway.tls_port, host="a:8443").head["Location"] == "https://a:8443/health"
    client, peer = lab.pair(gateway.plain_port, backend)
    client.say("an upgrade is served")
    assert peer.read_frame().text == "an upgrade is served"


def test_with_the_default_port_the_address_has_none(lab, secure):
    gateway = secure(server={"redirect_http": 443})
    assert lab.client(gateway.plain_port).get("/", host="a.example").head["Location"] == "https://a.example/"


def test_silent_and_slow_handshakes_end(lab, secure):
    gateway = secure(server={"header_timeout": "200ms"})
    silent, slow = lab.client(gateway.tls_port), lab.client(gateway.tls_port)
    slow.send(b"\x16\x03\x01")
    for client in (silent, slow):
        client.expect_gone()
    gateway.process.wait_for_line(r"closed reason=tls_failed .*why=\"it was not complete in time\"")


def test_the_oldest_of_too_many_unfinished_handshakes_goes(lab, secure, authority):
    gateway = secure(server={"header_timeout": "1m"})
    waiting = [socket.create_connection(("127.0.0.1", gateway.tls_port), PATIENCE) for _ in range(1025)]
    assert waiting[0].recv(1) == b"", "it was the oldest"
    client = lab.adopt(authority.connect(gateway.tls_port))
    assert client.get("/health").status == 200
    for one in waiting:
        one.close()
    gateway.process.wait_for_line(r"why=\"too many unfinished handshakes\"")


def test_a_new_certificate_is_served_after_hup_and_no_connection_is_lost(lab, secure, authority):
    backend = lab.backend()
    gateway = secure(**relaying(backend))
    client = lab.adopt(authority.connect(gateway.tls_port))
    client.upgrade("/ws/input")
    peer = backend.accept_upgraded()
    client.read_switch()
    stop, lost, serials = threading.Event(), [], set()

    def visit():
        while not stop.is_set():
            try:
                visitor = authority.connect(gateway.tls_port)
                der = visitor.sock.getpeercert(binary_form=True)
                assert visitor.get("/health").status == 200
                serials.add(ssl.DER_cert_to_PEM_cert(der))
                visitor.vanish()
            except (OSError, AssertionError) as error:
                lost.append(repr(error))

    def talk():
        said = 0
        while not stop.is_set():
            try:
                said += 1
                client.say(f"message {said}")
                assert peer.read_frame().text == f"message {said}"
                peer.frame(BINARY, bytes(100_000))
                assert len(client.read_frame().payload) == 100_000
            except (OSError, AssertionError) as error:
                return lost.append(repr(error))

    visitors = [threading.Thread(target=visit) for _ in range(4)] + [threading.Thread(target=talk)]
    for visitor in visitors:
        visitor.start()
    try:
        eventually(lambda: serials, "somebody has visited")
        for count in (2, 3):
            authority.certify("localhost", file="server0")
            gateway.signal(signal.SIGHUP)
            eventually(lambda: len(serials) >= count, "the new certificate is served")
        # A certificate that does not fit its key stays out.
        good = (authority.folder / "server0.key").read_bytes()
        authority.new_key(authority.folder / "server0.key")
        gateway.signal(signal.SIGHUP)
        gateway.process.wait_for_line(r"not reloaded: .*tls\.key: .*server0\.key is not the key to the certificate in")
        (authority.folder / "server0.key").write_bytes(good)
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()
    assert not lost and len(serials) == 3, (lost[:3], len(serials))


def test_files_that_do_not_fit_are_refused_at_the_start(authority, tmp_path):
    pem, key = authority.certify("localhost", file="start")
    _, other = authority.certify("localhost", file="other")
    config = tmp_path / "config.toml"
    for certificate, its_key, listen, why in [
        (pem, other, "tls://127.0.0.1:0", rf"tls\.key: {other} is not the key to the certificate in {pem}"),
        ("/no/where", key, "tls://127.0.0.1:0", r"tls\.certificate: /no/where cannot be read"),
        ("", key, "tls://127.0.0.1:0", r"tls\.certificate: a tls:// address is listened on"),
    ]:
        tls = {"certificate": str(certificate), "key": str(its_key)}
        config.write_text(gateways.toml({"server": {"listen": [listen]}, "tls": tls}))
        for command in ([], ["--check"]):
            done = gateways.run("--config", config, *command)
            assert done.returncode == 2 and re.search(why, done.stderr), done.stderr
    config.write_text(gateways.toml({"server": {"listen": ["tls://127.0.0.1:0"]}, "tls": {"certificate": str(pem), "key": str(key)}}))
    assert gateways.run("--config", config, "--check").returncode == 0
    config.write_text(gateways.toml({"server": {"redirect_http": True}}))
    done = gateways.run("--config", config, "--check")
    assert done.returncode == 2 and "server.redirect_http" in done.stderr


def test_healthcheck_asks_over_tls_where_there_is_nothing_else(lab, authority, tmp_path):
    pem, key = authority.certify("gateway.example", file="health")
    port = closed_port()
    config = {"server": {"listen": [f"tls://127.0.0.1:{port}"]}, "tls": {"certificate": str(pem), "key": str(key)}, "log": {"level": "debug"}}
    gateway = lab.gateway(gateways.toml(config), wait=False)
    gateway.process.wait_for_line(TLS_LISTENING)
    done = gateways.run("healthcheck", "--config", gateway.file)
    assert (done.returncode, done.stdout) == (0, "degraded\n"), done.stderr


def test_results_with_audio_are_delivered_whole(results, authority):
    pem, key = authority.certify("localhost", file="audio")
    server = {"listen": ["127.0.0.1:0", "tls://127.0.0.1:0"]}
    gateway, inbox = results.embedded(config={"server": server, "tls": {"certificate": str(pem), "key": str(key)}})
    port = int(gateway.process.wait_for_line(TLS_LISTENING).group(1))
    audio = pattern(2_000_003)
    results.write("a.wav", audio)
    task = new_task()
    waiter = results.lab.adopt(Waiter(authority.connect(port).sock)).wait(task)
    waiter.half_close = lambda: socket.socket.shutdown(waiter.sock, socket.SHUT_WR)
    inbox.publish(task, text="heard", audio_file="a.wav")
    assert waiter.result().audio == audio
    waiter.done()  # the end that it expects has close_notify


class SecureBackend:
    """A raw backend behind TLS; it takes one connection."""

    def __init__(self, lab, authority, *names):
        pem, key = authority.certify(*names, file="backend")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pem, key)
        self.backend = lab.backend()

    def url(self, name="localhost"):
        return f"wss://{name}:{self.backend.port}/ws/input"

    def accept(self):
        peer = self.backend.accept()
        peer.sock = self.context.wrap_socket(peer.sock, server_side=True)
        return peer


def test_a_wss_backend_is_verified_and_relayed_to(lab, authority):
    backend = SecureBackend(lab, authority, "localhost")
    gateway = lab.gateway({"tls": {"ca": str(authority.pem)}, "route": [route(backend=backend.url())]})
    client = lab.client(gateway)
    client.upgrade("/ws/input")
    peer = backend.accept()
    peer.read_upgrade()
    peer.switch()
    client.read_switch()
    big = bytes(range(256)) * 4096
    client.frame(BINARY, big)
    assert peer.read_frame().payload == big
    peer.frame(BINARY, big)
    assert client.read_frame().payload == big
    client.close_frame(4001)
    assert peer.read_close().code == 4001


@pytest.mark.parametrize("name, trusts", [("localhost", False), ("127.0.0.1", True)], ids=["root", "name"])
def test_a_backend_with_another_root_or_name_is_not_used(lab, authority, name, trusts):
    backend = SecureBackend(lab, authority, "localhost")
    tls = {"tls": {"ca": str(authority.pem)}} if trusts else {}
    gateway = lab.gateway({**tls, "route": [route(backend=backend.url(name))]})
    client = lab.client(gateway)
    client.upgrade("/ws/input")
    with pytest.raises(ssl.SSLError):
        backend.accept()
    client.read_switch()
    closed = client.read_close()
    assert (closed.code, closed.reason) == (1011, "backend unavailable: its certificate is not accepted")
    gateway.process.wait_for_line(r"no TLS with the backend why=\"invalid peer certificate")


def test_an_insecure_route_accepts_any_certificate_and_warns(lab, authority):
    backend = SecureBackend(lab, authority, "other.example")
    gateway = lab.gateway({"route": [route(backend=backend.url(), insecure=True)]})
    gateway.process.wait_for_line(r"WARN .*route `input`: insecure = true")
    client = lab.client(gateway)
    client.upgrade("/ws/input")
    peer = backend.accept()
    peer.read_upgrade()
    peer.switch()
    client.read_switch()
    client.say("hello")
    assert peer.read_frame().text == "hello"


def test_a_wss_backend_that_is_not_there_is_refused_like_any_other(lab, authority):
    gateway = lab.gateway({"route": [route(backend=f"wss://127.0.0.1:{closed_port()}/ws/input")]})
    client = lab.client(gateway)
    client.upgrade("/ws/input")
    client.read_switch()
    closed = client.read_close()
    assert (closed.code, closed.reason) == (1011, "backend unavailable: connection refused")


# ---- reloads and passed sockets


def test_browsers_are_sent_to_where_the_gateway_listens_although_the_file_names_another_port(lab, authority):
    pem, key = authority.certify("localhost", file="moved")
    tls_port = closed_port()
    tls = {"certificate": str(pem), "key": str(key)}

    def config(listen, redirect=True):
        server = {"listen": ["127.0.0.1:0", *listen], "admin_listen": ["127.0.0.1:0"], "redirect_http": redirect}
        return {"server": server, "tls": tls}

    gateway = lab.gateway(config([f"tls://127.0.0.1:{tls_port}"]))
    plain_port = gateway.port
    gateway.port = int(gateway.process.wait_for_line(r"listening address=127\.0\.0\.1:(\d+) for=admins").group(1))

    def location():
        return lab.client(plain_port).get("/", host="a.example").head["Location"]

    def reload(config, expected):
        seen = len(gateway.process.lines)
        gateway.configure(config)
        gateway.signal(signal.SIGHUP)
        gateway.process.wait_for_line(expected, after=seen)

    at = f"https://a.example:{tls_port}/"
    assert location() == at
    reload(config([f"tls://127.0.0.1:{closed_port()}"]), r"server\.listen has changed .* only a restart")
    assert location() == at, "nothing listens at the new port before a restart"
    # Without any tls:// address `true` leads nowhere: that is refused, and everything stays.
    reload(config([]), r"not reloaded: .*server\.redirect_http: true needs a tls:// address")
    assert location() == at
    reload(config([], redirect=443), r"server\.listen has changed .* only a restart")
    assert location() == "https://a.example/"
    # The listener is still there, with its certificate.
    client = lab.adopt(authority.connect(tls_port))
    assert client.get("/health").status == 200


def test_passed_sockets_may_be_listeners_with_tls(tmp_path, authority):
    pem, key = authority.certify("localhost", file="passed")
    plain, secure = closed_port(), closed_port()
    config = {
        "server": {"listen": [f"127.0.0.1:{plain}", f"tls://127.0.0.1:{secure}"]},
        "tls": {"certificate": str(pem), "key": str(key)},
    }
    gateway = activated(tmp_path, [f"127.0.0.1:{port}" for port in (secure, plain)], config)
    try:
        client = knock(gateway, plain)
        assert client.get("/health").status == 200
        for port in (plain, secure):
            gateway.wait_for_line(rf"socket passed address=127\.0\.0\.1:{port}$")
        by_tls = authority.connect(secure)
        assert by_tls.get("/health").status == 200
        assert wire.connect(secure).get("/health").status == 400, "it speaks TLS only"
        by_tls.vanish()
        client.vanish()
    finally:
        gateway.kill()


# ---- Redis


def redis_with_tls(results, authority, *names, file="redis"):
    """A Redis server that also speaks TLS; its port for that."""
    pem, key = authority.certify(*names, file=file)
    port = closed_port()
    options = ["--tls-port", port, "--tls-cert-file", pem, "--tls-key-file", key]
    options += ["--tls-ca-cert-file", authority.pem, "--tls-auth-clients", "no"]
    return results.redis(password="secret", options=options), port


def through_redis(results, authority, port, *, ca=True, name="localhost", ready=True):
    tls = {"tls": {"ca": str(authority.pem)}} if ca else {}
    return results.gateway(f"rediss://:secret@{name}:{port}", config=tls, ready=ready)


def test_results_come_from_redis_with_tls(results, authority):
    server, port = redis_with_tls(results, authority, "localhost")
    gateway = through_redis(results, authority, port)
    results.write("a.wav", pattern(100_000))
    for number in range(3):
        task = new_task()
        early = number == 0
        waiter = None if early else results.wait(gateway, task)
        assert server.publish(task, text="heard" * 10_000, audio_file="a.wav") == 1
        waiter = waiter or results.wait(gateway, task)
        result = waiter.result()
        assert (result.content, result.audio) == ("heard" * 10_000, pattern(100_000))
        waiter.done()
    eventually(lambda: server.kept() == 3, "the results are stored by TLS, too")
    assert all(int(one["addr"].split(":")[1]) and one["laddr"].endswith(f":{port}") for one in server.gateways())
    # It goes away and comes back.
    server.restart()
    task = new_task()
    waiter = results.wait(gateway, task)
    eventually(lambda: gateway.get("/ready").status == 200 and len(server.gateways()) == 2, "the gateway is back")
    server.publish(task, text="again")
    assert waiter.result().content == "again"
    waiter.done()


@pytest.mark.parametrize("name, ca", [("localhost", False), ("127.0.0.1", True)], ids=["root", "name"])
def test_a_redis_with_another_root_or_name_is_not_used(results, authority, name, ca):
    server, port = redis_with_tls(results, authority, "localhost", file=f"redis-{ca}")
    gateway = through_redis(results, authority, port, name=name, ca=ca, ready=False)
    gateway.process.wait_for_line(r"why=\".*its certificate is not accepted: invalid peer certificate")
    assert gateway.get("/ready").status == 503
    assert server.gateways() == [], "no password was sent"


def test_a_redis_without_tls_is_not_used_by_a_url_with_it(results, authority):
    server = results.redis()
    gateway = through_redis(results, authority, server.port, ready=False)
    gateway.process.wait_for_line(r"redis trouble .*why=")
    assert gateway.get("/ready").status == 503
    assert server.gateways() == []


def test_redis_without_verification_is_refused(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(gateways.toml({"redis": {"url": "rediss://:secret@localhost#insecure"}}))
    done = gateways.run("--config", config, "--check")
    assert done.returncode == 2 and "always verified" in done.stderr and "secret" not in done.stderr
