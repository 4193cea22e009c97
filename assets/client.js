// Asks the AI behind a gateway one thing. `gateway` is where it is, such as "ws://localhost:8000"; `on` is told what happens:
//   on.state(sentence)          how far it is
//   on.result(index, message)   an answer: message.content; with message.final === false, more of them follow
//   on.sound(index, blob)       its audio, whole
//   on.end(problem, code)       it is over: null, or what went wrong, with the close code if a close was the reason
// Gives a function that stops it.
export function ask(gateway, text, on) {
  const worthAnotherTry = [1001, 1006, 1011, 1012, 1013];  // something was lost, and nothing refused
  const results = [];                                      // { message, chunks, isWhole }
  let taskId, output, timer, isTaken = false, isOver = false, tries = 0;

  const input = new WebSocket(gateway + "/ws/input");
  input.binaryType = "arraybuffer";
  input.onmessage = ({ data }) => {
    const message = read(data);
    if (message.action === "task_id_assigned" && !taskId) {
      taskId = message.task_id;
      listen();
      (text.match(/[^]{1,4000}/gu) ?? []).forEach((piece, index) => {
        input.send(JSON.stringify({ type: "text", chunk_id: index, action: "data_chunk" }));
        input.send(new TextEncoder().encode(piece));       // bytes make a binary message
      });
      input.send(JSON.stringify({ action: "upload_complete" }));
      on.state("sent");
    } else if (message.action === "upload_processed") {
      isTaken = true;
      on.state("taken, waiting for the answer");
    } else if (message.status === "error" || message.type === "error") {
      end(String(message.error ?? message.message));
    }
  };
  input.onclose = ({ code, reason }) => {
    if (!taskId || (!isTaken && code !== 1000)) end(reason || "the connection for the text was closed", code);
  };

  function listen() {
    let at = -1;     // the result that is being told; after a reconnect they are told again from the first
    let chunk = 0;   // the chunk that the next binary message is
    let problem = null;
    // `from_chunk` counts in the first audio of the task.
    const known = results.find(({ message }) => message.audio_present)?.chunks.length ?? 0;
    output = new WebSocket(`${gateway}/ws/output/${taskId}${known ? `?from_chunk=${known}` : ""}`);
    output.binaryType = "arraybuffer";
    output.onmessage = ({ data }) => {
      const result = results[at];
      if (typeof data !== "string") {
        if (result && !result.isWhole) {
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
        if (result && !result.isWhole) {
          result.isWhole = true;
          on.sound(at, new Blob(result.chunks));
        }
      } else if (message.status === "success") {
        at += 1;
        if (results[at]) return;                           // known from before the reconnect
        results[at] = { message, chunks: [], isWhole: !message.audio_present };
        tries = 0;
        on.result(at, message);
      } else if (message.status === "error") {
        problem = String(message.error);
        if (result && !result.isWhole) result.chunks = [];  // what came of it cannot be gone on with
      }
    };
    output.onclose = ({ code, reason }) => {
      const last = results[results.length - 1];
      const said = problem ?? (reason || "the connection for the answer was closed");
      if (last && last.isWhole && last.message.final !== false) {
        end(problem);
      } else if (worthAnotherTry.includes(code) && tries < 10) {
        const seconds = Math.min(2 ** tries++, 30) * (0.5 + Math.random() / 2);
        timer = setTimeout(listen, seconds * 1000);
        on.state(`${said} (${code}): trying again in ${seconds.toFixed(1)} s`);
      } else {
        end(said, code);
      }
    };
  }

  function read(data) {
    try {
      return JSON.parse(data) ?? {};
    } catch {
      return {};                                           // not for us
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
