// Asks the AI behind a gateway one question. `gateway` is its URL, such as "ws://localhost:8000".
// `on` has these callbacks:
//   on.state(sentence)          progress, for people
//   on.result(index, message)   a result: message.content; more follow while message.final === false
//   on.sound(index, blob)       the complete audio of a result; blob.type is its media type, if known
//   on.end(problem, code)       the end: null, or what went wrong, and the close code if there was one
// Returns a function that stops it.
export function ask(gateway, text, on) {
  const retryCodes = [1001, 1006, 1011, 1012, 1013];       // lost or overloaded, not refused
  const results = [];                                      // { message, chunks, isComplete }
  let taskId, output, timer, isAccepted = false, isOver = false, tries = 0;

  const input = new WebSocket(gateway + "/ws/input");
  input.binaryType = "arraybuffer";
  input.onmessage = ({ data }) => {
    const message = read(data);
    if (message.action === "task_id_assigned" && !taskId) {
      taskId = message.task_id;
      listen();
      (text.match(/[^]{1,4000}/gu) ?? []).forEach((piece, index) => {
        input.send(JSON.stringify({ type: "text", chunk_id: index, action: "data_chunk" }));
        input.send(new TextEncoder().encode(piece));       // bytes are sent as a binary message
      });
      input.send(JSON.stringify({ action: "upload_complete" }));
      on.state("sent");
    } else if (message.action === "upload_processed") {
      isAccepted = true;
      on.state("accepted, waiting for the answer");
    } else if (message.status === "error" || message.type === "error") {
      end(String(message.error ?? message.message));
    }
  };
  input.onclose = ({ code, reason }) => {
    if (!taskId || (!isAccepted && code !== 1000)) end(reason || "the connection for the text was closed", code);
  };

  function listen() {
    let at = -1;     // index of the current result; after a reconnect all are sent again from the first
    let chunk = 0;   // index of the chunk in the next binary message
    let problem = null;
    // `from_chunk` is a chunk of the task's first audio.
    const known = results.find(({ message }) => message.audio_present)?.chunks.length ?? 0;
    output = new WebSocket(`${gateway}/ws/output/${taskId}${known ? `?from_chunk=${known}` : ""}`);
    output.binaryType = "arraybuffer";
    output.onmessage = ({ data }) => {
      const result = results[at];
      if (typeof data !== "string") {
        if (result && !result.isComplete) {
          result.chunks[chunk] = data;
          tries = 0;
        }
        return;
      }
      const message = read(data);
      if (message.type === "audio_chunk") {
        chunk = message.chunk_id;
        on.state(`audio, part ${chunk + 1} of ${message.total_chunks}`);
      } else if (message.type === "audio_complete") {
        if (result && !result.isComplete) {
          result.isComplete = true;
          on.sound(at, new Blob(result.chunks, { type: audioType(result) }));
        }
      } else if (message.status === "success") {
        at += 1;
        if (results[at]) return;                           // received before the reconnect
        results[at] = { message, chunks: [], isComplete: !message.audio_present };
        tries = 0;
        on.result(at, message);
      } else if (message.status === "error") {
        problem = String(message.error);
        if (result && !result.isComplete) result.chunks = [];  // this audio cannot be resumed
      }
    };
    output.onclose = ({ code, reason }) => {
      const last = results[results.length - 1];
      const why = problem ?? (reason || "the connection for the answer was closed");
      if (last && last.isComplete && last.message.final !== false) {
        end(problem);
      } else if (retryCodes.includes(code) && tries < 10) {
        const seconds = Math.min(2 ** tries++, 30) * (0.5 + Math.random() / 2);
        timer = setTimeout(listen, seconds * 1000);
        on.state(`${why} (${code}): trying again in ${seconds.toFixed(1)} s`);
      } else {
        end(why, code);
      }
    };
  }

  // What the message says, or else what the first bytes are; "" if unknown.
  function audioType({ message, chunks }) {
    if (message.audio_type) return message.audio_type;
    const bytes = new Uint8Array(chunks[0] ?? []);
    const begins = (signature) => [...signature].every((sign, at) => bytes[at] === sign.charCodeAt(0));
    if (begins("RIFF")) return "audio/wav";
    if (begins("OggS")) return "audio/ogg";
    if (begins("fLaC")) return "audio/flac";
    if (begins("ID3") || (bytes[0] === 0xff && bytes[1] >= 0xe0)) return "audio/mpeg";
    return "";
  }

  function read(data) {
    try {
      return JSON.parse(data) ?? {};
    } catch {
      return {};                                           // not a message of this protocol
    }
  }

  function end(problem, code) {
    if (isOver) return;
    isOver = true;
    stop();
    on.end(problem, code);
  }

  function stop() {
    clearTimeout(timer);
    for (const socket of [input, output]) {
      if (!socket) continue;
      socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  return stop;
}
