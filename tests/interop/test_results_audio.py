"""Audio files that come late, grow, change, or have another name for the worker (docs/protocol.md section 2, "Nothing is lost").

Results are published to the gateway's own inbox. Nothing waits for a time: a client with a small window holds a delivery in
its middle, and the log and `/status` tell what the gateway is doing.
"""

import contextlib
import os
import resource

import pytest

from gatewaylab.gateway import run
from gatewaylab.peers import pattern
from gatewaylab.results import new_task, status
from gatewaylab.slow_folder import SlowFolder
from gatewaylab.wire import BINARY, eventually

CHUNK = 65536
LARGE = 4_000_000


class Stage:
    """A gateway with its own inbox."""

    def __init__(self, results, **options):
        self.results = results
        self.gateway, self.inbox = results.embedded(**options)

    def publish(self, name, **fields):
        task = new_task()
        self.inbox.publish(task, text="t", audio_file=name, **fields)
        return task

    def hold(self, name, size, age=0.0):
        """A client in the middle of a large file that was last written to `age` seconds ago; its text message has been read."""
        path = self.results.write(name, pattern(size))
        if age:
            make_older(path, age)
        task = self.publish(name)
        waiter = self.results.wait(self.gateway, task, receive_buffer=16 * 1024)
        assert waiter.message()["audio_present"]
        eventually(lambda: status(self.gateway, task)["status"] == "sending", "it is being sent")
        return waiter, task, path


@pytest.fixture
def stage(results):
    return Stage(results)


def make_older(path, seconds):
    at = path.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path, ns=(at, at))


def read_audio(waiter, task):
    """The chunks up to another message: their announcements, their bytes, and that message."""
    announced, audio = [], b""
    while (message := waiter.message()).get("type") == "audio_chunk":
        assert message.pop("task_id") == task
        assert message["chunk_id"] == len(announced)
        frame = waiter.read_message_frame()
        assert frame.opcode == BINARY
        if "offset" in message:
            assert message["offset"] == len(audio) and message["total_chunks"] is None
        announced.append(message)
        audio += frame.payload
    return announced, audio, message


def expect_changed(stage, waiter, task, message):
    assert message == {"status": "error", "error": "Audio file changed", "task_id": task}
    waiter.done(1011, "audio file changed")
    stage.gateway.process.wait_for_line(f"closed reason=audio_lost code=1011 .*{task}")


# ---- files that are written to while they are sent


