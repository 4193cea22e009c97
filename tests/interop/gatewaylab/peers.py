"""Other people's WebSocket libraries as clients and backends: `websockets` from PyPI, `ws` from npm, and a real browser.

Backends run in processes of their own, one of each for the whole test run, and obey messages that begin with `!` (see
`peers/websockets_backend.py`). Both clients look the same to a test: `send`, `receive`, `ping`, `close`; what is received is a
`Message`, a `Pong` or a `Closed`, and payloads are compared by length and digest so that 20 MiB cost no more than they must.
"""

import base64
import dataclasses
import hashlib
import json
import os
import queue
import socket
import sys
import threading

import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from . import NODE_MODULES, PATIENCE, PEERS
from .process import Process

PATTERN = bytes(range(251))


def pattern(size):
    """`size` bytes that differ at each place within 251: a block that goes missing or twice shows."""
    return (PATTERN * (size // 251 + 1))[:size]


def node_env():
    return {**os.environ, "NODE_PATH": str(NODE_MODULES)}


@dataclasses.dataclass(frozen=True)
class Message:
    binary: bool
    size: int
    digest: str
    text: str | None = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, data):
        is_text = isinstance(data, str)
        raw = data.encode() if is_text else data
        return cls(not is_text, len(raw), hashlib.sha256(raw).hexdigest(), data if is_text else None)


@dataclasses.dataclass(frozen=True)
class Pong:
    payload: str


@dataclasses.dataclass(frozen=True)
class Closed:
    code: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Refused:
    """The upgrade was answered with something else than 101."""

    status: int
    body: str


class LibraryBackend:
    """A backend process that takes orders; `ends` are the connections that it has seen end."""

    def __init__(self, library, port=0):
        script = {"websockets": [sys.executable, PEERS / "websockets_backend.py"], "ws": ["node", PEERS / "ws_backend.js"]}
        self.library = library
        self.process = Process([*script[library], port], env=node_env())
        self.port = int(self.process.wait_for_line(r"^port (\d+)$").group(1))

    def url(self, path="/ws/input"):
        return f"ws://127.0.0.1:{self.port}{path}"

    def wait_for_end(self, tag):
        """How the connection whose target has `tag` in it ended, as the library reports it."""
        line = self.process.wait_for_line(rf'^{{.*"target": ?"[^"]*{tag}.*$').group(0)
        end = json.loads(line)
        return Closed(end["code"], end["reason"])

    def stop(self):
        self.process.kill()


class PythonClient:
    """A client on `websockets`. Its keep-alive is off: pings are the test's or the gateway's."""

    library = "websockets"

    @classmethod
    def open(cls, url, protocols=(), headers=None, deflate=True, origin=None):
        self = cls()
        try:
            # As a context manager that is left in `vanish`: the test, not a block of code, says when a client goes.
            self.manager = websockets.sync.client.connect(
                url,
                subprotocols=list(protocols) or None,
                additional_headers=headers,
                compression="deflate" if deflate else None,
                origin=origin,
                max_size=None,
                ping_interval=None,
                open_timeout=PATIENCE,
                close_timeout=PATIENCE,
                proxy=None,
            )
            self.socket = self.manager.__enter__()
        except websockets.exceptions.InvalidStatus as refused:
            return Refused(refused.response.status_code, (refused.response.body or b"").decode())
        self.protocol = self.socket.subprotocol or ""
        self.extensions = self.socket.response.headers.get("Sec-WebSocket-Extensions", "")
        return self

    def send(self, data):
        self.socket.send(data)

    def send_fragments(self, parts):
        self.socket.send(iter(parts))

    def receive(self):
        try:
            return Message.of(self.socket.recv(timeout=PATIENCE))
        except ConnectionClosed:
            return Closed(self.socket.close_code, self.socket.close_reason)

    def ping(self, payload):
        """Sends a ping and returns its pong."""
        assert self.socket.ping(payload.encode()).wait(PATIENCE), "no pong"
        return Pong(payload)

    def close(self, code=1000, reason=""):
        self.socket.close(code, reason)
        return Closed(self.socket.close_code, self.socket.close_reason)

    def vanish(self):
        try:
            self.socket.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.manager.__exit__(None, None, None)


class Driven:
    """A node program that takes orders: each gets an answer with its number, in any order."""

    def __init__(self, script, *arguments, env=None):
        self.process = Process(["node", PEERS / script, *arguments], env=env or node_env(), talk=True)
        self.answers, self.number, self.lock = {}, 0, threading.Lock()
        self.greetings = queue.Queue()
        self.reader = threading.Thread(target=self._collect, daemon=True)
        self.reader.start()

    def _collect(self):
        for line in self.process.child.stdout:
            answer = json.loads(line)
            number = answer.pop("order", None)
            (self.greetings if number is None else self.answers[number]).put(answer)

    def order(self, do, **order):
        with self.lock:
            self.number += 1
            number = self.number
            self.answers[number] = queue.Queue()
            line = json.dumps({"order": number, "do": do, **order}) + "\n"
            self.process.child.stdin.write(line.encode())
            self.process.child.stdin.flush()
        try:
            answer = self.answers[number].get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"no answer to {do} {order}; it said: {self.process.text}") from None
        finally:
            del self.answers[number]
        assert "failed" not in answer and answer.get("event") != "failed", f"{do}: {answer}"
        return answer

    def stop(self):
        self.process.child.stdin.close()
        try:
            self.process.wait()
        finally:
            self.process.kill()
            self.reader.join()


