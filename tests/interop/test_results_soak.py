"""A soak: tasks without end, two gateways on one Redis, and faults by chance: zero lost, zero twice, counted and printed.

Clients come before and after their results, go away in the middle and come again, to either gateway. Meanwhile Redis is killed and
started again, frozen, its clients are killed, and gateways are stopped or killed and started again. The workers are careful: a result
that had no subscriber, or no answer, is published again. Such a result may arrive twice; every other one arrives once.

Redis writes to disk here, so that its restart is an outage without loss. And nothing is killed (SIGKILL) before Redis has what was
published so far, which is what docs/protocol.md promises to survive. `SOAK_SECONDS` and `SOAK_SEED` choose another length and another chance.
"""

import collections
import json
import os
import queue
import random
import signal
import threading
import time

import pytest
import redis

from gatewaylab.crowd import Crowd
from gatewaylab.peers import pattern
from gatewaylab.results import PREFIX, is_up, new_task
from gatewaylab.wire import eventually

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
SEED = int(os.environ.get("SOAK_SEED", "1"))

TASKS_PER_SECOND = 60
AUDIO = 150_000
QUIET = {"log": {"level": "info"}}


class Task:
    """What one worker publishes and one client is to receive."""

    def __init__(self, chance):
        self.id = new_task()
        self.results = chance.choice([1, 1, 1, 2, 3, 5])
        self.has_audio = chance.random() < 0.2
        self.pause = chance.choice([0, 0, 0.01, 0.05])
        self.sent = collections.Counter()
        """How often each result may have been published."""
        self.published = 0
        self.story = []
        """What happened to the task and when, to find out why something is missing."""
        self.visits = 0
        self.member = None

    def note(self, what):
        self.story.append((time.monotonic(), what))

    def result(self, number):
        is_final = number == self.results - 1
        audio = {"audio_file": "a"} if self.has_audio and is_final else {}
        return json.dumps({"text": f"{number} of {self.id}", "final": is_final, **audio})

    def numbers(self, member):
        return [int(content.split(" of ")[0]) for content in member.contents]


