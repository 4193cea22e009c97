"""The gateway's binary as a test sees it: a configuration in, a port out, a log to read.

The kernel chooses the port (`listen = ["127.0.0.1:0"]`), and the test reads it from the `listening` line of the log. When
a test ends, each of its gateways must still run and have no session left.
"""

import ctypes
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess

from . import PATIENCE, TARGET, wire
from .process import Process

BINARY = pathlib.Path(os.environ.get("GATEWAY_BINARY", TARGET / "release" / "aivtuber-gateway"))

LIBC = ctypes.CDLL(None, use_errno=True)

LISTENING = r"listening\b.*address=\"?(?:127\.0\.0\.1|\[::1\]):(\d+)"


def route(name="input", path="/ws/input", **keys):
    return {"name": name, "path": path, **keys}


def toml(config):
    """A configuration as TOML: sections of plain values, and lists of tables."""
    out = []
    for section, content in config.items():
        tables = content if isinstance(content, list) else [content]
        for table in tables:
            out.append(f"[[{section}]]" if isinstance(content, list) else f"[{section}]")
            out += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
            out.append("")
    return "\n".join(out)


def clean_env(**more):
    """The environment without anything that the gateway would read."""
    ours = ("INPUT_HANDLER_URL", "OUTPUT_HANDLER_URL", "REDIS_URL", "REDIS_HOST", "REDIS_PORT", "AIVTUBER_GATEWAY_LOG")
    return {key: value for key, value in os.environ.items() if key not in ours} | more


class Gateway:
    """A running gateway. `config` is a dict of sections (merged over what a test wants by default) or the file's text."""

    def __init__(self, folder, config, *, args=(), env=None, before=None, wait=True, command=()):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "config.toml"
        self.configure(config)
        self.process = Process(
            [BINARY, *command, "--config", self.file, *args], env=clean_env(**(env or {})), cwd=folder, before=before
        )
        self.may_end = False
        self.port = None
        if wait:
            self.port = self.read_port()

    def configure(self, config):
        """Writes the configuration file; a running gateway reads it on HUP."""
        if not isinstance(config, str):
            defaults = {"server": {"listen": ["127.0.0.1:0"]}, "log": {"level": "debug"}}
            merged = {name: {**defaults.get(name, {}), **config.get(name, {})} for name in defaults}
            config = toml(merged | {name: value for name, value in config.items() if name not in merged})
        self.file.write_text(config)

    def read_port(self):
        return int(self.process.wait_for_line(LISTENING).group(1))

    @property
    def pid(self):
        return self.process.pid

    @property
    def log(self):
        return self.process.text

    def signal(self, number):
        self.process.signal(number)

    # asking it

    def connect(self, **options):
        return wire.connect(self.port, **options)

    def get(self, target="/health", **options):
        client = self.connect()
        try:
            return client.get(target, **options)
        finally:
            client.vanish()

    def connections(self):
        return self.get("/connections").json()

    def is_empty(self):
        """Whether no WebSocket is open; a gateway that is too full to say so is not."""
        reply = self.get("/connections")
        return reply.status == 200 and reply.json()["total_connections"] == 0

    def metrics(self):
        reply = self.get("/metrics")
        assert reply.status == 200
        return Metrics(reply.body.decode())

    # looking at it from outside

    def resident_bytes(self):
        """Memory that is the process's own (anonymous), so that mapped code does not count."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def listening_ports(self):
        """Its ports as the kernel knows them, for a gateway whose log cannot be read."""
        inodes = set()
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            try:
                target = os.readlink(entry.path)
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        ports = []
        for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.append(int(fields[1].split(":")[1], 16))
        return ports

    def socket_to(self, peer):
        """A duplicate of the gateway's socket at the other end of `peer`, to read its options."""
        pidfd = os.pidfd_open(self.pid)
        try:
            for number in map(int, os.listdir(f"/proc/{self.pid}/fd")):
                try:
                    descriptor = pidfd_getfd(pidfd, number)
                except OSError as error:
                    if error.errno == errno.EPERM:
                        raise
                    continue  # closed meanwhile
                try:
                    taken = socket.socket(fileno=descriptor)
                except OSError:
                    os.close(descriptor)  # no socket; of the gateway's output no end would be seen
                    continue
                try:
                    if taken.getpeername() == peer.getsockname() and taken.getsockname() == peer.getpeername():
                        return taken
                except OSError:
                    pass  # it listens
                taken.close()
        finally:
            os.close(pidfd)
        raise AssertionError(f"no socket of the gateway has the peer {peer}")

    # its end

    def stop(self):
        """The check at the end of each test: still running, with no connection left."""
        try:
            if not self.may_end:
                assert self.process.is_running(), f"the gateway ended by itself:\n{self.log}"
                if self.port:
                    wire.eventually(self.is_empty, "all sessions are gone")
        finally:
            self.process.kill()
            print(f"---- log of the gateway on port {self.port}\n{shortened(self.log)}")


def pidfd_getfd(pidfd, number):
    """Duplicates a descriptor of another process (pidfd_getfd(2), which Python does not offer)."""
    taken = LIBC.syscall(438, pidfd, number, 0)
    if taken < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return taken


def shortened(text, lines=120):
    """The beginning and the end of a long log, for a failed test's report."""
    all_lines = text.splitlines()
    if len(all_lines) <= lines:
        return text
    half = lines // 2
    return "\n".join(all_lines[:half] + [f"... {len(all_lines) - lines} lines ..."] + all_lines[-half:])


def run(*args, env=None, cwd=None):
    """Runs the binary to its end, for what only prints: exit status, standard output and error."""
    done = subprocess.run(
        [BINARY, *map(str, args)],
        env=clean_env(**(env or {})),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done


class Metrics:
    """Prometheus's text format, read strictly enough that a malformed page fails."""

    def __init__(self, text):
        import re

        self.types, self.help, self.samples = {}, {}, {}
        assert text.endswith("\n"), "the last line must end in a line feed"
        sample = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$")
        label = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                name, kind = line[7:].split(" ")
                assert name not in self.types, f"{name} is declared twice"
                assert kind in ("counter", "gauge", "histogram", "summary", "untyped"), line
                self.types[name] = kind
            elif line.startswith("# HELP "):
                name, _, words = line[7:].partition(" ")
                self.help[name] = words
            elif line and not line.startswith("#"):
                match = sample.match(line)
                assert match, f"not a sample: {line!r}"
                name, labels, value = match.groups()
                pairs, rest = [], labels or ""
                while rest:
                    one = label.match(rest)
                    assert one, f"malformed labels: {line!r}"
                    pairs.append(one.groups())
                    rest = rest[one.end() :]
                key = (name, tuple(sorted(pairs)))
                assert key not in self.samples, f"{key} stands twice"
                self.samples[key] = float(value)

    def total(self, *words):
        """The sum of all samples whose name has all these words in it."""
        found = [value for (name, _), value in self.samples.items() if all(word in name for word in words)]
        assert found, f"no metric with {words} in its name among {sorted({name for name, _ in self.samples})}"
        return sum(found)


def low_descriptor_limit(limit):
    """For `before`: the process may open no more than `limit` descriptors, hard."""

    def set_limit():
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    return set_limit


__all__ = ["BINARY", "Gateway", "Metrics", "clean_env", "low_descriptor_limit", "route", "run", "signal", "toml"]
