"""A slow reader stops the sender (docs/protocol.md section 1; docs/architecture.md: *Not reading is the backpressure*), and
memory stays bounded."""

import hashlib
import select
import threading

import pytest

from gatewaylab import PATIENCE
from gatewaylab.wire import BINARY, frame

FRAME = frame(BINARY, bytes(range(256)) * 256)
ENOUGH = 192 << 20
"""More than all socket buffers between two ends ever hold: a sender of this much was not stopped."""


def fill(one):
    """Sends frames until nothing more is taken for a second; returns how many bytes were sent."""
    one.sock.setblocking(False)
    sent, out = 0, b""
    while sent < ENOUGH:
        out = out or FRAME
        try:
            count = one.sock.send(out)
        except BlockingIOError:
            if not select.select([], [one.sock], [], 1.0)[1]:
                one.sock.settimeout(PATIENCE)
                return sent, out
            continue
        sent, out = sent + count, out[count:]
    raise AssertionError(f"{sent} bytes went to a peer that never reads")


@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
def test_peer_that_never_reads_stops_the_sender_and_loses_nothing(way, lab, upwards):
    """A client or a backend that does not read stops the sender. When it reads at last, every byte arrives."""
    backend = lab.backend()
    gateway = way.to(backend)
    ends = lab.pair(gateway, backend)
    one, other = ends if upwards else reversed(ends)
    before = gateway.resident_bytes()
    sent, unsent = fill(one)
    grown = gateway.resident_bytes() - before
    assert grown < 2 << 20, f"{grown} bytes more for one stalled connection"

    sender = threading.Thread(target=one.send, args=(unsent,), daemon=True)
    sender.start()
    frames = (sent + len(unsent)) // len(FRAME)
    got, want = hashlib.sha256(), hashlib.sha256()
    for _ in range(frames):
        got.update(other.read(len(FRAME)))
        want.update(FRAME)
    sender.join(PATIENCE)
    assert got.digest() == want.digest()
    one.say("flowing again")
    assert other.read_frame().text == "flowing again"


def test_many_stalled_clients_cost_little_and_do_not_affect_others(lab):
    """20 stalled streams cost a bounded backlog each, and other connections go on."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    calm, calm_peer = lab.pair(gateway, backend)
    before = gateway.resident_bytes()
    peers = [lab.pair(gateway, backend)[1] for _ in range(20)]
    for peer in peers:
        fill_at_once(peer)
    for number in range(100):
        calm.say(f"{number}")
        assert calm_peer.read_frame().text == f"{number}"
    grown = gateway.resident_bytes() - before
    assert grown < 20 * (256 << 10), f"{grown} bytes more for 20 stalled connections"


def fill_at_once(one):
    """Sends frames, cut anywhere, until none is taken for a moment."""
    one.sock.setblocking(False)
    sent = 0
    while sent < ENOUGH:
        try:
            sent += one.sock.send(FRAME)
        except BlockingIOError:
            if not select.select([], [one.sock], [], 0.1)[1]:
                one.sock.settimeout(PATIENCE)
                return
    raise AssertionError(f"{sent} bytes went to a peer that never reads")


def test_one_stalled_direction_leaves_the_other_open(lab):
    """State is kept per direction: a client that does not read may still send."""
    backend = lab.backend()
    client, peer = lab.pair(lab.gateway(backend=backend.url()), backend)
    fill_at_once(peer)
    for number in range(50):
        client.say(f"up {number}")
        assert peer.read_frame().text == f"up {number}"
