"""A bot on pipecat's own WebSocket transport: it repeats the audio that it hears, and answers the client's requests with
what they ask. The argument is the port."""

import asyncio
import sys

from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.transports.websocket.server import SingleClientWebsocketServerParams, SingleClientWebsocketServerTransport
from pipecat.workers.runner import WorkerRunner


class Repeat(FrameProcessor):
    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


async def main(port):
    params = SingleClientWebsocketServerParams(
        audio_in_enabled=True, audio_out_enabled=True, serializer=ProtobufFrameSerializer()
    )
    transport = SingleClientWebsocketServerTransport(host="127.0.0.1", port=port, params=params)
    worker = PipelineWorker(Pipeline([transport.input(), Repeat(), transport.output()]))

    @transport.event_handler("on_websocket_ready")
    async def on_websocket_ready(_):
        print("listening", flush=True)

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(_, client):
        print("client left", client.close_code, flush=True)

    @worker.rtvi.event_handler("on_client_ready")
    async def on_client_ready(rtvi):
        await rtvi.set_bot_ready()

    @worker.rtvi.event_handler("on_client_message")
    async def on_client_message(rtvi, message):
        await rtvi.send_server_response(message, {"asked": message.data})

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


asyncio.run(main(int(sys.argv[1])))
