"""What is in `examples/`, run as it is there: workers and proxies. `test_projects.py` has those for other projects."""

import asyncio
import http.client
import json
import os
import shutil
import subprocess
import sys

import pytest
from websockets.asyncio.client import connect

from gatewaylab import PATIENCE, ROOT, TARGET
from gatewaylab.gateway import route, run
from gatewaylab.process import Process
from gatewaylab.proxies import documented
from gatewaylab.redis_server import RedisServer
from gatewaylab.wire import closed_port
from test_talk import DARK, LIGHT, NARROW, Talk

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("file, language", [("nginx/gateway.conf", "nginx"), ("caddy/Caddyfile", "caddyfile")])
def test_configuration_of_a_proxy_is_the_documented_one(file, language):
    """`test_proxies.py` runs the one in the document."""
    assert (EXAMPLES / file).read_text() == documented(language)


def test_traefik_example_is_yaml_that_names_the_gateway():
    """Traefik cannot be installed here: only the syntax is checked."""
    program = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
    text = (EXAMPLES / "traefik/dynamic.yaml").read_text()
    done = subprocess.run(["/usr/bin/python3", "-c", program], input=text, capture_output=True, text=True, timeout=PATIENCE)
    http = json.loads(done.stdout)["http"]
    assert http["routers"]["gateway"]["service"] in http["services"]
    servers = http["services"]["gateway"]["loadBalancer"]["servers"]
    assert servers == [{"url": "http://127.0.0.1:8000"}]


def test_an_api_and_its_websocket_are_behind_one_port(lab):
    assert run("--check", "--config", EXAMPLES / "api/config.toml").returncode == 0
    port = closed_port()
    app = Process([sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)], cwd=EXAMPLES / "api")
    lab.backends.append(app)
    app.stop = app.kill
    app.wait_for_line(r"Uvicorn running on")
    config = (EXAMPLES / "api/config.toml").read_text()
    config = config.replace("localhost:8100", f"127.0.0.1:{port}").replace("127.0.0.1:6379", "127.0.0.1:0")
    gateway = lab.gateway('[server]\nlisten = ["127.0.0.1:0"]\n\n' + config)
    api = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)

    def ask(method, path, body=None):
        api.request(method, path, body)
        response = api.getresponse()
        return response.status, response.read()

    assert ask("GET", "/api/voices") == (200, b'{"voices": ["alto", "soprano"]}')
    assert ask("POST", "/api/recordings", b"x" * 500_000) == (201, b'{"bytes": 500000}')
    assert ask("GET", "/api/progress") == (200, b"data: 0\n\ndata: 50\n\ndata: 100\n\n")
    assert ask("GET", "/api/nothing")[0] == 404
    api.close()

    async def talk():
        async with connect(f"ws://127.0.0.1:{gateway.port}/ws/input") as client:
            await client.send("hello")
            return json.loads(await client.recv())

    assert set(asyncio.run(talk())) == {"task_id"}


# ---- workers

WORKERS = {
    "python": [sys.executable, EXAMPLES / "workers/worker.py"],
    "node": ["node", EXAMPLES / "workers/worker.mjs"],
    "shell": ["bash", EXAMPLES / "workers/worker.sh"],
}


async def ask(gateway, text):
    """Uploads a text and collects the answer."""
    async with connect(f"ws://127.0.0.1:{gateway.port}/ws/input") as ws:
        task_id = json.loads(await ws.recv())["task_id"]
        await ws.send(json.dumps({"type": "text", "chunk_id": 0, "action": "data_chunk"}))
        await ws.send(text.encode())
        await ws.send(json.dumps({"action": "upload_complete"}))
        assert json.loads(await ws.recv())["status"] == "queued"
        async with connect(f"ws://127.0.0.1:{gateway.port}/ws/output/{task_id}") as results:
            return [message async for message in results]


