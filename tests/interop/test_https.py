"""`demo --https`, `cert` and what docs/https.md promises: a phone's view of it, and its recipes."""

import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess

import pytest

from gatewaylab import PATIENCE, ROOT, wire
from gatewaylab import gateway as gateways
from gatewaylab.certificates import openssl
from gatewaylab.gateway import BINARY, clean_env
from gatewaylab.peers import Browser
from gatewaylab.process import Process
from gatewaylab.proxies import Proxy, replaced
from gatewaylab.wire import closed_port
from test_talk import CAPTION, Talk

GUIDE = (ROOT / "docs/https.md").read_text()

# The name under which other devices of the network know this machine.
NAME = socket.gethostname().split(".")[0].lower() + ".local"


def block(language, number=0):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)[number]


def trusting(ca):
    return ssl.create_default_context(cafile=ca)


class HttpsDemo:
    """`demo --https`, with a data folder of its own."""

    def __init__(self, folder):
        self.data = folder / "data"
        self.ca = self.data / "aivtuber-gateway/ca.pem"
        self.plain_port, self.port = closed_port(), closed_port()
        listen = ["--listen", f"127.0.0.1:{self.plain_port}", "--listen", f"tls://127.0.0.1:{self.port}"]
        self.process = Process(
            [BINARY, "demo", "--https", *listen], env=clean_env(XDG_DATA_HOME=str(self.data)), cwd=folder
        )
        self.process.wait_for_line(r"docs/frontend\.md shows how")

    @property
    def url(self):
        return f"https://{NAME}:{self.port}/"

    def stop(self):
        print(self.process.text)
        self.process.signal(signal.SIGINT)
        try:
            assert self.process.wait() == 0
        finally:
            self.process.kill()


@pytest.fixture
def https_demo(tmp_path):
    demo = HttpsDemo(tmp_path)
    yield demo
    demo.stop()


@pytest.fixture
def phone(tmp_path):
    """A browser elsewhere: this machine has another name for it than `localhost`, and it has roots of its own."""
    started = []

    def start(ca=None):
        home = tmp_path / f"home{len(started)}"
        store = home / ".pki/nssdb"
        store.mkdir(parents=True)
        subprocess.run(["certutil", "-d", f"sql:{store}", "-N", "--empty-password"], check=True, timeout=PATIENCE)
        if ca is not None:
            # As the guide says.
            command = block("console", 3).splitlines()[1].replace("~/.local/share/aivtuber-gateway/ca.pem", str(ca))
            subprocess.run(command, shell=True, env={**os.environ, "HOME": str(home)}, check=True, timeout=PATIENCE)
        started.append(Browser(NAME, home=home))
        return started[-1]

    yield start
    for browser in started:
        browser.stop()


def speak(browser):
    """Records the fake microphone, sends it, and waits for the answer's text and sound."""
    talk = Talk(browser)
    assert browser.evaluate("isSecureContext")
    assert not browser.evaluate("document.getElementById('talk-speak').disabled")
    talk.press("talk-speak")
    talk.ends("^Listening")
    browser.evaluate("new Promise((done) => setTimeout(done, 1000))")
    browser.press("Enter")
    talk.shows("I heard you: ")
    assert re.search(r"I heard you: \d+\.\d seconds of WebM", talk.answer), talk.answer
    caption = browser.evaluate(CAPTION)
    assert caption and caption in talk.answer
    assert talk.ends().startswith("Done.")
    assert browser.complaints() == []


def test_a_phone_that_trusts_the_ca_speaks_and_hears_the_answer(https_demo, phone):
    browser = phone(https_demo.ca)
    assert browser.goto(https_demo.url)["status"] == 200
    speak(browser)


def test_a_phone_that_does_not_trust_it_is_warned_and_can_go_on(https_demo, phone):
    browser = phone()
    with pytest.raises(AssertionError, match="ERR_CERT_AUTHORITY_INVALID"):
        browser.goto(https_demo.url)
    # What "Advanced" and "Proceed" do.
    assert browser.goto(https_demo.url, ignoreHTTPSErrors=True)["status"] == 200
    speak(browser)


def test_a_phone_that_comes_without_tls_is_sent_on(https_demo, phone):
    browser = phone(https_demo.ca)
    assert browser.goto(f"http://{NAME}:{https_demo.plain_port}/")["status"] == 200
    assert browser.evaluate("location.href") == https_demo.url


def test_the_demo_prints_what_to_open_and_what_to_trust(https_demo):
    https_demo.process.wait_for_line(rf"open +https://localhost:{https_demo.port}/ +type or speak")
    https_demo.process.wait_for_line(rf"trust +{re.escape(str(https_demo.ca))}$")
    context = trusting(https_demo.ca)
    for name in ("localhost", NAME, "127.0.0.1"):
        client = wire.connect(https_demo.port)
        client.sock = context.wrap_socket(client.sock, server_hostname=name)
        assert client.get("/health", host=name).json()["gateway"] == "running"
        client.vanish()
    https_demo.process.signal(signal.SIGHUP)
    https_demo.process.wait_for_line("read again config=none")
    client = wire.connect(https_demo.port)
    client.sock = context.wrap_socket(client.sock, server_hostname=NAME)
    assert client.get("/health").status == 200, "a reload keeps what the flag has set"
    client.vanish()


def test_the_demo_needs_an_address_with_tls(tmp_path):
    done = gateways.run("demo", "--https", "--listen", "127.0.0.1:0", env={"XDG_DATA_HOME": str(tmp_path)})
    assert done.returncode == 1 and "needs a tls:// address" in done.stderr


