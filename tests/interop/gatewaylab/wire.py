"""WebSocket frames and HTTP heads as bytes, and a socket that is read in these units.

It is deliberately not a WebSocket library: it sends anything, legal or not, and reports what came, mask and reserved
bits included, so that a test can compare the two ends of a relay byte for byte.
"""

import base64
import dataclasses
import os
import socket
import struct
import time

from . import PATIENCE

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NAMES = {CONTINUATION: "continuation", TEXT: "text", BINARY: "binary", CLOSE: "close", PING: "ping", PONG: "pong"}


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame as it stood on the wire: `raw` is all of it, `payload` is unmasked."""

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0
    mask: bytes | None = None
    raw: bytes = dataclasses.field(default=b"", compare=False, repr=False)

    @property
    def code(self):
        """The close code, None for a Close without one."""
        assert self.opcode == CLOSE, f"not a close frame: {self}"
        return struct.unpack(">H", self.payload[:2])[0] if self.payload else None

    @property
    def reason(self):
        assert self.opcode == CLOSE, f"not a close frame: {self}"
        return self.payload[2:].decode()

    @property
    def text(self):
        return self.payload.decode()

    def __str__(self):
        shown = self.payload if len(self.payload) <= 60 else self.payload[:60] + b"..."
        return f"<{NAMES.get(self.opcode, self.opcode)} fin={self.fin} rsv={self.rsv} {len(self.payload)} B {shown!r}>"


def frame(opcode, payload=b"", *, fin=True, rsv=0, mask=None):
    """The bytes of one frame; with `mask` (four bytes) the payload is masked by it, as clients must."""
    if isinstance(payload, str):
        payload = payload.encode()
    masked = 0x80 if mask is not None else 0
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", first, masked | size)
    elif size < 65536:
        head = struct.pack(">BBH", first, masked | 126, size)
    else:
        head = struct.pack(">BBQ", first, masked | 127, size)
    if mask is None:
        return head + payload
    return head + mask + apply_mask(payload, mask)


def apply_mask(payload, mask):
    if mask == b"\0\0\0\0" or not payload:
        return payload
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def close_payload(code=None, reason=""):
    return b"" if code is None else struct.pack(">H", code) + reason.encode()


def read_frames(data):
    """Cuts `data` into whole frames; returns them and the bytes of an unfinished last one."""
    frames, at = [], 0
    while True:
        found = parse_frame(data, at)
        if found is None:
            return frames, bytes(data[at:])
        at += len(found.raw)
        frames.append(found)


def parse_frame(data, at=0):
    """The frame that begins at `at`, or None while it is not whole."""
    left = len(data) - at
    if left < 2:
        return None
    first, second = data[at], data[at + 1]
    size, head = second & 0x7F, 2
    if size == 126:
        if left < 4:
            return None
        size, head = struct.unpack_from(">H", data, at + 2)[0], 4
    elif size == 127:
        if left < 10:
            return None
        size, head = struct.unpack_from(">Q", data, at + 2)[0], 10
    mask = None
    if second & 0x80:
        mask = bytes(data[at + head : at + head + 4])
        head += 4
    if left < head + size:
        return None
    raw = bytes(data[at : at + head + size])
    payload = raw[head:] if mask is None else apply_mask(raw[head:], mask)
    return Frame(first & 0x0F, payload, bool(first & 0x80), first >> 4 & 7, mask, raw)


@dataclasses.dataclass
class Head:
    """A request or status line and its header lines, in the order they came."""

    first: str
    headers: list
    raw: bytes = dataclasses.field(repr=False)

    @property
    def status(self):
        return int(self.first.split(" ")[1])

    @property
    def target(self):
        return self.first.split(" ")[1]

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def __getitem__(self, name):
        """The only value of a header; it is an error if the header is missing or repeated."""
        values = self.all(name)
        assert len(values) == 1, f"{name}: expected once, found {values} in {self.raw!r}"
        return values[0]

    def __contains__(self, name):
        return bool(self.all(name))

    def tokens(self, name):
        """The lower-case elements of a list header, over all its lines."""
        return [one.strip().lower() for value in self.all(name) for one in value.split(",") if one.strip()]


def parse_head(raw):
    lines = raw.decode("latin-1").split("\r\n")
    headers = []
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        assert colon, f"a header line without a colon: {line!r} in {raw!r}"
        headers.append((name, value.strip(" \t")))
    return Head(lines[0], headers, raw)


@dataclasses.dataclass
class Reply:
    """A whole HTTP answer."""

    head: Head
    body: bytes

    @property
    def status(self):
        return self.head.status

    def json(self):
        import json

        assert self.head["Content-Type"].split(";")[0] == "application/json", self.head.raw
        return json.loads(self.body)


class Wire:
    """One end of a TCP connection, read in heads, frames and bytes. Every wait ends after `PATIENCE` seconds."""

    def __init__(self, sock):
        self.sock = sock
        self.ahead = bytearray()
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(PATIENCE)

    # out

    def send(self, data):
        self.sock.sendall(data)

    def send_bytewise(self, data):
        """Each byte as a segment of its own, as far as the kernel lets one choose."""
        for at in range(len(data)):
            self.sock.sendall(data[at : at + 1])

    def frame(self, opcode, payload=b"", **options):
        """Sends one frame and returns its bytes."""
        data = frame(opcode, payload, **self._masked(options))
        self.send(data)
        return data

    def say(self, text, **options):
        return self.frame(TEXT, text, **options)

    def close_frame(self, code=None, reason=""):
        return self.frame(CLOSE, close_payload(code, reason))

    def _masked(self, options):
        return options

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def vanish(self):
        """The orderly end of a process that died: FIN, no close frame."""
        self.sock.close()

    def reset(self):
        """The rude end: RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # in

    def _more(self, what, patience=None):
        if patience is not None:
            self.sock.settimeout(patience)
        try:
            data = self.sock.recv(1 << 18)
        except TimeoutError:
            raise AssertionError(f"nothing came while waiting for {what}; held: {bytes(self.ahead[:200])!r}") from None
        except ConnectionResetError:
            raise AssertionError(f"connection reset while waiting for {what}; held: {bytes(self.ahead[:200])!r}") from None
        finally:
            if patience is not None:
                self.sock.settimeout(PATIENCE)
        self.ahead += data
        return len(data)

    def _take(self, size):
        data = bytes(self.ahead[:size])
        del self.ahead[:size]
        return data

    def read(self, size):
        """Exactly `size` bytes."""
        while len(self.ahead) < size:
            got = self._more(f"{size} bytes")
            assert got, f"the connection ended after {len(self.ahead)} of {size} bytes: {bytes(self.ahead[:200])!r}"
        return self._take(size)

    def read_head(self):
        while (end := self.ahead.find(b"\r\n\r\n")) < 0:
            got = self._more("an HTTP head")
            assert got, f"the connection ended before a head was whole: {bytes(self.ahead)!r}"
        return parse_head(self._take(end + 4))

    def read_reply(self, method="GET"):
        """An HTTP answer with its body, whichever way its end is marked."""
        head = self.read_head()
        if method == "HEAD" or head.status in (101, 204, 304):
            return Reply(head, b"")
        if "chunked" in head.tokens("Transfer-Encoding"):
            body = b""
            while size := int(self._line().split(b";")[0], 16):
                body += self.read(size)
                assert self.read(2) == b"\r\n"
            while self._line():
                pass
            return Reply(head, body)
        if "Content-Length" in head:
            return Reply(head, self.read(int(head["Content-Length"])))
        return Reply(head, self.read_to_end())

    def _line(self):
        while (end := self.ahead.find(b"\r\n")) < 0:
            assert self._more("a line"), "the connection ended inside a line"
        return self._take(end + 2)[:-2]

    def read_frame(self, patience=None):
        while (found := parse_frame(self.ahead)) is None:
            got = self._more("a frame", patience)
            assert got, f"the connection ended instead of a frame; held: {bytes(self.ahead[:200])!r}"
        del self.ahead[: len(found.raw)]
        return found

    def read_message_frame(self):
        """The next frame that is no ping: what a test looks at where the gateway's own pings come in between."""
        while (found := self.read_frame()).opcode == PING:
            pass
        return found

    def read_close(self):
        """The next frame, which must be a Close."""
        found = self.read_frame()
        assert found.opcode == CLOSE, f"expected a close frame, got {found}"
        return found

    def read_to_end(self, patience=None):
        """Everything up to the peer's FIN."""
        while self._more("the end of the connection", patience):
            pass
        return self._take(len(self.ahead))

    def expect_end(self, patience=None):
        """FIN, and not one byte before it."""
        rest = self.read_to_end(patience)
        assert rest == b"", f"bytes where only the end of the connection may come: {rest[:200]!r}"

    def expect_gone(self):
        """The connection ends, by FIN or by RST, and not one byte comes before it."""
        try:
            rest = self.sock.recv(1 << 16)
        except ConnectionResetError:
            rest = b""
        assert not self.ahead and rest == b"", f"bytes where only the end may come: {bytes(self.ahead) + rest!r}"