@pytest.mark.parametrize("language", WORKERS)
def test_worker_answers(lab, tmp_path, language):
    """The input handler, one worker and the gateway, as in examples/README.md."""
    server = RedisServer(tmp_path)
    input_port = closed_port()
    audio = tmp_path / "audio"
    env = {
        **os.environ,
        "REDIS_URL": server.url,
        "AUDIO_ROOT": str(audio),
        "LISTEN": f"127.0.0.1:{input_port}",
        "PYTHONUNBUFFERED": "1",
    }
    command = WORKERS[language]
    if language == "node":
        # Where npm would have put the package: beside the program.
        shutil.copy(command[1], tmp_path)
        (tmp_path / "node_modules").symlink_to(TARGET / "interop/node_modules")
        command = ["node", tmp_path / "worker.mjs"]
    processes = [Process([sys.executable, EXAMPLES / "workers/input_handler.py"], env=env), Process(command, env=env)]
    try:
        processes[0].wait_for_line("input handler on")
        processes[1].wait_for_line("worker waits for tasks")
        routes = [
            route(backend=f"ws://127.0.0.1:{input_port}"),
            route("output", "/ws/output/{task_id}", serve="output"),
        ]
        gateway = lab.gateway({"route": routes, "redis": {"url": server.url}, "output": {"audio_root": str(audio)}})
        text = 'Grüße, "gateway" \\ 你好'
        first, *others = asyncio.run(asyncio.wait_for(ask(gateway, text), PATIENCE))
        assert json.loads(first)["content"] == f"You said: {text}"
        sound = b"".join(message for message in others if isinstance(message, bytes))
        if language == "shell" and not shutil.which("espeak-ng"):
            assert others == []
        else:
            assert sound[:4] == b"RIFF" and len(sound) > 10_000
            assert json.loads(others[-1])["type"] == "audio_complete"
    finally:
        # First: a redis-cli that outlives its shell would keep the pipes open.
        server.stop()
        for process in processes:
            process.kill()


# ---- a streaming worker

@pytest.fixture
def streaming(lab, tmp_path):
    """The streaming worker with the input handler and the gateway."""
    server = RedisServer(tmp_path)
    input_port, audio = closed_port(), tmp_path / "audio"
    env = {**os.environ, "REDIS_URL": server.url, "AUDIO_ROOT": str(audio), "LISTEN": f"127.0.0.1:{input_port}", "PYTHONUNBUFFERED": "1"}
    handler = Process([sys.executable, EXAMPLES / "workers/input_handler.py"], env=env)
    worker = Process([sys.executable, EXAMPLES / "workers/streaming_worker.py"], env=env)
    try:
        handler.wait_for_line("input handler on")
        worker.wait_for_line("worker waits for tasks")
        routes = [
            route(backend=f"ws://127.0.0.1:{input_port}"),
            route("output", "/ws/output/{task_id}", serve="output"),
        ]
        gateway = lab.gateway({"route": routes, "redis": {"url": server.url}, "output": {"audio_root": str(audio)}})
        yield gateway, worker, audio
    finally:
        handler.kill()
        worker.kill()
        server.stop()


async def upload(gateway, text):
    async with connect(f"ws://127.0.0.1:{gateway.port}/ws/input") as ws:
        task_id = json.loads(await ws.recv())["task_id"]
        await ws.send(json.dumps({"type": "text", "chunk_id": 0, "action": "data_chunk"}))
        await ws.send(text.encode())
        await ws.send(json.dumps({"action": "upload_complete"}))
        assert json.loads(await ws.recv())["status"] == "queued"
        return task_id


def test_streaming_worker_is_heard_while_it_speaks(streaming):
    gateway, _, audio = streaming

    async def listen():
        task_id = await upload(gateway, "hello")
        sizes, sound = [], b""
        async with connect(f"ws://127.0.0.1:{gateway.port}/ws/output/{task_id}") as results:
            async for message in results:
                if isinstance(message, bytes):
                    sound += message
                    sizes.append((audio / f"{task_id}.wav").stat().st_size)
        return sound, sizes, (audio / f"{task_id}.wav").read_bytes()

    sound, sizes, file = asyncio.run(asyncio.wait_for(listen(), PATIENCE))
    assert sound == file and len(file) == 44 + 5 * 9600
    assert sizes[0] < len(file), "the first piece came while the rest was still being made"


