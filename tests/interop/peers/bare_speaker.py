"""Sends audio as fast as its client reads, and acknowledges a message at once: the least that any server takes for STOP."""

import base64
import hashlib
import re
import select
import socket

TEXT = b'{"type":"audio_chunk","task_id":"00000000-0000-4000-8000-000000000000","chunk_id":0,"total_chunks":512}'
ACK = b'{"type":"control","action":"STOP_ACK"}'
CHUNK = 65536
FRAMES = b"".join([b"\x81", bytes([len(TEXT)]), TEXT, b"\x82\x7f", CHUNK.to_bytes(8, "big"), bytes(CHUNK)])
SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def speak(client):
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.recv(4096)
    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)[1]
    accept = base64.b64encode(hashlib.sha1(key + SUFFIX).digest())
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n"
    client.sendall(answer % accept)
    client.setblocking(False)
    at = 0
    while not (ready := select.select([client], [client], []))[0]:
        if ready[1]:
            at = (at + client.send(memoryview(FRAMES)[at:])) % len(FRAMES)
    client.recv(4096)
    client.setblocking(True)
    # A frame that has begun is finished.
    client.sendall((FRAMES[at:] if at else b"") + bytes([0x81, len(ACK)]) + ACK)
    client.close()


listener = socket.create_server(("127.0.0.1", 0))
print("listening on", listener.getsockname()[1], flush=True)
while True:
    try:
        speak(listener.accept()[0])
    except ConnectionError:
        pass
