"""docs/protocol.md section 1, frames: what arrives is what was sent, byte for byte.

Both ends are raw sockets, so masks, reserved bits, fragments and order are compared as they stood on the wire.
"""

import hashlib
import random
import threading

import pytest

from gatewaylab import PATIENCE, wire
from gatewaylab.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

pytestmark = pytest.mark.transparent

SIZES = [0, 1, 125, 126, 127, 65535, 65536, 65537, 1_000_003]


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_every_length_form_are_relayed_unchanged(way, lab, size):
    """Frames pass both ways byte for byte: masked from the client, unmasked to it, in each form of length and at its borders."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    payload = random.Random(size).randbytes(size)

    sent = frame(BINARY, payload, mask=b"\xa5\x00\xff\x3c")
    in_background(client.send, sent)
    assert peer.read(len(sent)) == sent

    sent = frame(BINARY, payload)
    in_background(peer.send, sent)
    assert client.read(len(sent)) == sent


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG])
@pytest.mark.parametrize("rsv", [0, 4, 2, 1])
def test_opcodes_and_reserved_bits_are_kept(way, lab, opcode, rsv):
    """Text, binary, ping, pong, close, fragments, masks, RSV bits and order are kept."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)

    sent = client.frame(opcode, b"payload \xf0\x9f\x8c\xb8", rsv=rsv)
    assert peer.read_frame().raw == sent
    sent = peer.frame(opcode, b"payload \xf0\x9f\x8c\xb8", rsv=rsv)
    assert client.read_frame().raw == sent


def test_all_zero_mask_is_kept(way, lab):
    """Masks are kept, also the one that changes nothing."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    sent = client.frame(TEXT, "plain", mask=b"\0\0\0\0")
    assert peer.read_frame().raw == sent


def test_fragments_and_control_frames_keep_their_order(way, lab):
    """Fragments and order are kept: a ping, a pong and an empty fragment inside a message stay in place."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)

    for one, other in [(client, peer), (peer, client)]:
        sent = [
            one.frame(TEXT, "first ", fin=False),
            one.frame(PING, b"between"),
            one.frame(CONTINUATION, "", fin=False),
            one.frame(PONG, b"unasked"),
            one.frame(CONTINUATION, "second ", fin=False),
            one.frame(CONTINUATION, "last", fin=True),
            one.frame(BINARY, b"next"),
        ]
        assert [other.read_frame().raw for _ in sent] == sent


