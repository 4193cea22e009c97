"""Other projects through the relay, each with its example's configuration; only addresses differ. Their own libraries speak
wherever they can be installed; what cannot is a stand-in that speaks the documented messages."""

import asyncio
import http.server
import json
import subprocess
import threading

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from gatewaylab import NODE_MODULES, PATIENCE, PEERS, PROJECTS, ROOT
from gatewaylab.gateway import run
from gatewaylab.peers import node_env
from gatewaylab.process import Process
from gatewaylab.proxies import replaced
from gatewaylab.wire import closed_port

EXAMPLES = ROOT / "examples"


def example(project, backend, port):
    """The example's configuration on any free port, with its `backend` (host and port) at this one."""
    text = replaced((EXAMPLES / project / "config.toml").read_text(), "0.0.0.0:8000", "127.0.0.1:0")
    assert f"ws://{backend}/" in text, text
    return text.replace(f"ws://{backend}/", f"ws://127.0.0.1:{port}/")


@pytest.mark.parametrize("folder", ["open-llm-vtuber", "xiaozhi", "airi", "pipecat"])
def test_configuration_is_valid(folder):
    done = run("--check", "--config", EXAMPLES / folder / "config.toml")
    assert (done.returncode, done.stderr) == (0, "")


# ---- Open-LLM-VTuber

# What each side sends, in order: `>` is the client, `<` the server.
OPEN_LLM_VTUBER = [
    ("<", {"type": "full-text", "text": "Connection established"}),
    ("<", {"type": "set-model-and-conf", "model_info": {"name": "mao_pro"}, "conf_name": "mao", "conf_uid": "mao_001"}),
    ("<", {"type": "control", "text": "start-mic"}),
    (">", {"type": "mic-audio-data", "audio": [0.01, -0.02] * 2048}),
    (">", {"type": "mic-audio-end"}),
    (">", {"type": "text-input", "text": "こんにちは"}),
    ("<", {"type": "control", "text": "conversation-chain-start"}),
    ("<", {"type": "audio", "audio": "UklGRg==" * 4096, "volumes": [0.1], "slice_length": 20, "display_text": {"text": "…"}}),
    (">", {"type": "interrupt-signal", "text": "…"}),
    ("<", {"type": "control", "text": "conversation-chain-end"}),
]


async def talk(ws, own, script):
    """Plays one side of the script; the other side's messages must come as they are in it."""
    for side, message in script:
        wire = json.dumps(message, ensure_ascii=False)
        if side == own:
            await ws.send(wire)
        else:
            assert await ws.recv() == wire