class NodeClients(Driven):
    """All clients on `ws` live in one node process."""

    def __init__(self):
        super().__init__("ws_client.js")
        self.opened = 0

    def open(self, url, protocols=(), headers=None, deflate=True, origin=None):
        self.opened += 1
        client = NodeClient(self, self.opened)
        answer = self.order(
            "open", socket=client.id, url=url, protocols=list(protocols), headers=headers or {}, deflate=deflate, origin=origin
        )
        if answer["event"] == "refused":
            return Refused(answer["status"], answer["body"])
        assert answer["event"] == "open", answer
        client.protocol, client.extensions = answer["protocol"], answer["extensions"]
        return client


class NodeClient:
    """A client on `ws`."""

    library = "ws"

    def __init__(self, node, id):
        self.node, self.id = node, id

    def send(self, data):
        if isinstance(data, bytes) and data == pattern(len(data)):
            self.node.order("send", socket=self.id, binary=True, pattern=len(data))
        elif isinstance(data, bytes):
            self.node.order("send", socket=self.id, binary=True, data=base64.b64encode(data).decode())
        else:
            self.node.order("send", socket=self.id, binary=False, data=data)

    def send_fragments(self, parts):
        parts = list(parts)
        for at, part in enumerate(parts):
            self.node.order("send", socket=self.id, binary=False, data=part, fin=at == len(parts) - 1)

    def receive(self):
        got = self.node.order("receive", socket=self.id)
        kind = got.pop("event")
        return {"message": Message, "pong": Pong, "close": Closed}[kind](**got)

    def ping(self, payload):
        self.node.order("ping", socket=self.id, payload=payload)
        return self.receive()

    def close(self, code=1000, reason=""):
        self.node.order("close", socket=self.id, code=code, reason=reason)
        return self.receive()

    def vanish(self):
        self.node.order("terminate", socket=self.id)


class Browser(Driven):
    """Headless Chromium with one page at a time. `names` are further names of this machine, `home` is where it looks for roots."""

    def __init__(self, *names, home=None):
        env = node_env() if home is None else {**node_env(), "HOME": str(home)}
        super().__init__("browser.js", *names, env=env)
        hello = self.greetings.get(timeout=60)
        assert hello["event"] == "ready", hello

    def goto(self, url, **look):
        """Opens a page of its own; `look` is what playwright's `newPage` takes, such as `colorScheme` and `viewport`."""
        return self.order("goto", url=url, look=look)

    def type(self, text):
        """Types on the keyboard, wherever the focus is."""
        self.order("keys", keys=[{"type": text}])

    def press(self, *keys):
        """Presses one key after the other: `Tab`, `Enter`, `Shift+Enter`."""
        self.order("keys", keys=[{"press": key} for key in keys])

    def reload(self):
        """The same page anew, in the same browser profile."""
        self.order("reload")

    def choose(self, selector, name, data):
        """Chooses a file with these bytes in a file input."""
        self.order("file", selector=selector, name=name, data=base64.b64encode(data).decode())

    def axe(self):
        """What axe-core finds wrong with the page, one sentence each."""
        return self.order("axe")["value"]

    def console_errors(self):
        """What the browser has reported about the page as errors."""
        return self.order("console_errors")["value"]

    def screenshot(self, path):
        self.order("screenshot", path=str(path))

    def evaluate(self, script):
        """The value of an expression in the page, `None` if it has none; a promise is waited for."""
        return self.order("evaluate", script=script).get("value")

    def leave(self):
        """An empty page: what the last one had open ends with it."""
        self.goto("about:blank")

    def complaints(self):
        return self.order("complaints")["value"]
