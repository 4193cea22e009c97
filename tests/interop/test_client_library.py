"""`/client.js` against the gateway itself: what `clients/js/test` plays with a gateway of its own is done for real."""

import hashlib
import json
import re
import subprocess

from gatewaylab import ROOT
from gatewaylab.peers import node_env, pattern
from gatewaylab.results import new_task


def listen(gateway, tasks, **order):
    """Runs the library in Node; the answers, each a list of results, and the queries of its connections."""
    order = {"url": f"http://127.0.0.1:{gateway.port}", "tasks": tasks, "seed": 7, **order}
    script = ROOT / "tests/interop/peers/library_client.js"
    done = subprocess.run(["node", script], input=json.dumps(order), env=node_env(), capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    return told["answers"], told["queries"]


def test_cuts_at_random_bytes_lose_and_repeat_nothing(results):
    """Connections break more than a hundred times, in the middle of frames too: each client has every text once and every byte of audio."""
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
    assert answers == [wanted] * len(tasks)
    assert len(queries) > 100, "connections were cut"
    resumed = [query for query in queries if query]
    assert all(re.fullmatch(r"\?from_result=\d+(&from_byte=\d+)?", query) for query in resumed), resumed
    assert any("from_result=2&from_byte=" in query for query in resumed)