def test_streaming_worker_stops_when_the_client_does(streaming):
    gateway, worker, audio = streaming

    async def interrupt():
        text = "a long story that nobody wants to hear to its end"
        task_id = await upload(gateway, text)
        async with connect(f"ws://127.0.0.1:{gateway.port}/ws/output/{task_id}") as results:
            async for message in results:
                if isinstance(message, bytes):
                    await results.send(json.dumps({"type": "control", "action": "STOP"}))
                    break
            rest = [message async for message in results]
            assert json.loads(rest[-1])["action"] == "STOP_ACK"
            assert (results.close_code, results.close_reason) == (1000, "stopped")
        return task_id, 44 + len(text) * 9600

    task_id, whole = asyncio.run(asyncio.wait_for(interrupt(), PATIENCE))
    worker.wait_for_line(f"stopped task={task_id}")
    assert (audio / f"{task_id}.wav").stat().st_size < whole


def test_streaming_worker_waits_for_a_client_that_has_left(streaming):
    gateway, worker, audio = streaming

    async def come_back():
        text = "a story with a pause"
        task_id = await upload(gateway, text)
        url = f"ws://127.0.0.1:{gateway.port}/ws/output/{task_id}"
        async with connect(url) as results:
            while not isinstance(await results.recv(), bytes):
                pass
        file = audio / f"{task_id}.wav"
        while f"clients left task={task_id}" not in gateway.log:
            await asyncio.sleep(0.05)
        # It may have been about to write one more piece.
        await asyncio.sleep(0.3)
        before = file.stat().st_size
        await asyncio.sleep(0.5)
        assert file.stat().st_size == before < 44 + len(text) * 9600
        async with connect(url) as results:
            sound = b"".join([message async for message in results if isinstance(message, bytes)])
        assert sound == file.read_bytes() and len(sound) == 44 + len(text) * 9600

    asyncio.run(asyncio.wait_for(come_back(), PATIENCE))


# Counts the pieces of sound that were scheduled, and the contexts that they sound in.
COUNT_SOUNDS = """
(() => {
  window.pieces = 0;
  window.contexts = new Set();
  const { start } = AudioBufferSourceNode.prototype;
  AudioBufferSourceNode.prototype.start = function (...when) {
    window.pieces += 1;
    window.contexts.add(this.context);
    return start.apply(this, when);
  };
})()
"""

FIRST_SOUND = """
new Promise((done) => {
  const timer = setInterval(() => window.pieces && (clearInterval(timer), done(window.pieces)), 10);
})
"""

# Nothing is heard any more: every context that had something to play is closed.
SILENCE = """
new Promise((done) => {
  const isClosed = () => [...window.contexts].every((context) => context.state === "closed");
  const timer = setInterval(() => isClosed() && (clearInterval(timer), done(window.pieces)), 5);
})
"""


@pytest.mark.parametrize("look", [LIGHT, DARK, {**NARROW, "viewport": {"width": 375, "height": 740}}], ids=["light", "dark", "375px"])
def test_page_is_heard_before_the_voice_is_made_and_silent_when_stopped(streaming, browser, tmp_path, look):
    """Type, hear the first syllable while the rest is being made, press Stop: silence, the worker stops, the log says it in two lines."""
    gateway, worker, audio = streaming
    talk = Talk(browser)
    talk.open(gateway.port, **look)
    browser.evaluate(COUNT_SOUNDS)
    text = "a long story that nobody wants to hear to its end"
    talk.say(text)
    assert browser.evaluate(FIRST_SOUND) > 0
    (file,) = audio.glob("*.wav")
    task_id = file.stem
    assert file.stat().st_size < (44 + len(text) * 9600) / 2, "the rest is still being made"
    assert "closed reason=delivered" not in gateway.log
    talk.shows(text)
    browser.screenshot(tmp_path / "speaking.png")
    talk.press("talk-stop")
    assert talk.ends() == "Stopped."
    heard = browser.evaluate(SILENCE)
    worker.wait_for_line(f"stopped task={task_id}")
    gateway.process.wait_for_line(f"output task stopped by=client clients=1 .*task={task_id}")
    gateway.process.wait_for_line(f"closed reason=task_stopped code=1000 .*task={task_id}")
    made = file.stat().st_size
    assert made < 44 + len(text) * 9600
    assert browser.evaluate("window.pieces") == heard, "nothing is played after that"
    browser.screenshot(tmp_path / "stopped.png")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
    assert browser.complaints() == []
    browser.leave()