class Client(Wire):
    """The browser's side: what it sends is masked."""

    def _masked(self, options):
        return {"mask": os.urandom(4), **options}

    def ask(self, target="/", method="GET", headers=(), body=b"", version="HTTP/1.1", host="localhost"):
        """Sends a plain HTTP request."""
        self.send(plain_request(target, method, headers, body, version, host))

    def get(self, target="/", method="GET", headers=(), **options):
        self.ask(target, method, headers, **options)
        return self.read_reply(method)

    def upgrade(self, target="/ws/input", headers=(), behind=b"", **options):
        """Sends the request head of a WebSocket, and `behind` in the same write."""
        request, self.key = upgrade_request(target, headers, **options)
        self.send(request + behind)

    def read_switch(self):
        """The 101, checked as a browser checks it."""
        head = self.read_head()
        assert head.status == 101, head.raw
        assert head["Upgrade"].lower() == "websocket", head.raw
        assert "upgrade" in head.tokens("Connection"), head.raw
        assert head["Sec-WebSocket-Accept"] == accept_key(self.key), head.raw
        return head


class Peer(Wire):
    """A backend's side of one connection."""

    def read_upgrade(self):
        self.head = self.read_head()
        return self.head

    def switch(self, headers=(), behind=b""):
        """Answers 101, and `behind` in the same write."""
        self.send(switching(self.head, headers) + behind)


