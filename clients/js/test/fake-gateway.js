// A gateway in one small server, for tests: the demo's input protocol, and results from a script.
import { WebSocketServer } from "ws";

/**
 * Starts a server. `results`: what every task gets, `{ content, audio?: Buffer, final?, error? }`;
 * without `content`, audio alone, as from a worker that streams it. `fault`: an error in place of the
 * end of its audio. The last result's `closes`: the code of each connection in turn, or "never", or
 * "stopped"; by default 1000.
 * `isNumbered`: results have numbers and streams can be resumed at a byte, as newer gateways do it.
 * `cut(sent)`: called before each message of an output; true cuts the TCP connection there.
 */
export async function fakeGateway({
  results = [],
  isNumbered = false,
  cut = () => false,
  chunkSize = 1000,
} = {}) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  const seen = { uploads: [], queries: [], clientMessages: [], outputs: 0 };
  server.on("connection", (socket, request) => {
    socket.on("error", () => {});
    const url = new URL(request.url, "http://gateway");
    if (url.pathname === "/ws/input") input(socket, seen);
    else output(socket, url, { results, isNumbered, cut, chunkSize, seen });
  });
  await new Promise((resolve) => server.on("listening", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    seen,
    close() {
      server.clients.forEach((client) => client.terminate());
      server.close();
    },
  };
}

export const TASK = "0190d5a0-7c1e-7000-8000-000000000001";

function input(socket, seen) {
  const upload = { announcements: [], pieces: [] };
  seen.uploads.push(upload);
  socket.send(JSON.stringify({ type: "system", action: "task_id_assigned", task_id: TASK }));
  socket.on("message", (data, isBinary) => {
    if (isBinary) return upload.pieces.push(data);
    const message = JSON.parse(data);
    if (message.action === "data_chunk") upload.announcements.push(message);
    if (message.action === "upload_complete") {
      socket.send(
        JSON.stringify({
          type: "system",
          action: "upload_processed",
          status: "queued",
          task_id: TASK,
        }),
      );
    }
  });
}

function output(socket, url, { results, isNumbered, cut, chunkSize, seen }) {
  seen.outputs += 1;
  seen.queries.push(url.search);
  socket.on("message", (data) => seen.clientMessages.push(String(data)));
  seen.left = new Promise((resolve) => socket.on("close", resolve));
  const number = (name) => Number(url.searchParams.get(name) ?? 0);
  let isCut = false;
  const send = (message) => {
    if (isCut) return;
    isCut = cut();
    if (isCut) return socket.terminate();
    socket.send(Buffer.isBuffer(message) ? message : JSON.stringify(message));
  };
  const from = isNumbered ? number("from_result") : 0;
  let firstAudio = true;
  results.slice(from).forEach(({ content, audio, final, error, fault }, position) => {
    const id = from + position;
    const more = { ...(isNumbered && { result_id: id }), ...(final === false && { final }) };
    const fail = (error) => send({ status: "error", error, task_id: TASK, ...more });
    if (error) return fail(error);
    if (content !== undefined) {
      const audio_present = audio !== undefined;
      send({ status: "success", task_id: TASK, content, audio_present, ...more });
    }
    if (!audio) return;
    const total = Math.ceil(audio.length / chunkSize);
    const fromByte = isNumbered && position === 0 ? number("from_byte") : 0;
    const fromChunk =
      firstAudio && !isNumbered ? number("from_chunk") : Math.floor(fromByte / chunkSize);
    firstAudio = false;
    for (let chunk = fromChunk; chunk < total; chunk++) {
      const start = Math.max(chunk * chunkSize, fromByte);
      send({
        type: "audio_chunk",
        task_id: TASK,
        chunk_id: chunk,
        total_chunks: total,
        ...(isNumbered && { offset: start }),
      });
      send(audio.subarray(start, (chunk + 1) * chunkSize));
    }
    if (fault) return fail(fault);
    if (content === undefined) send({ type: "control", action: "END", task_id: TASK });
    send({ type: "audio_complete", task_id: TASK });
  });
  const close = results.at(-1)?.closes?.shift() ?? 1000;
  if (isCut || close === "never") return;
  if (close === "stopped") send({ type: "control", action: "STOP_ACK", task_id: TASK });
  else socket.close(close, "done");
}
