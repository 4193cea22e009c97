"""The embedded inbox (`embedded://`): a worker's `redis.publish(...)` and `redis-cli` work unchanged. It takes results and is no
Redis: any other command gets a clear `-ERR`."""

import json
import os
import signal
import subprocess
import sys

import pytest
import redis

from gatewaylab import PATIENCE, PEERS
from gatewaylab.peers import node_env, pattern
from gatewaylab.results import PREFIX, new_task, status
from gatewaylab.wire import connect, eventually

MIB = 1 << 20


@pytest.fixture
def inbox_gateway(results):
    gateway, inbox = results.embedded()
    return results, gateway, inbox


def delivered(waiter, content):
    assert waiter.result().content == content
    waiter.done()


def test_no_redis_is_needed(inbox_gateway):
    """Without a Redis server: a result before its client and one after it, text and audio."""
    results, gateway, inbox = inbox_gateway
    assert gateway.get("/health").json()["redis"] == "embedded"
    assert gateway.get("/health").json()["status"] == "ok"
    results.write("a", pattern(200_000))
    early = new_task()
    assert inbox.publish(early, text="early", audio_file="a") == 1
    assert status(gateway, early) == {"task_id": early, "status": "ready", "connected": False}
    waiter = results.wait(gateway, early)
    assert waiter.result().audio == pattern(200_000)
    waiter.done()
    live = new_task()
    waiter = results.wait(gateway, live)
    assert status(gateway, live) == {"task_id": live, "status": "waiting", "connected": True}
    inbox.publish(live, text="one", final=False)
    inbox.publish(live.upper(), text="two")
    assert waiter.result().content == "one"
    delivered(waiter, "two")


@pytest.mark.parametrize("protocol", [None, 2, 3])
def test_redis_py_works_with_its_defaults(inbox_gateway, protocol):
    """redis-py with its defaults, and with either protocol: `publish`, `ping`, `echo`, a password that is not needed, a
    pipeline."""
    results, gateway, inbox = inbox_gateway
    options = {} if protocol is None else {"protocol": protocol}
    task = new_task()
    with inbox.client(**options) as worker:
        assert worker.ping() is True
        assert worker.echo("hello") in (b"hello", "hello")
        assert worker.publish(PREFIX + task, json.dumps({"text": "one", "final": False})) == 1
        assert worker.publish("unrelated", "x") == 0
        with pytest.raises(redis.ResponseError, match="unknown command 'GET'.*PUBLISH"):
            worker.get("a")
        with pytest.raises(redis.ResponseError, match="only channels and patterns that begin with task_control:"):
            worker.execute_command("SUBSCRIBE", "a")
        assert worker.client_id() > 0
        worker.client_setname("worker")
        with worker.pipeline(transaction=False) as pipeline:
            for number in range(100):
                pipeline.publish(PREFIX + task, json.dumps({"text": str(number), "final": number == 99}))
            assert pipeline.execute() == [1] * 100
    with redis.Redis(host="127.0.0.1", port=inbox.port, username="user", password="word", db=7, **options) as worker:
        assert worker.ping() is True
    waiter = results.wait(gateway, task)
    assert [waiter.result().content for _ in range(101)] == ["one", *map(str, range(100))]
    waiter.done()