def made(tmp_path, folder, *names):
    """What `cert` prints; the CA is in the data folder."""
    done = gateways.run("cert", folder, *names, env={"XDG_DATA_HOME": str(tmp_path / "data")})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cert_makes_what_a_gateway_serves_and_openssl_accepts(lab, tmp_path):
    printed = made(tmp_path, tmp_path / "tls", NAME, "192.0.2.7", "*.home.example")
    ca = tmp_path / "data/aivtuber-gateway/ca.pem"
    pem = tmp_path / "tls" / f"{NAME}.pem"
    assert str(ca) in printed
    assert "OK" in openssl("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", ca, pem)
    for kind, name in [("hostname", NAME), ("ip", "192.0.2.7"), ("hostname", "any.home.example")]:
        openssl("verify", "-x509_strict", f"-verify_{kind}", name, "-CAfile", ca, pem)
    # The printed lines are a configuration, but for its addresses.
    config = "\n".join(line.strip() for line in printed.splitlines() if line.startswith("    "))
    config = config.replace("0.0.0.0:8000", "127.0.0.1:0").replace("tls://0.0.0.0:8443", "tls://127.0.0.1:0")
    gateway = lab.gateway(config)
    port = int(gateway.process.wait_for_line(r"listening address=tls://127\.0\.0\.1:(\d+)").group(1))
    client = wire.connect(port)
    client.sock = trusting(ca).wrap_socket(client.sock, server_hostname=NAME)
    assert client.get("/health").status == 200
    client.vanish()


def test_cert_reports_what_it_cannot_do(tmp_path):
    for arguments, why in [(["/proc/x"], "cannot make the folder /proc/x"), ([tmp_path, "http://a"], "neither a name nor an address")]:
        done = gateways.run("cert", *arguments, env={"XDG_DATA_HOME": str(tmp_path / "data")})
        assert done.returncode == 1 and why in done.stderr, done.stderr
    done = gateways.run("cert", tmp_path, env={"XDG_DATA_HOME": "", "HOME": ""})
    assert done.returncode == 1 and "XDG_DATA_HOME" in done.stderr
    assert gateways.run("cert").returncode == 2


# ---- recipes


def test_the_recipe_for_mkcert(lab, tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "CAROOT": str(tmp_path / "ca"), "TRUST_STORES": "nss"}
    (tmp_path / ".pki/nssdb").mkdir(parents=True)
    for command in block("console", 4).splitlines():
        subprocess.run(command, shell=True, check=True, env=env, cwd=tmp_path, timeout=PATIENCE, capture_output=True)
    config = replaced(block("toml"), "0.0.0.0:8000", "127.0.0.1:0")
    config = replaced(config, "0.0.0.0:8443", "127.0.0.1:0")
    config = config.replace('"gateway.', f'"{tmp_path}/gateway.')
    gateway = lab.gateway(config)
    port = int(gateway.process.wait_for_line(r"listening address=tls://127\.0\.0\.1:(\d+)").group(1))
    client = wire.connect(port)
    client.sock = trusting(tmp_path / "ca/rootCA.pem").wrap_socket(client.sock, server_hostname="192.168.1.20")
    assert client.get("/health").status == 200
    client.vanish()


class GuideProxy(Proxy):
    """A proxy as the guide shows, with a certificate that `cert` has made."""

    def site(self, gateway_port):
        made(self.folder, self.folder / "tls", "avatar", "127.0.0.1")
        site = replaced(block(self.language), "127.0.0.1:8000", f"127.0.0.1:{gateway_port}")
        site, count = re.subn("/etc/aivtuber-gateway", str(self.folder), site)
        assert count == 2
        return site

    def connect(self, address):
        client = wire.connect(self.port)
        ca = self.folder / "data/aivtuber-gateway/ca.pem"
        client.sock = trusting(ca).wrap_socket(client.sock, server_hostname="127.0.0.1")
        return client


class GuideCaddy(GuideProxy):
    language = "caddyfile"

    def command(self, gateway_port, denies):
        site = self.site(gateway_port)
        options = ("admin off", "auto_https disable_redirects", f"https_port {self.port}", f"storage file_system {self.folder}/storage")
        file = self.folder / "Caddyfile"
        file.write_text("{\n" + "".join(f"\t{option}\n" for option in options) + "}\n" + site)
        return ["caddy", "run", "--adapter", "caddyfile", "--config", file]


class GuideNginx(GuideProxy):
    language = "nginx"

    def command(self, gateway_port, denies):
        site = replaced(self.site(gateway_port), "listen 443 ssl;", f"listen {self.port} ssl;")
        folders = "".join(f"{name}_temp_path {self.folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        file = self.folder / "nginx.conf"
        file.write_text(
            f"daemon off;\nmaster_process off;\npid {self.folder}/nginx.pid;\nerror_log stderr;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{folders}{site}\n}}\n"
        )
        return ["nginx", "-p", self.folder, "-c", file]


@pytest.mark.parametrize("kind", [GuideCaddy, GuideNginx], ids=["caddy", "nginx"])
def test_the_recipes_for_proxies(lab, kind):
    backend = lab.backend()
    gateway = lab.gateway({"server": {"trusted_proxies": ["127.0.0.1"]}}, backend=backend.url())
    proxy = lab.adopt_proxy(kind(lab.folder / kind.language, gateway.port))
    assert proxy.get("127.0.0.1", "/health").json()["gateway"] == "running"
    client = lab.adopt(proxy.connect("127.0.0.1"))
    client.upgrade("/ws/input")
    peer = backend.accept_upgraded()
    client.read_switch()
    assert peer.head["X-Forwarded-Proto"] == "https"
    client.say("through both")
    assert peer.read_frame().text == "through both"
