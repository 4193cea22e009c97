import { AnswerError, closeError, type GatewayError } from "./errors.js";
import { parse } from "./messages.js";

/**
 * Something a user says: a text, a recording, or a recording that is still being made, in pieces.
 */
export type Input = string | Blob | BufferSource | AsyncIterable<Blob | BufferSource>;

/** What an {@link Upload} works with. */
export interface UploadContext {
  /** Opens a WebSocket on a path below the gateway's address, such as `ws/input`. */
  open(path: string): WebSocket;
  /** To be called as soon as the task's id is known: the answer is listened for from then on. */
  begin(taskId: string): void;
  /** Aborted when the answer has ended or was stopped. Connections are to be closed then. */
  signal: AbortSignal;
}

/**
 * Brings what the user says to the back end. Resolves when the back end has accepted it, rejects
 * when it did not. Replace it (`new Gateway({ upload })`) for a back end that speaks another input
 * protocol.
 */
export type Upload = (input: Input, context: UploadContext) => Promise<void>;

const TEXT_PIECE_CHARS = 4000;
const AUDIO_PIECE_BYTES = 32 * 1024;
/**
 * Above this many unsent bytes the upload waits, so that a long recording does not pile up in
 * memory.
 */
const UNSENT_BYTES_MAX = 1 << 20;
const UNSENT_POLL_MS = 20;

/** The built-in upload: the protocol of section 5 of the gateway's `docs/protocol.md`. */
export const upload: Upload = (input, { open, begin, signal }) =>
  new Promise((resolve, reject) => {
    const socket = open("ws/input");
    let hasBegun = false;
    signal.addEventListener("abort", () => socket.close());

    const fail = (error: GatewayError) => {
      reject(error);
      socket.close();
    };
    socket.onmessage = ({ data }) => {
      const message = typeof data === "string" ? parse(data) : {};
      if (message.action === "task_id_assigned" && !hasBegun) {
        hasBegun = true;
        begin(message.task_id);
        send(socket, input, signal).catch(fail);
      } else if (message.action === "upload_processed") {
        resolve();
      } else if (message.status === "error" || message.type === "error") {
        fail(new AnswerError(String(message.error ?? message.message)));
      }
    };
    // Some back ends close with 1000 once they have everything, without `upload_processed`.
    socket.onclose = ({ code, reason }) =>
      hasBegun && code === 1000 ? resolve() : reject(closeError(code, reason));
  });

async function send(socket: WebSocket, input: Input, signal: AbortSignal): Promise<void> {
  const type = typeof input === "string" ? "text" : "audio";
  let chunk_id = 0;
  for await (const piece of pieces(input)) {
    while (socket.bufferedAmount > UNSENT_BYTES_MAX && !signal.aborted) {
      await new Promise((done) => setTimeout(done, UNSENT_POLL_MS));
    }
    if (signal.aborted) return;
    socket.send(JSON.stringify({ type, chunk_id: chunk_id++, action: "data_chunk" }));
    socket.send(piece);
  }
  socket.send(JSON.stringify({ action: "upload_complete" }));
}

/** Cuts `input` into pieces that are sent as one binary message each. */
async function* pieces(input: Input): AsyncGenerator<Blob | BufferSource> {
  if (typeof input === "string") {
    // By characters, so that no character is cut.
    for (const piece of input.match(new RegExp(`[^]{1,${TEXT_PIECE_CHARS}}`, "gu")) ?? []) {
      yield new TextEncoder().encode(piece);
    }
  } else if (Symbol.asyncIterator in input) {
    for await (const piece of input) yield* pieces(piece);
  } else {
    const blob = input instanceof Blob ? input : new Blob([input]);
    for (let start = 0; start < blob.size; start += AUDIO_PIECE_BYTES) {
      yield blob.slice(start, start + AUDIO_PIECE_BYTES).arrayBuffer();
    }
  }
}