def test_redis_py_by_url_and_asyncio(inbox_gateway):
    """Two other ways in which workers use redis-py: `from_url` and `redis.asyncio`."""
    results, gateway, inbox = inbox_gateway
    task = new_task()
    with redis.from_url(f"redis://127.0.0.1:{inbox.port}/0", decode_responses=True) as worker:
        assert worker.publish(PREFIX + task, json.dumps({"text": "url", "final": False})) == 1
    script = f"""
import asyncio, json, redis.asyncio
async def main():
    worker = redis.asyncio.Redis(host="127.0.0.1", port={inbox.port})
    assert await worker.publish({PREFIX + task!r}, json.dumps({{"text": "asyncio"}})) == 1
    await worker.aclose()
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)
    waiter = results.wait(gateway, task)
    assert waiter.result().content == "url"
    delivered(waiter, "asyncio")


def test_ioredis_works_with_its_defaults(inbox_gateway):
    """ioredis with its defaults (it sends `INFO` first)."""
    results, gateway, inbox = inbox_gateway
    task = new_task()
    messages = [json.dumps({"text": "声", "final": False}), json.dumps({"text": "end"})]
    done = subprocess.run(
        ["node", PEERS / "ioredis_publish.js", str(inbox.port), PREFIX + task, *messages],
        env=node_env(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[:3] == [1, 1, "PONG"]
    assert "unknown command" in answers[3]
    waiter = results.wait(gateway, task)
    assert waiter.result().content == "声"
    delivered(waiter, "end")


COREDIS = """
import asyncio, coredis, sys

async def main(port, channel, *messages):
    worker = coredis.Redis(host="127.0.0.1", port=int(port))
    async with worker:
        assert await worker.ping() == b"PONG"
        assert await worker.publish(channel, messages[0]) == 1
        async with worker.pipeline(transaction=True) as pipeline:
            answers = [pipeline.publish(channel, message) for message in messages[1:]]
        assert [await answer for answer in answers] == [1] * len(answers)

asyncio.run(main(*sys.argv[1:]))
"""


def test_coredis_works_with_its_defaults(inbox_gateway):
    """coredis, which needs `id` in the answer to `HELLO`; single commands, and a transaction."""
    results, gateway, inbox = inbox_gateway
    task = new_task()
    messages = [json.dumps({"text": text, "final": text == "c"}) for text in "abc"]
    command = [sys.executable, "-c", COREDIS, str(inbox.port), PREFIX + task, *messages]
    subprocess.run(command, check=True, timeout=PATIENCE)
    waiter = results.wait(gateway, task)
    assert [waiter.result().content for _ in "abc"] == ["a", "b", "c"]
    waiter.done()


def test_transactions_publish_as_a_whole_or_not_at_all(inbox_gateway):
    """Commands between `MULTI` and `EXEC` take effect together, or not at all if one of them is refused."""
    results, gateway, inbox = inbox_gateway
    task = new_task()
    with inbox.client() as worker:
        with worker.pipeline(transaction=True) as pipeline:
            pipeline.publish(PREFIX + task, json.dumps({"text": "a", "final": False}))
            pipeline.set("a", "b")
            with pytest.raises(redis.ResponseError):
                pipeline.execute()
        with worker.pipeline(transaction=True) as pipeline:
            pipeline.publish(PREFIX + task, json.dumps({"text": "b"}))
            assert pipeline.execute() == [1]
    delivered(results.wait(gateway, task), "b")


def test_one_worker_too_many_gets_an_error(inbox_gateway):
    """The 1,001st worker gets Redis' own error; once one has left, there is room again."""
    _, _, inbox = inbox_gateway
    crowd = [connect(inbox.port) for _ in range(1000)]
    for worker in crowd:
        worker.send(b"PING\r\n")
        assert worker.read(7) == b"+PONG\r\n"
    one_more = connect(inbox.port)
    assert one_more.read_to_end() == b"-ERR max number of clients reached\r\n"
    one_more.vanish()
    crowd.pop().vanish()

    def has_room():
        worker = connect(inbox.port)
        worker.send(b"PING\r\n")
        answer = worker.read(1)
        worker.vanish()
        return answer == b"+"

    eventually(has_room, "there is room again")
    for worker in crowd:
        worker.vanish()