def test_messages_of_open_llm_vtuber_pass(lab):
    """Its front end and its server are applications, not libraries: both sides are stand-ins."""
    paths = []

    async def conversation():
        done = asyncio.get_running_loop().create_future()

        async def serve_one(ws):
            paths.append(ws.request.path)
            try:
                await talk(ws, "<", OPEN_LLM_VTUBER)
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)
                raise

        async with serve(serve_one, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            gateway = lab.gateway(example("open-llm-vtuber", "localhost:12393", port))
            async with connect(f"ws://127.0.0.1:{gateway.port}/client-ws") as ws:
                await talk(ws, ">", OPEN_LLM_VTUBER)
                await done

    asyncio.run(asyncio.wait_for(conversation(), PATIENCE))
    assert paths == ["/client-ws"]


# ---- xiaozhi

SESSION = "0b1c8d2e"


def test_device_of_xiaozhi_speaks_and_hears(lab):
    """The device is xiaozhi's SDK, with Opus both ways; the server is a stand-in that repeats what it hears."""
    seen = {}

    async def serve_one(ws):
        seen.update(path=ws.request.path, headers=ws.request.headers)
        hello = json.loads(await ws.recv())
        assert hello["type"] == "hello" and hello["audio_params"]["format"] == "opus"
        answer = {**hello, "session_id": SESSION}
        await ws.send(json.dumps(answer))
        seen["listen"] = json.loads(await ws.recv())
        frames = [await ws.recv() for _ in range(20)]
        for message in [{"type": "stt", "text": "你好小智"}, {"type": "tts", "state": "start"}, *frames, {"type": "tts", "state": "stop"}]:
            is_audio = isinstance(message, bytes)
            await ws.send(message if is_audio else json.dumps({**message, "session_id": SESSION}, ensure_ascii=False))
        await ws.wait_closed()

    async def conversation():
        async with serve(serve_one, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            gateway = lab.gateway(example("xiaozhi", "xiaozhi-server:8000", port))
            device = await asyncio.create_subprocess_exec(
                PROJECTS / "bin/python", PEERS / "xiaozhi_device.py", f"ws://127.0.0.1:{gateway.port}/xiaozhi/v1/",
                stdout=subprocess.PIPE,
            )  # fmt: skip
            printed, _ = await device.communicate()
        return [json.loads(line) for line in printed.splitlines()], device.returncode

    messages, status = asyncio.run(asyncio.wait_for(conversation(), 4 * PATIENCE))
    assert status == 0
    assert [message.get("state", message["type"]) for message in messages[:3]] == ["stt", "start", "stop"]
    assert messages[0]["text"] == "你好小智"
    assert messages[3] == {"decoded": 20 * 960}
    assert seen["path"] == "/xiaozhi/v1/"
    assert seen["listen"] == {"session_id": SESSION, "type": "listen", "state": "start", "mode": "realtime"}
    for name, value in [("Device-Id", "aa:bb:cc:dd:ee:ff"), ("Protocol-Version", "1"), ("Authorization", "Bearer ")]:
        assert seen["headers"][name] == value.strip()
    assert seen["headers"]["Client-Id"]


# ---- AIRI


def test_module_of_airi_talks_through_the_example(lab):
    """The client is AIRI's own SDK, which wraps each message with superjson and sends pings; the server is a stand-in."""
    seen = []

    def sent(event, data):
        return json.dumps({"json": {"type": event, "data": data}})

    async def serve_one(ws):
        async for wire in ws:
            message = json.loads(wire)["json"]
            seen.append(message["type"])
            if message["type"] == "module:authenticate":
                await ws.send(sent("module:authenticated", {"authenticated": message["data"]["token"] == "secret"}))
            elif message["type"] == "input:text":
                answer = {"role": "assistant", "content": f"You said {message['data']['text']}"}
                await ws.send(sent("output:gen-ai:chat:message", {"message": answer}))

    async def conversation():
        async with serve(serve_one, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            gateway = lab.gateway(example("airi", "localhost:6121", port))
            module = await asyncio.create_subprocess_exec(
                "node", PEERS / "airi_client.js", f"ws://127.0.0.1:{gateway.port}/ws", "secret",
                env=node_env(), stdout=subprocess.PIPE,
            )
            heard, _ = await module.communicate()
        return [json.loads(line) for line in heard.splitlines()], module.returncode

    heard, status = asyncio.run(asyncio.wait_for(conversation(), PATIENCE))
    assert [event["type"] for event in heard] == ["module:authenticated", "output:gen-ai:chat:message"]
    assert heard[-1]["data"]["message"]["content"] == "You said hello"
    assert {"transport:connection:heartbeat", "module:authenticate", "module:announce", "input:text"} <= set(seen)
    assert status == 0


# ---- pipecat


def test_bot_on_pipecat_hears_and_answers_a_page(lab, browser, tmp_path):
    """pipecat's client in Chromium, whose microphone beeps, and pipecat's server, which repeats what it hears."""
    esbuild = [NODE_MODULES / ".bin/esbuild", PEERS / "pipecat_page.js", "--bundle", "--format=iife", "--global-name=page", "--log-level=warning"]
    subprocess.run([*esbuild, f"--outfile={tmp_path}/page.js"], env=node_env(), check=True, timeout=PATIENCE)
    policy = "default-src 'self' blob: data:; connect-src 'self' ws://127.0.0.1:*"
    (tmp_path / "index.html").write_text(
        # Whatever the libraries may want elsewhere stays on this machine.
        f'<!doctype html><meta http-equiv="Content-Security-Policy" content="{policy}"><script src="page.js"></script>'
    )

    class FrontEnd(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def log_message(self, *_):
            pass

    port = closed_port()
    bot = Process([PROJECTS / "bin/python", PEERS / "pipecat_bot.py", port])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FrontEnd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        bot.wait_for_line("^listening$", patience=4 * PATIENCE)
        gateway = lab.gateway(example("pipecat", "localhost:8765", port))
        browser.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        talk = browser.evaluate(f"page.talk('ws://127.0.0.1:{gateway.port}/ws')")
        bot.wait_for_line("^client left ")
    finally:
        browser.leave()
        server.shutdown()
        server.server_close()
        bot.kill()
    assert talk["answer"] == {"asked": {"text": "こんにちは"}}
    assert talk["heard"] > 0 and talk["loudest"] > 1000
    assert "ready" in talk["states"] and talk["states"][-1] == "disconnected"
