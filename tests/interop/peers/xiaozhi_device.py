"""A device on xiaozhi's own SDK: says hello, speaks 20 frames of a tone in Opus, and prints each message that it gets and,
after the server's last one, how many samples it has decoded. The argument is the address of the server."""

import asyncio
import json
import sys

import numpy
from xiaozhi_sdk import XiaoZhiWebsocket

MAC = "aa:bb:cc:dd:ee:ff"
FRAME = 16000 * 60 // 1000


async def main(url):
    ended = asyncio.Event()

    async def on_message(message):
        print(json.dumps(message, ensure_ascii=False), flush=True)
        if message == {"type": "tts", "state": "stop", "session_id": device.session_id}:
            ended.set()

    device = XiaoZhiWebsocket(on_message, url=url, audio_sample_rate=16000, audio_channels=1)
    assert await device.init_connection(MAC)
    tone = (numpy.sin(numpy.arange(FRAME) * 0.17) * 12000).astype(numpy.int16)
    for _ in range(20):
        await device.send_audio(tone.tobytes())
    await ended.wait()
    samples = sum(len(piece) for piece in device.output_audio_queue)
    print(json.dumps({"decoded": samples}), flush=True)
    await device.close()


asyncio.run(main(sys.argv[1]))