@pytest.mark.parametrize("options", [[], ["-3"], ["--no-auth-warning", "-a", "word"], ["--user", "u", "--pass", "p"], ["-n", "5"]])
def test_redis_cli_works_with_one_command(inbox_gateway, options):
    """redis-cli with a command as its arguments."""
    results, gateway, inbox = inbox_gateway
    task = new_task()
    cli = ["redis-cli", "-p", str(inbox.port), *options]
    done = subprocess.run([*cli, "PUBLISH", PREFIX + task, '{"text":"by hand"}'], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.split()[-1] == "1", done
    delivered(results.wait(gateway, task), "by hand")
    done = subprocess.run([*cli, "SET", "a", "b"], capture_output=True, text=True, timeout=PATIENCE)
    assert "ERR unknown command 'SET': this is the result inbox of aivtuber-gateway" in done.stdout + done.stderr


def test_redis_cli_reads_commands_from_its_input(inbox_gateway):
    """redis-cli with commands on standard input: several of them, quotes, an error in between, `QUIT`."""
    results, gateway, inbox = inbox_gateway
    task = new_task()
    typed = f"""PING
PUBLISH {PREFIX}{task} '{{"text":"a b","final":false}}'
NONSENSE
HELLO 3
PUBLISH {PREFIX}{task} "{{\\"text\\":\\"c\\"}}"
QUIT
"""
    done = subprocess.run(
        ["redis-cli", "-p", str(inbox.port)], input=typed, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.splitlines()[0] == "PONG"
    assert "unknown command 'NONSENSE'" in done.stdout
    waiter = results.wait(gateway, task)
    assert waiter.result().content == "a b"
    delivered(waiter, "c")


def exchange(inbox, sent, end=True):
    """What a raw connection is answered, up to its end."""
    client = connect(inbox.port)
    client.send(sent)
    if end:
        client.half_close()
    answer = client.read_to_end()
    client.vanish()
    return answer


ANSWERS = {
    b"PING\r\n": b"+PONG\r\n",
    b"ping hello\r\n": b"$5\r\nhello\r\n",
    b"*1\r\n$4\r\nPING\r\n": b"+PONG\r\n",
    b"*2\r\n$4\r\nECHO\r\n$4\r\na\r\nb\r\n": b"$4\r\na\r\nb\r\n",
    b"\r\n\r\nPING\r\n": b"+PONG\r\n",
    b"*0\r\nPING\r\n": b"+PONG\r\n",
    b"AUTH a\r\nAUTH a b\r\nSELECT 3\r\n": b"+OK\r\n" * 3,
    b"CLIENT SETNAME x\r\nCLIENT GETNAME\r\n": b"+OK\r\n$-1\r\n",
    b"PUBLISH a\r\n": b"-ERR wrong number of arguments for 'publish' command\r\n",
    b"PUBLISH a b c\r\n": b"-ERR wrong number of arguments for 'publish' command\r\n",
    b"HELLO 4\r\n": b"-NOPROTO unsupported protocol version\r\n",
    b"QUIT\r\nPING\r\n": b"+OK\r\n",
}


def test_commands_are_answered_in_order(inbox_gateway):
    """`PUBLISH`, `PING`, `ECHO`, `AUTH`, `HELLO`, `SELECT`, `CLIENT ...` and `QUIT`."""
    _, _, inbox = inbox_gateway
    for sent, answer in ANSWERS.items():
        assert exchange(inbox, sent) == answer, sent
    client = connect(inbox.port)
    for sent, answer in ANSWERS.items():
        if b"QUIT" not in sent:
            client.send_bytewise(sent)
            assert client.read(len(answer)) == answer, sent
    client.vanish()


def test_other_commands_get_a_clear_error(inbox_gateway):
    """Any other command gets a clear `-ERR`, and the connection stays open."""
    _, _, inbox = inbox_gateway
    for command in ["GET a", "SET a b", "SSUBSCRIBE a", "WATCH a", "EVAL x 0", "CONFIG GET dir", "SHUTDOWN", "FLUSHALL", "DEBUG SLEEP 1", "MONITOR"]:
        answer = exchange(inbox, f"{command}\r\nPING\r\n".encode())
        assert answer.startswith(f"-ERR unknown command '{command.split()[0]}'".encode()), answer
        assert answer.endswith(b"\r\n+PONG\r\n")
        assert answer.count(b"\r\n") == 2


def test_command_name_cannot_forge_a_reply(inbox_gateway):
    """Whatever bytes a command's name contains, its answer is one line."""
    _, _, inbox = inbox_gateway
    name = b"x\r\n+OK\r\n$3\r\nabc\r\n" + bytes(range(256)) * 10
    answer = exchange(inbox, b"*1\r\n$%d\r\n%s\r\nPING\r\n" % (len(name), name))
    assert answer.startswith(b"-ERR unknown command") and answer.endswith(b"\r\n+PONG\r\n")
    assert answer.count(b"\r\n") == 2 and len(answer) < 400


HOSTILE = {
    "a web page": (b"POST / HTTP/1.1\r\nHost: a\r\n\r\nPUBLISH task_response:x y\r\n", b"not an HTTP server"),
    "a web page's header": (b"Host: a\r\n\r\n", b"not an HTTP server"),
    "too many arguments": (b"*1048577\r\n", b"invalid multibulk length"),
    "arguments without end": (b"*99999999999999999999\r\n", b"invalid multibulk length"),
    "a huge argument": (b"*1\r\n$999999999999\r\n", b"invalid bulk length"),
    "a negative argument": (b"*1\r\n$-5\r\n", b"invalid bulk length"),
    "no dollar": (b"*1\r\nPING\r\n", b"expected '$'"),
    "longer than said": (b"*1\r\n$4\r\nPINGPONG\r\n", b""),
    "no quote": (b'PUBLISH "a\r\n', b""),
    "a line without end": (b"x" * 100_000, b""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_input_ends_the_connection_with_an_error(inbox_gateway, case):
    """A client that does not speak the protocol gets an error and is closed; others are not affected."""
    results, gateway, inbox = inbox_gateway
    sent, words = HOSTILE[case]
    client = connect(inbox.port)
    client.send(sent)
    answer = client.read_to_end()
    assert answer.startswith(b"-ERR Protocol error: ") and words in answer, answer
    client.vanish()
    task = new_task()
    assert inbox.publish(task, text="fine") == 1
    delivered(results.wait(gateway, task), "fine")


def test_random_input_does_no_harm(inbox_gateway):
    """Seeded nonsense, close to the protocol and far from it: the gateway survives, and none of it becomes a result."""
    import random

    results, gateway, inbox = inbox_gateway
    chance = random.Random(3)
    words = [b"*1", b"*3", b"$7", b"$0", b"\r\n", b"PUBLISH", b"task_response:", b"\0", b"\xff", b"$-1", b"*-1", b"9" * 30, b"\n", b'"', b"HELLO 3"]
    for _ in range(300):
        client = connect(inbox.port)
        try:
            client.send(b"".join(chance.choices(words, k=chance.randrange(1, 40))))
            if chance.random() < 0.5:
                client.half_close()
                client.read_to_end()
            else:
                client.reset()
        except OSError:
            pass
        client.vanish()
    task = new_task()
    inbox.publish(task, text="fine")
    delivered(results.wait(gateway, task), "fine")


def test_large_result_and_one_that_is_too_large(inbox_gateway):
    """A result of some megabytes is delivered; an endless one is refused before all of it has arrived."""
    results, gateway, inbox = inbox_gateway
    task = new_task()
    waiter = results.wait(gateway, task)
    assert inbox.publish(task, text="x" * (15 * MIB)) == 1
    assert len(waiter.result().content) == 15 * MIB
    waiter.done()
    client = connect(inbox.port)
    client.send(b"*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$%d\r\n" % (17 * MIB))
    assert b"invalid bulk length" in client.read_to_end()
    client.vanish()


def test_worker_that_never_reads(inbox_gateway):
    """A worker that does not read its answers is not read from. It costs little, and others notice nothing."""
    results, gateway, inbox = inbox_gateway
    before = gateway.resident_bytes()
    client = connect(inbox.port, receive_buffer=4096)
    client.sock.settimeout(1)
    sent = 0
    try:
        while sent < 64 * MIB:
            sent += client.sock.send(b"HELLO\r\n" * 10_000)
    except TimeoutError:
        pass
    assert sent < 64 * MIB, "it was read from without end"
    assert gateway.resident_bytes() - before < 4 * MIB
    task = new_task()
    inbox.publish(task, text="fine")
    delivered(results.wait(gateway, task), "fine")
    client.reset()


def test_worker_that_always_leaves_some_answers_unread(inbox_gateway):
    """Answers that a worker has read are not held any longer, even if there are always some that it has not read."""
    results, gateway, inbox = inbox_gateway
    client = connect(inbox.port, receive_buffer=4096)
    command = b"*2\r\n$4\r\nECHO\r\n$10000\r\n" + b"x" * 10_000 + b"\r\n"
    answer = len(b"$10000\r\n\r\n") + 10_000
    ahead = 0
    for _ in range(300):
        client.send(command)
        ahead += 1
    client.read(100 * answer)
    before = gateway.resident_bytes()
    for _ in range(5000):
        client.send(command)
        client.read(answer)
    assert gateway.resident_bytes() - before < 4 * MIB
    client.reset()


def test_workers_that_come_and_go(inbox_gateway):
    """A thousand connections, half of them ended in the middle of a command, leave nothing behind."""
    _, gateway, inbox = inbox_gateway
    before = gateway.descriptors()
    for number in range(1000):
        client = connect(inbox.port)
        client.send(b"*3\r\n$7\r\nPUBLISH\r\n$100\r\nhalf" if number % 2 else b"PING\r\n")
        if number % 3:
            client.vanish()
        else:
            client.reset()
    eventually(lambda: gateway.descriptors() <= before, "no descriptor is left")
    assert gateway.connections()["total_connections"] == 0


def test_workers_are_not_counted_as_clients(inbox_gateway):
    """A worker's connection is no WebSocket, and is not counted as one."""
    _, gateway, inbox = inbox_gateway
    with inbox.client() as worker:
        worker.ping()
        assert gateway.connections()["total_connections"] == 0
        assert gateway.get("/health").json()["active_connections"] <= 1
    gateway.process.wait_for_line(r"inbox_\d+ closed reason=done code=none duration=\S+ published=0")


def test_password_of_the_inbox_is_read_from_a_file(results, tmp_path):
    """`password_file`: its first line is the password for workers, and a reload reads it again."""
    file = tmp_path / "password"
    file.write_text("first\nnot this line\n")
    gateway, inbox = results.embedded(link={"password_file": str(file)})
    with inbox.client(password="first") as worker:
        assert worker.ping() is True
    file.write_text("second\n")
    gateway.signal(signal.SIGHUP)
    gateway.process.wait_for_line("config read again")
    with inbox.client(password="second") as worker:
        assert worker.ping() is True
    with inbox.client(password="first") as worker, pytest.raises(redis.AuthenticationError):
        worker.ping()


def test_workers_publish_while_the_gateway_has_no_room_for_clients(results):
    """`max_connections` limits clients: workers are accepted beyond it, and the loop does not spin."""
    gateway, inbox = results.embedded(config={"server": {"max_connections": 2, "listen": ["127.0.0.1:0"]}})
    task = new_task()
    waiter = results.wait(gateway, task)
    crowd = [results.lab.client(gateway) for _ in range(150)]
    gateway.process.wait_for_line(r"reason=refused .*why=.too many connections")
    for number in range(5):
        assert inbox.publish(task, text=str(number), final=number == 4) == 1
        assert waiter.result().content == str(number)
    with open(f"/proc/{gateway.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    assert used < 1.0, f"it spins: {used} s of processor time"
    for client in crowd:
        client.vanish()
    waiter.done()


def test_inbox_port_in_use_is_named(results, lab):
    """The error about a port that is taken names the port."""
    backend = lab.backend()
    gateway = results.gateway(f"embedded://127.0.0.1:{backend.port}", ready=False, wait=False)
    gateway.may_end = True
    assert gateway.process.wait() == 1
    assert str(backend.port) in gateway.log
