"""A slow reader stops the sender (docs/protocol.md section 1; docs/architecture.md: *Not reading is the backpressure*), and
memory stays bounded."""

import hashlib
import select
import socket
import threading

import pytest

from gatewaylab import PATIENCE
from gatewaylab.gateway import route
from gatewaylab.results import new_task
from gatewaylab.wire import BINARY, frame, plain_request

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


TCP_NOTSENT_LOWAT = 25
"""linux/tcp.h; Python's socket module does not have it."""

USUAL = 512 << 10
LITTLE = 16 << 10


def unsent_limit(gateway, peer):
    with gateway.socket_to(peer) as ours:
        return ours.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT)


def test_only_websockets_with_results_keep_little_unsent(results, lab, tmp_path):
    """What the kernel holds unsent cannot be taken back by STOP, so a WebSocket with results begins with little. Both
    sides of a relay, downloads of audio and plain files keep what streams need."""
    backend = lab.backend()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.bin").write_bytes(bytes(32 << 20))
    results.write("a.wav", bytes(32 << 20))
    routes = [route(backend=backend.url()), route("app", "/app/{file...}", files=str(tmp_path / "site"))]
    gateway, inbox = results.embedded(routes=routes, config={"server": {"memory_limit": "0"}}, output={"audio_wait": "0s"})

    client, peer = lab.pair(gateway, backend)
    assert unsent_limit(gateway, client.sock) == unsent_limit(gateway, peer.sock) == USUAL
    peer.say("a")
    assert client.read_frame().text == "a"
    assert unsent_limit(gateway, client.sock) == unsent_limit(gateway, peer.sock) == USUAL

    task = new_task()
    inbox.publish(task, text="t", audio_file="a.wav")
    for target in (f"/audio/{task}", "/app/a.bin"):
        reader = lab.client(gateway, receive_buffer=4096)
        reader.send(plain_request(target))
        assert reader.read_head().status == 200
        assert unsent_limit(gateway, reader.sock) == USUAL, f"{target} is on its way"

    waiter = results.wait(gateway, new_task(), receive_buffer=4096)
    assert unsent_limit(gateway, waiter.sock) == LITTLE
    slow = results.wait(gateway, task, receive_buffer=4096)
    assert slow.message()["audio_present"]
    assert unsent_limit(gateway, slow.sock) == LITTLE
    fast = results.wait(gateway, task)
    assert fast.message()["audio_present"]
    for _ in range(256):
        assert fast.message()["type"] == "audio_chunk"
        fast.read_message_frame()
    assert LITTLE < unsent_limit(gateway, fast.sock) <= USUAL, "it follows the rate at which the client takes bytes"
