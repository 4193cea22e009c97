"""Many waiting clients in one thread: sockets that do not block, one selector, and what each of them was sent.

A test says what it waits for (`Crowd.run`), and the crowd reads until that is so. What to know: members that come and
go are cheap enough for ten thousand tasks in a test, because a member is a socket, a buffer and a list.
"""

import json
import selectors
import socket
import time

from . import PATIENCE, wire

ANSWER_END = b"\r\n\r\n"


class Member:
    """One client: `texts` and `audio` came, `code` is what it was closed or refused with, `ended` that the connection is over."""

    def __init__(self, task, number):
        self.task, self.number = task, number
        self.buffer = bytearray()
        self.is_open = False
        self.texts, self.audio, self.code, self.ended = [], 0, None, False
        self.began = self.heard = None

    @property
    def contents(self):
        return [text["content"] for text in self.texts if "content" in text]


class Crowd:
    """Clients on one gateway. `port` may change when a gateway is started again."""

    def __init__(self, port):
        self.port = port
        self.selector = selectors.EpollSelector()
        self.members = {}
        self.count = 0
        self.request, _ = wire.upgrade_request("/ws/output/TASK", key="dGhlIHNhbXBsZSBub25jZQ==")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for member in list(self.members.values()):
            self.drop(member)
        self.selector.close()

    def join(self, task, query="", receive_buffer=None, port=None):
        """A new client; its upgrade is under way. `port`: another gateway than the crowd's."""
        member = Member(task, self.count)
        self.count += 1
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            sock.connect(("127.0.0.1", port or self.port))
        except OSError:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        sock.sendall(self.request.replace(b"TASK", (task + query).encode()))
        member.sock = sock
        self.selector.register(sock, selectors.EVENT_READ, member)
        self.members[member.number] = member
        return member

    def drop(self, member, rudely=False):
        """It leaves; `rudely`, with a reset."""
        if self.members.pop(member.number, None) is None:
            return
        self.selector.unregister(member.sock)
        if rudely:
            wire.Client(member.sock).reset()
        else:
            member.sock.close()

    def run(self, until, what, patience=PATIENCE):
        """Reads until `until()` is true."""
        deadline = time.monotonic() + patience
        while not until():
            left = deadline - time.monotonic()
            assert left > 0, f"did not happen within {patience} s: {what}"
            self.turn(min(left, 0.05))

    def turn(self, timeout):
        """Takes what has come; a member that has got a Close frame leaves."""
        for key, _ in self.selector.select(timeout):
            self.read(key.data)

    def read(self, member):
        try:
            while data := member.sock.recv(1 << 18):
                if member.heard is None:
                    member.heard = time.perf_counter()
                member.buffer += data
                self.parse(member)
                if member.code is not None:
                    return self.drop(member)
                if len(data) < 1 << 18:
                    return
        except BlockingIOError:
            return
        except ConnectionResetError:
            pass
        member.ended = True
        self.drop(member)

    def parse(self, member):
        if not member.is_open:
            end = member.buffer.find(ANSWER_END)
            if end < 0:
                return
            if not member.buffer.startswith(b"HTTP/1.1 101 "):
                member.code = int(member.buffer[9:12])
                return
            del member.buffer[: end + 4]
            member.is_open = True
            # What is measured is the first byte behind the upgrade.
            if not member.buffer:
                member.heard = None
        at = 0
        while found := wire.parse_frame(member.buffer, at):
            at += len(found.raw)
            if found.opcode == wire.TEXT:
                member.texts.append(json.loads(found.payload))
            elif found.opcode == wire.BINARY:
                member.audio += len(found.payload)
            elif found.opcode == wire.PING:
                member.sock.send(wire.frame(wire.PONG, found.payload, mask=b"mask"))
            elif found.opcode == wire.CLOSE:
                member.code = found.code
        del member.buffer[:at]

    def all_open(self):
        return all(member.is_open for member in self.members.values())
