// pipecat's own client in a page, on the address that `talk` is given: connects, waits until the bot is ready, asks it
// something, and listens until the beep of the microphone has come back. Returns what happened.
import { PipecatClient } from "@pipecat-ai/client-js";
import { WavMediaManager, WebSocketTransport } from "@pipecat-ai/websocket-transport";

class Listening extends WavMediaManager {
  heard = 0;
  loudest = 0;
  bufferBotAudio(data, id) {
    const samples = new Int16Array(data instanceof ArrayBuffer ? data : data.buffer);
    this.heard += samples.length;
    for (const sample of samples) this.loudest = Math.max(this.loudest, Math.abs(sample));
    if (this.loudest > 1000) this.onBeep();
    return super.bufferBotAudio(data, id);
  }
}

export async function talk(url) {
  const media = new Listening();
  const beep = new Promise((resolve) => (media.onBeep = resolve));
  const states = [];
  const client = new PipecatClient({
    transport: new WebSocketTransport({ mediaManager: media }),
    enableMic: true,
    callbacks: { onTransportStateChanged: (state) => states.push(state) },
  });
  await client.connect({ ws_url: url });
  const answer = await client.sendClientRequest("question", { text: "こんにちは" }, 10000);
  await beep;
  await client.disconnect();
  return { answer, heard: media.heard, loudest: media.loudest, states };
}