def test_file_that_is_still_being_written_is_sent_to_its_end(stage):
    """A young file that has become longer: its further chunks follow with `offset` and `"total_chunks":null`."""
    waiter, task, path = stage.hold("a", LARGE)
    with open(path, "ab") as file:
        file.write(pattern(LARGE + 100_000)[LARGE:])
    announced, audio, last = read_audio(waiter, task)
    assert audio == pattern(LARGE + 100_000)
    assert last == {"type": "audio_complete", "task_id": task}
    assert announced[0]["total_chunks"] == -(-LARGE // CHUNK), "a number that was announced may be followed by null"
    assert announced[-1]["total_chunks"] is None and "offset" in announced[-1]
    waiter.done()


def test_file_that_grows_again_and_again_is_sent_to_its_end(stage):
    """Further chunks follow until the file has been still for `audio_wait`."""
    waiter, task, path = stage.hold("a", LARGE)
    expected = pattern(LARGE)
    with open(path, "ab", buffering=0) as file:
        audio = b""
        for _ in range(3):
            file.write(b"more")
            expected += b"more"
            while len(audio) < len(expected):
                message = waiter.message()
                assert message["type"] == "audio_chunk", message
                audio += waiter.read_message_frame().payload
            assert audio == expected and message["total_chunks"] is None
    assert waiter.message() == {"type": "audio_complete", "task_id": task}
    waiter.done()


@pytest.mark.parametrize("change", ["append", "rewrite", "touch"])
def test_finished_file_that_is_written_to_is_never_complete(stage, change):
    """A file whose mtime was older than `audio_wait` when it was opened was finished: any difference is `Audio file changed`."""
    waiter, task, path = stage.hold("a", LARGE, age=10)
    if change == "append":
        with open(path, "ab") as file:
            file.write(b"more")
    elif change == "rewrite":
        with open(path, "r+b") as file:
            file.write(bytes(LARGE))
    else:
        os.utime(path)
    _, audio, last = read_audio(waiter, task)
    assert len(audio) < LARGE
    expect_changed(stage, waiter, task, last)
    assert status(stage.gateway, task)["status"] == "failed"
    stage.gateway.process.wait_for_line(r'audio lost why="Audio file changed" file="a" root="/')


def test_young_file_that_is_rewritten_is_never_complete(stage):
    """A young file that became shorter, or has the same size and another mtime: `Audio file changed`."""
    waiter, task, path = stage.hold("a", LARGE)
    path.write_bytes(pattern(LARGE))
    _, _, last = read_audio(waiter, task)
    expect_changed(stage, waiter, task, last)


def test_file_that_another_one_replaces_is_sent_whole(stage):
    """An audio file is sent from the one file that was opened, even if another takes its name."""
    waiter, task, path = stage.hold("a", LARGE, age=10)
    other = stage.results.write("b", bytes(LARGE))
    other.rename(path)
    _, audio, last = read_audio(waiter, task)
    assert audio == pattern(LARGE) and last["type"] == "audio_complete"
    waiter.done()


def test_from_chunk_does_not_cross_two_files(stage):
    """A client that has the first chunks of one recording is not sent the rest of another."""
    path = stage.results.write("a", pattern(3 * CHUNK))
    make_older(path, 10)
    task = stage.publish("a")
    first = stage.results.wait(stage.gateway, task)
    assert first.result().audio == pattern(3 * CHUNK)
    first.done()
    same = stage.results.wait(stage.gateway, task, "?from_chunk=2")
    assert same.result(first_chunk=2).audio == pattern(3 * CHUNK)[2 * CHUNK :]
    same.done()

    stage.results.write("b", bytes(3 * CHUNK)).rename(path)
    resumed = stage.results.wait(stage.gateway, task, "?from_chunk=2")
    expect_changed(stage, resumed, task, resumed.message())
    anew = stage.results.wait(stage.gateway, task)
    assert anew.result().audio == bytes(3 * CHUNK)
    anew.done()


# ---- files that come late


def test_file_that_comes_after_its_result_is_sent(stage):
    """A file that is not there yet is looked for again for `audio_wait`."""
    task = stage.publish("late/a")
    waiter = stage.results.wait(stage.gateway, task)
    eventually(lambda: status(stage.gateway, task)["status"] == "sending", "the result has been taken up")
    stage.results.write("late/b", pattern(100_000)).rename(stage.results.audio / "late" / "a")
    result = waiter.result()
    assert result.message["audio_present"] and result.audio == pattern(100_000)
    waiter.done()


def test_without_audio_wait_a_file_has_to_be_there(results):
    stage = Stage(results, output={"audio_wait": "0s"})
    task = stage.publish("a")
    waiter = results.wait(stage.gateway, task)
    assert waiter.message()["audio_present"] is False
    waiter.refused("Audio file not found", 1000, "done", task_id=task)


# ---- names


@pytest.mark.parametrize(
    "name",
    [
        "/app/output/voice/a.wav",
        "C:\\out\\voice\\a.wav",
        "file:///app/output/voice/a.wav",
        "voice\\a.wav",
        "file://{root}/voice/a.wav",
        "file://localhost{root}/voice/a.wav",
    ],
)
def test_names_of_other_machines_are_translated(results, name):
    """`path_map`: prefixes in workers' paths."""
    # A table cannot be written by the suite's own writer of configurations.
    stage = Stage(results)
    text = stage.gateway.file.read_text()
    mapped = f"[output]\npath_map = {{ '/app/output' = '{results.audio}', 'C:\\out' = '{results.audio}' }}"
    stage.gateway.file.write_text(text.replace("[output]", mapped))
    stage.gateway.signal(1)
    stage.gateway.process.wait_for_line("read again")
    results.write("voice/a.wav", b"hello")
    task = stage.publish(name.format(root=results.audio))
    waiter = results.wait(stage.gateway, task)
    assert waiter.result().audio == b"hello"
    waiter.done()


# ---- what an operator sees


def test_missing_audio_root_is_reported(results, tmp_path):
    """An audio root that cannot be read shows in the log (file and root), in `--check`, at the start, and in the metric."""
    root = tmp_path / "not here"
    stage = Stage(results, output={"audio_root": str(root), "audio_wait": "20ms"})
    stage.gateway.process.wait_for_line(rf"WARN +config output.audio_root: the folder {root} cannot be opened: No such file")
    task = stage.publish("a.wav")
    waiter = results.wait(stage.gateway, task)
    assert waiter.message()["audio_present"] is False
    waiter.refused("Audio file not found", 1000, "done", task_id=task)
    line = rf'no audio why="Audio file not found" error="No such file.*" file="a.wav" root="{root}" task={task}'
    stage.gateway.process.wait_for_line(line)
    assert any(problem.startswith(f"audio_root: {root}: No such") for problem in stage.gateway.get().json()["problems"])
    assert 'audio_failed_total{reason="no_root"} 1' in stage.gateway.get("/metrics").body.decode()
    done = run("--check", "--config", stage.gateway.file)
    assert done.returncode == 0 and f"output.audio_root: the folder {root} cannot be opened" in done.stderr


def test_result_waits_while_descriptors_have_run_out(stage):
    """A lack of descriptors is not the file's fault: nothing is lost, and no file is called unreadable."""
    stage.results.write("a", pattern(100_000))
    task = new_task()
    waiter = stage.results.wait(stage.gateway, task)
    eventually(lambda: status(stage.gateway, task)["status"] == "waiting", "it waits")
    worker = stage.inbox.client()
    with contextlib.closing(worker):
        worker.ping()
        with no_more_descriptors(stage.gateway):
            worker.publish(f"task_response:{task}", '{"text":"t","audio_file":"a"}')
            stage.gateway.process.wait_for_line(r'audio delayed why="Too many open files')
        result = waiter.result()
    assert result.message["audio_present"] and result.audio == pattern(100_000)
    waiter.done()


@contextlib.contextmanager
def no_more_descriptors(gateway):
    """The gateway can open nothing more while this lasts."""
    soft, hard = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{gateway.pid}/fd")}
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), hard))
    try:
        yield
    finally:
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (soft, hard))