def test_pings_and_pongs_are_relayed_with_their_payloads(way, lab):
    """Pings and pongs pass: the gateway answers none in place of an end."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)

    client.frame(PING, b"\x00\x01 are you there?")
    asked = peer.read_frame()
    assert (asked.opcode, asked.payload) == (PING, b"\x00\x01 are you there?")
    peer.frame(PONG, asked.payload)
    peer.frame(PING, b"x" * 125)
    assert client.read_frame().payload == asked.payload
    asked = client.read_frame()
    assert (asked.opcode, asked.payload) == (PING, b"x" * 125)
    client.frame(PONG, asked.payload)
    answer = peer.read_frame()
    assert (answer.opcode, answer.payload) == (PONG, b"x" * 125)


def test_bytes_behind_the_request_head_are_not_lost(way, lab):
    """A client sends before it is answered: no byte behind the request head is lost."""
    backend = lab.backend()
    early = frame(TEXT, "too eager", mask=b"abcd") + frame(BINARY, bytes(10_000), mask=b"efgh")
    client = lab.client(way.to(backend))
    client.upgrade(behind=early)
    peer = backend.accept_upgraded()
    assert peer.read(len(early)) == early
    client.read_switch()
    later = client.say("and then")
    assert peer.read(len(later)) == later


def test_half_a_frame_behind_the_request_head_is_not_lost(way, lab):
    """The frame behind the request head is cut anywhere, in its head too: no byte is lost."""
    whole = frame(TEXT, "cut", mask=b"abcd")
    for cut in (1, 3, len(whole) - 1):
        backend = lab.backend()
        client = lab.client(way.to(backend))
        client.upgrade(behind=whole[:cut])
        peer = backend.accept_upgraded()
        client.read_switch()
        client.send(whole[cut:])
        assert peer.read(len(whole)) == whole


def test_bytes_behind_the_101_are_not_lost(way, lab):
    """A backend greets in the segment of its 101: no byte behind the head is lost."""
    backend = lab.backend()
    greeting = frame(TEXT, "welcome") + frame(BINARY, bytes(20_000)) + frame(PING, b"?")
    client = lab.client(way.to(backend))
    client.upgrade()
    backend.accept_upgraded(behind=greeting)
    client.read_switch()
    assert client.read(len(greeting)) == greeting


def test_backend_that_sends_and_closes_right_after_the_101(way, lab):
    """Behind the 101, in one segment: frames, a Close frame, and FIN."""
    backend = lab.backend()
    client = lab.client(way.to(backend))
    client.upgrade()
    peer = backend.accept()
    peer.read_upgrade()
    peer.switch(behind=frame(TEXT, "bye") + frame(CLOSE, wire.close_payload(4321, "that was all")))
    peer.half_close()
    client.read_switch()
    assert client.read_frame().text == "bye"
    closed = client.read_close()
    assert (closed.code, closed.reason) == (4321, "that was all")
    client.expect_end()


def test_one_byte_at_a_time(way, lab):
    """Heads and frames that arrive byte by byte are the same heads and frames."""
    backend = lab.backend()
    client = lab.client(way.to(backend))
    request, client.key = wire.upgrade_request("/ws/input?slow=1")
    client.send_bytewise(request)
    peer = backend.accept()
    peer.read_upgrade()
    assert peer.head.target == "/ws/input?slow=1"
    peer.send_bytewise(wire.switching(peer.head) + frame(TEXT, "drop by drop"))
    client.read_switch()
    assert client.read_frame().text == "drop by drop"

    up = frame(TEXT, "one", mask=b"1234") + frame(BINARY, bytes(300), mask=b"5678") + frame(PING, b"p", mask=b"9012")
    client.send_bytewise(up)
    assert peer.read(len(up)) == up


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_long_random_conversation_is_byte_exact_both_ways_at_once(way, lab, seed):
    """6 MiB of seeded frames each way, of all kinds, cut at random places, arrive byte for byte."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    up, down = random_frames(seed, masked=True), random_frames(seed + 100, masked=False)

    digests = []
    senders = [in_background(send_in_pieces, client, up, seed), in_background(send_in_pieces, peer, down, seed)]
    reader = in_background(lambda: digests.append(digest(client.read(len(down)))))
    assert digest(peer.read(len(up))) == digest(up)
    for thread in [*senders, reader]:
        thread.join(PATIENCE)
    assert digests == [digest(down)]


def random_frames(seed, masked, total=6 << 20):
    chance, out, size = random.Random(seed), [], 0
    while size < total:
        length = chance.choice([0, 1, 20, 125, 126, 1000, 4096, 65535, 65536, chance.randrange(300_000)])
        opcode = chance.choice([TEXT, BINARY, CONTINUATION, PING, PONG])
        control = opcode in (PING, PONG)
        payload = chance.randbytes(min(length, 125) if control else length)
        mask = chance.randbytes(4) if masked else None
        out.append(frame(opcode, payload, fin=control or chance.random() < 0.7, rsv=chance.choice([0, 0, 4]), mask=mask))
        size += len(out[-1])
    return b"".join(out)


def send_in_pieces(one, data, seed):
    chance, at = random.Random(-seed), 0
    while at < len(data):
        size = chance.choice([1, 2, 7, 100, 1460, 65536, 200_000])
        one.send(data[at : at + size])
        at += size


def digest(data):
    return hashlib.sha256(data).hexdigest()


def in_background(work, *args):
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    return thread
