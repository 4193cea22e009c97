"""Relays between other people's libraries (docs/protocol.md section 1): `websockets` (PyPI) and `ws` (npm), each as client and as
backend."""

import json
import re

import pytest

from gatewaylab.peers import Closed, Message, Pong, pattern

pytestmark = pytest.mark.transparent

SIZES = [0, 1, 125, 126, 65535, 65536, 65537, 1_000_003, 20 << 20]

LEGAL_CODES = [1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]


@pytest.fixture
def url(way, library_backend):
    return f"ws://127.0.0.1:{way.to(library_backend).port}/ws/input"


@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
def test_messages_of_every_size_come_back(url, open_client, deflate):
    """Text and binary messages of 0 B to 20 MiB, with and without permessage-deflate."""
    client = open_client(url, deflate=deflate)
    for size in SIZES:
        client.send(pattern(size))
        assert client.receive() == Message.of(pattern(size))
    text = "すべての言葉 " * 5000
    client.send(text)
    assert client.receive() == Message.of(text)
    client.send("")
    assert client.receive() == Message.of("")


def test_permessage_deflate_is_negotiated_end_to_end(url, open_client):
    """Subprotocol and permessage-deflate are negotiated end to end."""
    compressed = open_client(url, deflate=True)
    assert "permessage-deflate" in compressed.extensions
    plain = open_client(url, deflate=False)
    assert plain.extensions == ""


@pytest.mark.parametrize("offered, agreed", [(["chat.v2", "chat.v1"], "chat.v2"), (["chat.v1"], "chat.v1"), ([], "")])
def test_subprotocol_is_negotiated_end_to_end(url, open_client, offered, agreed):
    """The backend chooses the subprotocol, and the client gets its choice."""
    assert open_client(url, protocols=offered).protocol == agreed


def test_fragments_are_put_together_by_the_other_end(url, open_client):
    """Fragments arrive as fragments, in both directions."""
    client = open_client(url)
    client.send_fragments(["pieces ", "of ", "one ", "message"])
    assert client.receive() == Message.of("pieces of one message")
    client.send("!fragments 20")
    assert client.receive() == Message.of("".join(f"part{number}." for number in range(20)))


def test_pings_are_answered_by_the_other_end(url, open_client):
    """The client's ping and the backend's each get their pong."""
    client = open_client(url)
    assert client.ping("from the client") == Pong("from the client")
    client.send("!ping from-the-backend")
    assert client.receive() == Message.of("ponged from-the-backend")


@pytest.mark.parametrize("code", LEGAL_CODES)
def test_backend_closes_with_any_legal_code(url, open_client, code):
    """A close by the backend reaches the client with its code and reason."""
    client = open_client(url)
    client.send(f"!close {code} because of {code}, さようなら")
    assert client.receive() == Closed(code, f"because of {code}, さようなら")


@pytest.mark.parametrize("code", LEGAL_CODES)
def test_client_closes_with_any_legal_code(url, open_client, library_backend, code, request):
    """A close by the client reaches the backend with its code and reason."""
    tag = re.sub(r"\W", "-", request.node.name)
    client = open_client(f"{url}?{tag}")
    client.close(code, f"leaving with {code}")
    assert library_backend.wait_for_end(tag) == Closed(code, f"leaving with {code}")


def test_backend_sees_the_clients_own_request(url, open_client):
    """Cookies, authorization, origin and query reach the backend unchanged."""
    client = open_client(
        f"{url}?token=a%2Fb&x=1&x=2",
        headers={"Cookie": "session=abc; theme=dark", "Authorization": "Bearer t.o.k"},
        origin="https://app.example",
    )
    client.send("!head")
    want = {"cookie": "session=abc; theme=dark", "authorization": "Bearer t.o.k", "origin": "https://app.example"}
    got = json.loads(client.receive().text)
    assert got["target"] == "/ws/input?token=a%2Fb&x=1&x=2"
    headers = {name.lower(): value for name, value in got["headers"]}
    assert {name: headers.get(name) for name in want} == want
