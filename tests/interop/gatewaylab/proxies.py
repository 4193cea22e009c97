"""A real nginx, Caddy and HAProxy in front of a gateway, with the configurations that the project shows."""

import pathlib
import re
import socket
import ssl
import subprocess

from . import wire
from .process import Process
from .wire import PATIENCE, eventually

NAME = "gateway.example"
ROOT = pathlib.Path(__file__).parents[3]
OPERATIONS = ROOT / "docs" / "operations.md"


def documented(language):
    """The configuration in the operator's manual."""
    found = re.findall(rf"^```{language}\n(.*?)^```", OPERATIONS.read_text(), re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"{len(found)} examples of {language}"
    return found[0]


def replaced(text, old, new):
    assert text.count(old) == 1, f"{old!r} in:\n{text}"
    return text.replace(old, new)


def free_port():
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        return sock.getsockname()[1]


def outside_address():
    """An address of this machine that is not loopback, as a client elsewhere has it. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))
        return sock.getsockname()[0]


class Proxy:
    """Listens with TLS on `port`, on every address."""

    def __init__(self, folder, gateway_port, *, denies=True):
        folder.mkdir()
        self.folder, self.port = folder, free_port()
        self.process = Process(self.command(gateway_port, denies), env={"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/bin"})
        assert eventually(self.is_up, "the proxy takes connections"), self.process.text

    def is_up(self):
        assert self.process.is_running(), self.process.text
        try:
            self.connect("127.0.0.1").vanish()
            return True
        except OSError:
            return False

    def connect(self, address):
        """A client at this address of this machine."""
        sock = socket.create_connection((address, self.port), timeout=PATIENCE, source_address=(address, 0))
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return wire.Client(context.wrap_socket(sock, server_hostname=NAME))

    def get(self, address, target, headers=()):
        client = self.connect(address)
        try:
            return client.get(target, headers=headers, host=NAME)
        finally:
            client.vanish()

    def stop(self):
        self.process.kill()


    def make_certificate(self):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
            + ["-keyout", self.folder / "gateway.key", "-out", self.folder / "gateway.pem"],
            check=True,
            capture_output=True,
        )


class Nginx(Proxy):
    def command(self, gateway_port, denies):
        self.make_certificate()
        site = replaced(documented("nginx"), "listen 443 ssl;", f"listen {self.port} ssl;")
        site = replaced(site, "127.0.0.1:8000", f"127.0.0.1:{gateway_port}")
        site = site.replace("/etc/ssl/gateway.", f"{self.folder}/gateway.")
        if not denies:
            site, count = re.subn(r"location ~ [^}]*\}", "", site)
            assert count == 1, site
        folders = "".join(
            f"{name}_temp_path {self.folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = self.folder / "nginx.conf"
        file.write_text(
            f"daemon off;\nmaster_process off;\npid {self.folder}/nginx.pid;\nerror_log stderr;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{folders}{site}\n}}\n"
        )
        return ["nginx", "-p", self.folder, "-c", file]


class Caddy(Proxy):
    def command(self, gateway_port, denies):
        site = replaced(documented("caddyfile"), "127.0.0.1:8000", f"127.0.0.1:{gateway_port}")
        if not denies:
            site = "".join(line for line in site.splitlines(keepends=True) if "@operators" not in line)
        # A certificate of its own in place of a public one, and ports that are free.
        options = (
            "admin off", "local_certs", "skip_install_trust", "auto_https disable_redirects",
            f"https_port {self.port}", f"storage file_system {self.folder}/storage",
        )  # fmt: skip
        file = self.folder / "Caddyfile"
        file.write_text("{\n" + "".join(f"\t{option}\n" for option in options) + "}\n" + site)
        return ["caddy", "run", "--adapter", "caddyfile", "--config", file]


class HAProxy(Proxy):
    def command(self, gateway_port, denies):
        self.make_certificate()
        with open(self.folder / "gateway.pem", "a") as both:
            both.write((self.folder / "gateway.key").read_text())
        site = (ROOT / "examples/haproxy/haproxy.cfg").read_text()
        site = replaced(site, "bind :443", f"bind :{self.port}")
        site = replaced(site, "/etc/haproxy/gateway.pem", f"{self.folder}/gateway.pem")
        site = replaced(site, "server gateway 127.0.0.1:8000", f"server gateway 127.0.0.1:{gateway_port}")
        if not denies:
            site = "".join(line for line in site.splitlines(keepends=True) if "http-request deny" not in line)
        file = self.folder / "haproxy.cfg"
        file.write_text(site)
        return ["haproxy", "-db", "-f", file]


class Passing(Proxy):
    """Passes TLS on, with a PROXY header in front of it."""

    def example(self, file, gateway_port):
        return (ROOT / "examples" / file).read_text().replace("127.0.0.1:8443", f"127.0.0.1:{gateway_port}")


class PassingHAProxy(Passing):
    VERSION = "send-proxy-v2"

    def command(self, gateway_port, denies):
        site = self.example("haproxy/passthrough.cfg", gateway_port)
        site = replaced(site, "bind :443", f"bind :{self.port}")
        site = replaced(site, "send-proxy-v2", self.VERSION)
        site = replaced(site, "verify none", "verify none inter 200ms")
        self.stats = self.folder / "stats.sock"
        file = self.folder / "haproxy.cfg"
        file.write_text(f"global\n    stats socket {self.stats}\n{site}")
        return ["haproxy", "-db", "-f", file]

    def check_status(self):
        """What the last health check of the gateway found, such as `L7OK`."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.stats))
            sock.sendall(b"show stat\n")
            header, *rows = b"".join(iter(lambda: sock.recv(65536), b"")).decode().lstrip("# ").splitlines()
        names = header.split(",")
        row = next(dict(zip(names, row.split(","))) for row in rows if row.startswith("gateway,gateway,"))
        return row["check_status"]


class PassingHAProxyV1(PassingHAProxy):
    VERSION = "send-proxy"


class PassingNginx(Passing):
    def command(self, gateway_port, denies):
        site = replaced(self.example("nginx/stream.conf", gateway_port), "listen 443;", f"listen {self.port};")
        file = self.folder / "nginx.conf"
        file.write_text(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
            f"daemon off;\nmaster_process off;\npid {self.folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n{site}"
        )
        return ["nginx", "-p", self.folder, "-c", file]