class Backend:
    """A listening socket whose connections a test takes one by one. The kernel completes connects before `accept`."""

    def __init__(self, host="127.0.0.1", port=0, backlog=128):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.create_server((host, port), family=family, backlog=backlog)
        self.sock.settimeout(PATIENCE)
        self.host, self.port = host, self.sock.getsockname()[1]
        self.peers = []

    def url(self, path="/ws/input", host=None):
        return f"ws://{host or self.host}:{self.port}{path}"

    def accept(self, patience=None):
        if patience is not None:
            self.sock.settimeout(patience)
        sock, _ = self.sock.accept()
        self.sock.settimeout(PATIENCE)
        sock.settimeout(PATIENCE)
        peer = Peer(sock)
        self.peers.append(peer)
        return peer

    def accept_upgraded(self, **options):
        peer = self.accept()
        peer.read_upgrade()
        peer.switch(**options)
        return peer

    def stop(self):
        """Stops listening and drops open connections, as when the process dies."""
        self.sock.close()
        for peer in self.peers:
            peer.sock.close()


def connect(port, host="127.0.0.1", source=None, receive_buffer=None):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source:
        sock.bind((source, 0))
    sock.settimeout(PATIENCE)
    sock.connect((host, port))
    return Client(sock)


def plain_request(target="/", method="GET", headers=(), body=b"", version="HTTP/1.1", host="localhost"):
    lines = [f"{method} {target} {version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def upgrade_request(target="/ws/input", headers=(), key=None, host="gateway.test"):
    """The bytes of a browser's request, and its key. `headers` come last."""
    key = key or base64.b64encode(os.urandom(16)).decode()
    usual = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Version", "13"),
    ]
    named = {name.lower() for name, _ in headers}
    usual = [(name, value) for name, value in usual if name.lower() not in named]
    return plain_request(target, headers=usual + list(headers), host=host), key


def switching(request, headers=()):
    """The 101 that answers `request`."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(request['Sec-WebSocket-Key'])}",
    ]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def accept_key(key):
    import hashlib

    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    return base64.b64encode(digest).decode()


def closed_port():
    """A port of 127.0.0.1 where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def eventually(question, what, patience=PATIENCE):
    """Asks until the answer is true, and returns it: for what has no event to wait for."""
    until = time.monotonic() + patience
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < until, f"did not happen within {patience} s: {what}"
        time.sleep(0.01)