# ---- disks and servers that take their time


@pytest.fixture
def slow(results, tmp_path):
    folder = SlowFolder(tmp_path / "slow", {"a.wav": pattern(3 * CHUNK + 5), "empty": b""})
    yield folder
    folder.stop()


@pytest.mark.parametrize("operation", ["lookup", "open", "read"])
def test_slow_folder_holds_up_only_those_who_want_its_files(results, slow, operation):
    """The loop never waits for a disk: others get their results while one client's file is being opened or read."""
    stage = Stage(results, output={"audio_root": str(slow.folder)})
    with slow.holding(operation):
        held = stage.publish("a.wav")
        waiter = results.wait(stage.gateway, held)
        slow.wait_until_held(operation)
        for _ in range(3):
            task = new_task()
            other = results.wait(stage.gateway, task)
            stage.inbox.publish(task, text="not held up")
            assert other.result().content == "not held up"
            other.done()
        assert stage.gateway.get("/health").status == 200
    assert waiter.result().audio == pattern(3 * CHUNK + 5)
    waiter.done()


def test_client_may_leave_while_its_file_is_opened(results, slow):
    """The slow disk answers after its client has left: another client in the same slot does not get the answer."""
    stage = Stage(results, output={"audio_root": str(slow.folder)})
    with slow.holding("open"):
        task = stage.publish("a.wav")
        results.wait(stage.gateway, task).vanish()
        slow.wait_until_held("open")
        eventually(lambda: stage.gateway.connections()["total_connections"] == 0, "it has left")
        other_task = stage.publish("empty")
        other = results.wait(stage.gateway, other_task)
    assert other.result().audio == b""
    other.done()


def test_from_chunk_on_a_slow_folder(results, slow):
    stage = Stage(results, output={"audio_root": str(slow.folder)})
    task = stage.publish("a.wav")
    waiter = results.wait(stage.gateway, task, "?from_chunk=2")
    assert waiter.result(first_chunk=2).audio == pattern(3 * CHUNK + 5)[2 * CHUNK :]
    waiter.done()