class Soak:
    def __init__(self, results, seed):
        self.results = results
        self.chance = random.Random(seed)
        self.redis = results.redis(options=["--appendonly", "yes", "--appendfsync", "always"])
        self.gateways = [results.gateway(self.redis, config=QUIET) for _ in range(2)]
        self.ports = [gateway.port for gateway in self.gateways]
        self.work = queue.Queue()
        self.tasks, self.done = [], []
        self.faults = collections.Counter()
        self.may_publish = threading.Lock()
        self.is_over = threading.Event()
        self.trouble = []
        self.chronicle = []
        results.write("a", pattern(AUDIO))

    # the workers

    def worker(self):
        client = self.redis.client()
        while (task := self.work.get()) is not None:
            for number in range(task.results):
                while not self.publish(client, task, number):
                    time.sleep(0.01)
                time.sleep(task.pause)
        client.close()

    def publish(self, client, task, number):
        with self.may_publish:
            task.sent[number] += 1
            try:
                heard = client.publish(PREFIX + task.id, task.result(number))
            except redis.RedisError as trouble:
                task.note(f"publishing {number} failed: {trouble!r}")
                return False
            task.note(f"published {number}, heard by {heard}")
            if heard:
                task.published += 1
            else:
                task.sent[number] -= 1
            return heard > 0

    # the faults

    def faulty(self):
        chance = random.Random(self.chance.random())
        kinds = [self.kill_redis, self.freeze_redis, self.kill_clients, self.kill_clients, self.stop_gateway, self.kill_gateway]
        try:
            while not self.is_over.is_set():
                time.sleep(chance.random() * 0.4)
                fault = chance.choice(kinds)
                self.note(f"{fault.__name__} begins")
                fault(chance)
                self.faults[fault.__name__] += 1
                for gateway in self.gateways:
                    is_up(gateway)
                    self.note(f"{gateway.port} is up")
        except BaseException as trouble:
            self.trouble.append(trouble)
            raise

    def note(self, what):
        self.chronicle.append((time.monotonic(), what))

    def story_of(self, task_id):
        """What happened to a task, and what else happened meanwhile."""
        (task,) = [task for task in self.tasks if task.id == task_id]
        first, last = task.story[0][0] - 0.5, task.story[-1][0]
        lines = sorted(task.story + [(at, "    " + what) for at, what in self.chronicle if first < at < last])
        return "\n".join(f"{at - first:8.4f} {what}" for at, what in lines)

    def all_is_kept(self):
        """Everything that was published is in Redis, and nothing is published meanwhile: the lock is held."""
        recent = self.tasks[-5 * TASKS_PER_SECOND :]

        def kept():
            with self.redis.client() as client, client.pipeline(transaction=False) as pipeline:
                for task in recent:
                    pipeline.hlen(f"task_response_kept:{task.id}")
                return all(had - 1 >= task.published for had, task in zip(pipeline.execute(), recent) if task.published)

        eventually(kept, "Redis keeps what was published")

    def kill_redis(self, _):
        with self.may_publish:
            self.all_is_kept()
            self.redis.restart()

    def freeze_redis(self, chance):
        self.redis.freeze()
        time.sleep(chance.random() * 0.4)
        self.redis.thaw()

    def kill_clients(self, chance):
        """One gateway loses one of its connections to Redis; the other gateway keeps its own."""
        with self.redis.client() as client:
            client.client_kill_filter(_id=chance.choice(self.redis.gateways())["id"])

    def stop_gateway(self, chance):
        self.replace(chance.randrange(2), signal.SIGTERM)

    def kill_gateway(self, chance):
        with self.may_publish:
            self.all_is_kept()
            place = chance.randrange(2)
            old = self.gateways[place]
            old.may_end = True
            old.process.kill()
        self.start(place)

    def replace(self, place, number):
        old = self.gateways[place]
        old.may_end = True
        old.signal(number)
        assert old.process.wait() == 0
        self.start(place)

    def start(self, place):
        self.gateways[place] = self.results.gateway(self.redis, config=QUIET, ready=False)
        self.ports[place] = self.gateways[place].port

    # the clients

    def run(self):
        threads = [threading.Thread(target=self.worker) for _ in range(4)] + [threading.Thread(target=self.faulty)]
        for thread in threads:
            thread.start()
        self.lost, self.twice, self.wrong, self.resets = [], [], [], 0
        try:
            with Crowd(None) as crowd:
                self.crowd = crowd
                self.serve()
        finally:
            self.is_over.set()
            for _ in range(4):
                self.work.put(None)
            for thread in threads:
                thread.join()
        assert not self.trouble, self.trouble

    def serve(self):
        began = time.monotonic()
        self.waiting = []
        open_tasks = set()
        while (now := time.monotonic()) < began + SECONDS or open_tasks:
            if now < began + SECONDS:
                while len(self.tasks) < (now - began) * TASKS_PER_SECOND:
                    task = Task(self.chance)
                    self.tasks.append(task)
                    open_tasks.add(task)
                    self.work.put(task)
                    # Some come before their results, others well after.
                    self.waiting.append((now + self.chance.choice([0, 0, 0.05, 0.3, 1.0]), task))
            else:
                self.is_over.set()
            assert now < began + SECONDS + 30, f"{len(open_tasks)} tasks are not done"
            for at, task in [one for one in self.waiting if one[0] <= now]:
                self.waiting.remove((at, task))
                self.visit(task, now)
            self.crowd.turn(0.01)
            for task in list(open_tasks):
                if self.look_at(task, now):
                    open_tasks.discard(task)

    def visit(self, task, now):
        task.visits += 1
        port = self.chance.choice(self.ports)
        task.note(f"a client comes to {port}")
        try:
            task.member = self.crowd.join(task.id, port=port)
        except OSError:
            self.waiting.append((now + 0.05, task))

    def look_at(self, task, now):
        """Whether the task has come to its end; a connection that ended before is made again."""
        member = task.member
        if member is None:
            return False
        numbers = task.numbers(member)
        if member.code == 1000:
            self.judge(task, member, numbers)
            return True
        if member.code is not None or member.ended:
            if member.code not in (None, 1012, 503):
                self.wrong.append((task.id, member.code, member.texts))
            task.note(f"its connection ended with {member.code} after {numbers}")
            task.member = None
            self.waiting.append((now + 0.05, task))
        elif len(numbers) > 1 and task.visits < 3 and self.chance.random() < 0.3:
            self.resets += 1
            self.crowd.drop(member, rudely=True)
            task.note(f"its client left after {numbers}")
            task.member = None
            self.waiting.append((now + self.chance.random() * 0.2, task))
        return False

    def judge(self, task, member, numbers):
        """Everything arrived, in order, and nothing more often than it was published."""
        task.note(f"its client was delivered {numbers}")
        had = collections.Counter(numbers)
        self.lost += [(task.id, number) for number in range(task.results) if not had[number]]
        self.twice += [(task.id, number) for number in had if had[number] > max(1, task.sent[number])]
        if numbers != sorted(numbers) or member.audio != (AUDIO if task.has_audio else 0):
            self.wrong.append((task.id, numbers, member.audio))
        self.done.append(task)


@pytest.mark.timeout(SECONDS + 60)
def test_nothing_is_lost_and_nothing_comes_twice(results, capsys):
    """Nothing is lost (docs/protocol.md section 2), with all faults at once."""
    soak = Soak(results, SEED)
    soak.run()
    count = sum(task.results for task in soak.done)
    again = sum(task.visits - 1 for task in soak.done)
    with capsys.disabled():
        faults = ", ".join(f"{name} {number}" for name, number in sorted(soak.faults.items()))
        print(
            f"\nsoak: {SECONDS:.0f} s, seed {SEED}: {len(soak.done)} tasks, {count} results, {again} visits more, {soak.resets} resets by clients;"
            f" faults: {faults}; lost {len(soak.lost)}, twice {len(soak.twice)}, wrong {len(soak.wrong)}"
        )
    for task_id in {one[0] for one in soak.lost + soak.twice + soak.wrong}:
        print(f"---- {task_id}\n{soak.story_of(task_id)}")
    assert len(soak.done) == len(soak.tasks) and soak.faults.total() > SECONDS / 4
    assert (soak.lost, soak.twice, soak.wrong) == ([], [], [])
