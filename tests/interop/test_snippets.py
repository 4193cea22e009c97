"""Every snippet in the documents that is to be copied runs as it is there: the browser's client, the worker's side, the README's
program.

A block is found by its first line, and only the port in it is replaced, because tests get theirs from the kernel.
"""

import json
import re
import sys
import uuid
import wave

import pytest

from gatewaylab import ROOT
from gatewaylab.gateway import route
from gatewaylab.peers import Closed
from gatewaylab.process import Process
from gatewaylab.redis_server import RedisServer
from test_browser import origin  # noqa: F401  the page of a front end that is served elsewhere

def snippet(language, first_line, document="docs/protocol.md", **replaced):
    """The block that begins with `first_line`, with each key of `replaced`, which occurs once, replaced by its value."""
    text = (ROOT / document).read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if block.startswith(first_line)]
    assert len(found) == 1, f"{len(found)} blocks in {document} begin with {first_line!r}"
    text = found[0]
    for old, new in replaced.items():
        assert text.count(old) == 1, f"{old} stands {text.count(old)} times in {first_line}"
        text = text.replace(old, str(new))
    return text


RUN = """
(code) => {
  window.onerror = (message) => { window.broken = message; };
  window.said = [];
  const log = console.log;
  console.log = (...words) => { window.said.push(words.join(" ").trim()); log(...words); };
  const script = document.createElement("script");
  script.type = "module";
  script.textContent = code;
  document.head.append(script);
}
"""

HEARD = """
new Promise((done, fail) => {
  const look = async () => {
    if (window.broken) return fail(new Error(window.broken));
    const audio = document.querySelector("audio");
    if (!audio?.src || !window.said.includes("done")) return;
    watch();
    const blob = await (await fetch(audio.src)).blob();
    const type = blob.type;
    const bytes = await blob.arrayBuffer();
    const length = bytes.byteLength;
    const sound = await new OfflineAudioContext(1, 1, 44100).decodeAudioData(bytes);
    const loudest = sound.getChannelData(0).reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
    done({ length, type, seconds: sound.duration, loudest, text: document.body.innerText, said: window.said });
  };
  const timer = setInterval(look, 20);
  const watch = () => clearInterval(timer);
})
"""


def test_browsers_client_is_heard(demo, browser, origin):  # noqa: F811
    """The page that uses the client library, from a front end's own server, against `demo`."""
    page = snippet("js", "// page.js", **{"localhost:8000": f"localhost:{demo.port}"})
    browser.goto(origin)
    browser.evaluate(f"({RUN})({json.dumps(page)})")
    heard = browser.evaluate(HEARD)
    assert heard["length"] == 230_444
    assert abs(heard["seconds"] - 4.8) < 0.01
    assert heard["type"] == "audio/wav"
    assert heard["loudest"] > 0.1, "it is not silence"
    assert "You said: “Hello, gateway!”" in heard["text"]
    assert heard["said"] == ["uploading", "waiting", "answering", "done"]
    assert browser.complaints() == []
    browser.leave()


def test_readmes_program_gets_its_answer(demo, tmp_path):
    """The README's `say.py` against `demo`: its output, and a complete sound."""
    program = snippet("python", "import json\nfrom websockets", "README.md", **{"localhost:8000": f"localhost:{demo.port}"})
    said = Process([sys.executable, "-c", program], cwd=tmp_path)
    try:
        assert said.wait() == 0, said.text
    finally:
        said.kill()
    lines = [json.loads(line.removeprefix("< ")) for line in said.text.splitlines()]
    assert [line.get("action") or line.get("status") or line.get("type") for line in lines] == [
        "upload_processed",
        "success",
        *["audio_chunk"] * 12,
        "audio_complete",
    ]
    with wave.open(str(tmp_path / "answer.wav")) as sound:
        assert sound.getnframes() / sound.getframerate() == 4.8


def worker(first_line, port):
    """The functions of a worker's snippet."""
    names = {}
    exec(compile(snippet("python", first_line, **{"port=6379": f"port={port}"}), first_line, "exec"), names)
    return names


def served(tmp_path, url):
    audio = tmp_path / "audio"
    audio.mkdir(exist_ok=True)
    routes = [route("output", "/ws/output/{task_id}", serve="output")]
    return audio, {"route": routes, "output": {"audio_root": str(audio)}, "redis": {"url": url}}


def everything(client):
    seen = []
    while not isinstance(message := client.receive(), Closed):
        seen.append(json.loads(message.text) if message.text is not None else message.size)
    assert (message.code, message.reason) == (1000, "done")
    return seen


@pytest.mark.parametrize("inbox", ["redis", "embedded"])
def test_workers_publish(lab, open_client, tmp_path, inbox):
    """The worker's snippet, with a Redis and without one: an answer in two parts, the second with a sound; a failure."""
    server = RedisServer(tmp_path) if inbox == "redis" else None
    try:
        audio, config = served(tmp_path, server.url if server else "embedded://127.0.0.1:0")
        gateway = lab.gateway(config)
        said = gateway.process.wait_for_line(r"(?:redis connected|inbox listening) address=127\.0\.0\.1:(\d+)")
        names = worker("# worker.py", said.group(1))
        (audio / "hello.wav").write_bytes(b"sound")
        task, failed = str(uuid.uuid4()), str(uuid.uuid4())
        client = open_client(f"ws://127.0.0.1:{gateway.port}/ws/output/{task}")
        names["publish"](task, text="First,", final=False)
        names["publish"](task, text="Hello!", audio_file="hello.wav")
        names["publish"](failed, error="no model")
        about = {"status": "success", "task_id": task}
        assert everything(client) == [
            {**about, "content": "First,", "audio_present": False, "final": False, "result_id": 0},
            {**about, "content": "Hello!", "audio_present": True, "result_id": 1, "audio_type": "audio/wav"},
            {"type": "audio_chunk", "task_id": task, "chunk_id": 0, "total_chunks": 1},
            5,
            {"type": "audio_complete", "task_id": task},
        ]
        failure = everything(open_client(f"ws://127.0.0.1:{gateway.port}/ws/output/{failed}"))
        assert failure == [{"status": "error", "error": "no model", "task_id": failed, "result_id": 0}]
        names["results"].close()
    finally:
        if server:
            server.stop()


def test_safe_workers_result_survives_that_no_gateway_runs(lab, open_client, tmp_path):
    """The safe snippet: a result published while no gateway runs is delivered by the next one; one published while a gateway
    listens comes once."""
    server = RedisServer(tmp_path)
    try:
        names = worker("# safe_worker.py", server.port)
        early, late = str(uuid.uuid4()), str(uuid.uuid4())
        names["publish"](early, text="said to nobody", final=False)
        _, config = served(tmp_path, server.url)
        gateway = lab.gateway(config)
        gateway.process.wait_for_line("redis connected")
        answer = {"status": "success", "content": "now", "audio_present": False, "result_id": 0}
        client = open_client(f"ws://127.0.0.1:{gateway.port}/ws/output/{early}")
        first = json.loads(client.receive().text)
        assert first == {**answer, "task_id": early, "content": "said to nobody", "final": False}
        names["publish"](early, text="now")
        assert everything(client) == [{**answer, "task_id": early, "result_id": 1}]
        client = open_client(f"ws://127.0.0.1:{gateway.port}/ws/output/{late}")
        names["publish"](late, text="now")
        assert everything(client) == [{**answer, "task_id": late}]
        names["results"].close()
    finally:
        server.stop()
