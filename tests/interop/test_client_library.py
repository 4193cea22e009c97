"""`/client.js` against a real gateway; in `clients/js/test`, the tests play the gateway."""

import hashlib
import json
import re
import subprocess

from gatewaylab import ROOT
from gatewaylab.peers import node_env, pattern
from gatewaylab.results import new_task, status
from gatewaylab.wire import eventually


def listen(gateway, tasks, **order):
    """Runs the library in Node. Returns the answers, each with its state and results, and the queries of its connections."""
    url = f"http://127.0.0.1:{gateway.port}"
    order = {"url": url, "tasks": tasks, "cuts": 0, "bytes": 1, "stops": [], "seed": 7, **order}
    script = ROOT / "tests/interop/peers/library_client.js"
    done = subprocess.run(["node", script], input=json.dumps(order), env=node_env(), capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    message = json.loads(done.stdout)
    return message["answers"], message["queries"]


def test_cuts_at_random_bytes_lose_and_repeat_nothing(results):
    """Connections break more than a hundred times, also in the middle of frames: each client has every text once and every byte
    of audio."""
    gateway, inbox = results.embedded(output={"chunk_size": 4096})
    one, other = pattern(300_000), pattern(150_001)
    results.write("a.wav", one)
    results.write("b.wav", other)
    tasks = [new_task() for _ in range(20)]
    for task in tasks:
        inbox.publish(task, text="One", audio_file="a.wav", final=False)
        inbox.publish(task, text="Two", final=False)
        inbox.publish(task, text="Three", audio_file="b.wav")
    answers, queries = listen(gateway, tasks, cuts=300, bytes=60_000)
    wanted = [
        {"content": "One", "sha256": hashlib.sha256(one).hexdigest(), "ends": 1},
        {"content": "Two", "ends": 0},
        {"content": "Three", "sha256": hashlib.sha256(other).hexdigest(), "ends": 1},
    ]
    assert answers == [{"state": "done", "results": wanted}] * len(tasks)
    assert len(queries) > 100, "connections were cut"
    resumed = [query for query in queries if query]
    assert all(re.fullmatch(r"\?from_result=\d+(&from_byte=\d+)?", query) for query in resumed), resumed
    assert any("from_result=2&from_byte=" in query for query in resumed)


def test_stop_stops_the_task_for_every_client(results):
    """One of three clients of a task calls `answer.stop()`: the gateway stops the task, and the other two see it as stopped, not
    as failed."""
    gateway, inbox = results.embedded()
    task = new_task()
    inbox.publish(task, text="Once upon a time", final=False)
    answers, queries = listen(gateway, [task] * 3, stops=[1])
    assert [answer["state"] for answer in answers] == ["stopped"] * 3
    assert [result["content"] for answer in answers for result in answer["results"]] == ["Once upon a time"] * 3
    assert queries == [""] * 3, "no client came back"
    eventually(lambda: status(gateway, task)["status"] == "stopped", "the task is stopped")
    gateway.process.wait_for_line(f"closed reason=task_stopped code=1000 .*{task}")
