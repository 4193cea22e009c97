"""The figures of result delivery, measured with the release binary and a real Redis: `tests/run figures`, or this file itself.

    python figures.py [early] [restart] [latency] [waiting] [slow] [stop] [leftover] [cuts] [cuts-growing]
                      [cuts-ingest]

All of them by default.

Counts are what they are; times and memory depend on the machine and on what else runs on it. The folder of the suite must be
installed (`tests/run interop` does that), and the binary built.
"""

import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import figures_speech
from gatewaylab.crowd import Crowd
from gatewaylab.results import PREFIX, OUTPUT, RedisServer, is_up, new_task, proportional_bytes
from gatewaylab.gateway import Gateway, route
from gatewaylab.wire import eventually

MIB = 1 << 20


class House:
    """A Redis, and a gateway on it that can be started again."""

    def __init__(self, folder, **output):
        self.folder, self.audio, self.count, self.output = folder, folder / "audio", 0, output
        self.audio.mkdir()
        (folder / "spool").mkdir()
        self.redis = RedisServer(folder / "redis")
        self.start()

    def start(self):
        self.count += 1
        config = {
            "route": [OUTPUT, route("ingest", "/ws/ingest/tts", serve="ingest")],
            "output": {"audio_root": str(self.audio), "spool": str(self.folder / "spool"), **self.output},
            "redis": {"url": self.redis.url},
            "log": {"level": "info"},
        }
        self.gateway = Gateway(self.folder / f"gateway{self.count}", config)
        is_up(self.gateway)

    def stop(self):
        self.gateway.process.kill()
        self.redis.stop()


def early(house, count=10_000):
    """Results that are published 0 to 500 ms before their client connects."""
    chance = random.Random(1)
    tasks = [new_task() for _ in range(count)]
    began = time.monotonic() + 0.1
    # A thousand tasks a second.
    events = []
    for number, task in enumerate(tasks):
        at = began + number / 1000
        events += [(at, number, "publish"), (at + chance.random() * 0.5, number, "connect")]
    members = []
    with house.redis.client() as worker, Crowd(house.gateway.port) as crowd:
        for at, number, what in sorted(events):
            while (left := at - time.monotonic()) > 0:
                crowd.turn(left)
            if what == "publish":
                worker.publish(PREFIX + tasks[number], json.dumps({"text": str(number)}))
            else:
                members.append((number, crowd.join(tasks[number])))
        crowd.run(lambda: not crowd.members, "all have left", patience=60)
    return count, delivered(members)


def delivered(members):
    return sum(member.contents == [str(number)] and member.code == 1000 for number, member in members)


def restart(house, count=10_000, rounds=10, how=signal.SIGTERM):
    """The same with the gateway restarted in between: publish, stop, start, connect; a tenth of the tasks each time."""
    good = 0
    for round in range(rounds):
        tasks = [new_task() for _ in range(count // rounds)]
        with house.redis.client() as worker:
            before = house.redis.kept()
            for number, task in enumerate(tasks):
                worker.publish(PREFIX + task, json.dumps({"text": str(number)}))
            if how == signal.SIGKILL:
                # What a killed process had not passed on yet is gone with it; that is a matter of a millisecond.
                eventually(lambda: house.redis.kept() == before + len(tasks), "Redis keeps them")
        house.gateway.signal(how)
        house.gateway.process.wait()
        house.start()
        with Crowd(house.gateway.port) as crowd:
            members = [(number, crowd.join(task)) for number, task in enumerate(tasks)]
            crowd.run(lambda: not crowd.members, "all have left", patience=60)
        good += delivered(members)
    return count, good


def latency(house, count=2000):
    """Seconds from sending `PUBLISH` to the first byte at the client, one task after another."""
    import socket

    samples = []
    publisher = socket.create_connection(("127.0.0.1", house.redis.port))
    publisher.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with Crowd(house.gateway.port) as crowd:
        members = [crowd.join(new_task()) for _ in range(count)]
        crowd.run(crowd.all_open, "all are connected")
        for member in members:
            member.sock.setblocking(True)
            message = f"PUBLISH {PREFIX}{member.task} {{\"text\":\"hello\"}}".split(" ", 2)
            command = b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part.encode()) for part in message)
            began = time.perf_counter()
            publisher.sendall(command)
            member.sock.recv(1)
            samples.append(time.perf_counter() - began)
            publisher.recv(64)
    publisher.close()
    samples.sort()
    return samples[count // 2], samples[count * 99 // 100], samples[-1]


def waiting(house, count=1000):
    """Memory of the process per waiting client, and its connections to Redis."""
    with Crowd(house.gateway.port) as crowd:
        # What the first ones make the process allocate is there for all of them.
        for _ in range(10):
            crowd.join(new_task())
        crowd.run(crowd.all_open, "all are connected")
        before = proportional_bytes(house.gateway.pid)
        for _ in range(count):
            crowd.join(new_task())
        crowd.run(crowd.all_open, "all are connected")
        eventually(lambda: house.gateway.metrics().total("waiting_clients") == count + 10, "all wait")
        return (proportional_bytes(house.gateway.pid) - before) / count, len(house.redis.gateways())


def slow(house, clients=10, size=200 * MIB):
    """How much the process grows while slow clients are sent a large file, and how many bytes they had by then."""
    with open(house.audio / "large", "wb") as file:
        file.truncate(size)
    task = new_task()
    with Crowd(house.gateway.port) as crowd:
        members = [crowd.join(task, receive_buffer=32 * 1024) for _ in range(clients)]
        crowd.run(crowd.all_open, "all are connected")
        before, most = house.gateway.resident_bytes(), 0
        with house.redis.client() as worker:
            worker.publish(PREFIX + task, json.dumps({"text": "t", "audio_file": "large"}))
        while crowd.members:
            crowd.turn(0.01)
            time.sleep(0.002)
            most = max(most, house.gateway.resident_bytes() - before)
        return most, sum(member.audio for member in members), clients * size


def main(wanted):
    wanted = wanted or ["early", "restart", "latency", "waiting", "slow", *figures_speech.SETTINGS]
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            house = House(pathlib.Path(folder), **figures_speech.SETTINGS.get(name, {}))
            try:
                report(name, house)
            finally:
                house.stop()


def report(name, house):
    if name == "early":
        count, good = early(house)
        print(f"published 0-500 ms before the client connects: {good} of {count} delivered")
    elif name == "restart":
        count, good = restart(house)
        print(f"the same, gateway restarted in between (TERM): {good} of {count} delivered")
        count, good = restart(house, how=signal.SIGKILL)
        print(f"the same, gateway killed in between (KILL):    {good} of {count} delivered")
    elif name == "latency":
        half, most, worst = (one * 1e6 for one in latency(house))
        print(f"PUBLISH to the first byte, 2,000 tasks:        p50 {half:.0f} us, p99 {most:.0f} us, worst {worst:.0f} us")
    elif name == "waiting":
        each, connections = waiting(house)
        print(f"1,000 waiting clients:                         {each:.0f} B of user space each (PSS), {connections} connections to Redis")
    elif name == "slow":
        most, got, whole = slow(house)
        print(f"a 200 MiB file to 10 slow clients:             the process grew by {most / 1024:.0f} KiB; {got} of {whole} bytes arrived")
    elif name in figures_speech.SETTINGS:
        figures_speech.report(name, house)
    else:
        sys.exit(f"figures.py: {name!r} is none of early, restart, latency, waiting, slow, {', '.join(figures_speech.SETTINGS)}")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    main(sys.argv[1:])
