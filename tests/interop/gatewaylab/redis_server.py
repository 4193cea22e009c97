"""A `redis-server` of a test's own, on a port of its own, that keeps nothing when it ends."""

import redis

from .process import Process
from .wire import closed_port


class RedisServer:
    def __init__(self, folder, options=()):
        self.port = closed_port()
        command = ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder, *options]
        self.process = Process(command)
        self.process.wait_for_line("Ready to accept connections")

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def client(self):
        return redis.Redis(port=self.port, decode_responses=True)

    def stop(self):
        self.process.kill()
