import { AnswerError, closeError, type GatewayError, isTransient } from "./errors.js";
import { type ChunkMessage, type Part, parse, type ResultMessage } from "./messages.js";

/**
 * What an answer is doing. `connecting` → `uploading` → `waiting` → `answering`, then one of
 * `done`, `stopped` and `failed`; `reconnecting` in between while a lost connection is opened
 * again.
 */
export type State =
  | "connecting"
  | "uploading"
  | "waiting"
  | "answering"
  | "reconnecting"
  | "done"
  | "stopped"
  | "failed";

/** Attempts in a row that bring nothing new before the answer fails. */
const TRIES_MAX = 10;
const FIRST_PAUSE_MS = 250;
const PAUSE_MS_MAX = 30_000;
/** A page that was hidden for longer may hold a connection that is dead without knowing it. */
const HIDDEN_MS_MAX = 10_000;
/** How long the gateway may take to acknowledge a stop. */
const STOP_MS_MAX = 1000;

/** One result of the task, and how much of its audio has come. */
interface Result {
  message: ResultMessage;
  /** Its number within the task, if the gateway numbers results. */
  id: number | undefined;
  chunks: Uint8Array<ArrayBuffer>[];
  bytes: number;
  nextChunk: number;
  isWhole: boolean;
}

/** A worker's or the gateway's error, as it came. */
interface Problem {
  error: string;
  message: Record<string, unknown>;
}

/** Opens the WebSocket of a task's results with the given query. */
export type OpenOutput = (taskId: string, query: string) => WebSocket;

/**
 * The answer to one question: its parts as they come, and what they add up to.
 *
 * Every consumer sees all parts from the first, whenever it begins. Events: `state`, `part`, `end`.
 */
export class Answer extends EventTarget implements AsyncIterable<Part> {
  /** The task's id, once the back end has assigned it. */
  taskId?: string;
  /** All texts, one per line, when the answer has ended. Rejects if it failed. */
  readonly text: Promise<string>;
  /** Settles when the answer has ended: resolves when done or stopped, rejects if it failed. */
  readonly ended: Promise<void>;
  /** Why it failed, if it did. */
  error?: GatewayError;

  #state: State = "connecting";
  #parts: Part[] = [];
  /** Consumers that have seen all parts so far. */
  #waiting: (() => void)[] = [];
  #results: Result[] = [];
  /** Errors of earlier connections, which a gateway without numbers sends again. */
  #errors = new Set<string>();
  /** The highest number of a result or an error so far. */
  #lastId: number | undefined;
  #end = new AbortController();
  #settle!: (error?: GatewayError) => void;
  #open: OpenOutput;
  #socket: WebSocket | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #tries = 0;

  constructor(open: OpenOutput) {
    super();
    this.#open = open;
    this.ended = new Promise((resolve, reject) => {
      this.#settle = (error) => (error ? reject(error) : resolve());
    });
    this.text = this.ended.then(() =>
      this.#results.flatMap(({ message }) => message.content || []).join("\n"),
    );
    // Both may be ignored: an error also ends the iteration and is in `error`.
    this.ended.catch(() => {});
    this.text.catch(() => {});
    this.#watchPage();
  }

  /** What it is doing. */
  get state(): State {
    return this.#state;
  }

  /** Aborted when the answer has ended. */
  get signal(): AbortSignal {
    return this.#end.signal;
  }

  /** The parts from the first, as they come. Throws a {@link GatewayError} if the answer fails. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Part, void> {
    for (let next = 0; ;) {
      while (next < this.#parts.length) yield this.#parts[next++]!;
      if (this.error) throw this.error;
      if (this.signal.aborted) return;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  /**
   * The whole audio of one result (by default of the first that has audio), when it is complete.
   */
  async blob(index?: number): Promise<Blob> {
    for await (const part of this) {
      if (part.type !== "audio_end" || (index ?? part.index) !== part.index) continue;
      const { chunks, message } = this.#results[part.index]!;
      return new Blob(chunks, { type: message.audio_type ?? audioType(chunks[0]) });
    }
    throw new AnswerError("the answer has no audio");
  }

  /** The media type of a result's audio, such as `audio/wav`; `""` while it is unknown. */
  audioType(index: number): string {
    const result = this.#results[index];
    return result?.message.audio_type ?? audioType(result?.chunks[0]);
  }

  /** Stops the answer: the back end is asked to stop, and nothing more arrives. */
  stop(): void {
    if (this.taskId !== undefined && !this.signal.aborted) this.#sendStop();
    this.finish("stopped");
  }

  /** The task's id is known: listen for its results from now on. */
  listen(taskId: string): void {
    if (this.taskId !== undefined || this.signal.aborted) return;
    this.taskId = taskId;
    this.become("uploading");
    this.#connect();
  }

  /** Notes what the answer is doing, unless it has ended. */
  become(state: State): void {
    if (this.signal.aborted || state === this.#state) return;
    this.#state = state;
    this.dispatchEvent(new Event("state"));
  }

  /** Ends the answer, once. */
  finish(state: "done" | "stopped" | "failed", error?: GatewayError): void {
    if (this.signal.aborted) return;
    if (error) this.error = error;
    this.become(state);
    this.#end.abort();
    this.#drop();
    this.#wake("end");
    this.#settle(error);
  }

  /** Asks the gateway to stop the task. */
  #sendStop(): void {
    // Over the connection that there is, also while it is being opened; else over a new one.
    const isThere = (this.#socket?.readyState ?? 3) <= 1; /* CONNECTING, OPEN */
    const socket = isThere ? this.#socket! : this.#open(this.taskId!, "");
    if (isThere) this.#socket = undefined;
    socket.onmessage = socket.onclose = null;
    const send = () => {
      socket.send('{"type":"control","action":"STOP"}');
      // The gateway closes when it has acknowledged; a Close right behind STOP could overtake it.
      setTimeout(() => socket.close(), STOP_MS_MAX);
    };
    if (socket.readyState === 1) send();
    else socket.onopen = send;
  }

  #add(part: Part): void {
    if (part.type !== "error") this.#tries = 0;
    this.#parts.push(part);
    this.become("answering");
    this.#wake("part");
  }

  #wake(event: "part" | "end"): void {
    this.dispatchEvent(new Event(event));
    this.#waiting.splice(0).forEach((resume) => resume());
  }

  #drop(): void {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    if (!socket) return;
    socket.onmessage = socket.onclose = null;
    socket.close();
    this.#socket = undefined;
  }

  // ---- one connection

  #connect(): void {
    this.#drop();
    const { query, first } = this.#resume();
    const socket = (this.#socket = this.#open(this.taskId!, query));
    socket.binaryType = "arraybuffer";
    const known = new Set(this.#errors);
    let index = first - 1; // the result that the gateway is sending
    let isReceiving = false; // its audio was announced and is not complete
    let chunk: ChunkMessage | undefined; // what the next binary message is
    let problem: Problem | undefined; // the last error, unless something came after it

    const begin = (message: ResultMessage, isStream: boolean) => {
      const { result_id: id } = message;
      const found = this.#results.findIndex((result) => id !== undefined && result.id === id);
      index = found >= 0 ? found : id !== undefined ? this.#results.length : index + 1;
      isReceiving = message.audio_present;
      this.#addResult(index, message, isStream);
    };
    // Audio that no text has announced: a stream, which has no text.
    const beginStream = (message: ResultMessage) => {
      if (isReceiving) return;
      const result_id =
        message.result_id ?? this.#results[index + 1]?.id ?? (this.#lastId ?? -1) + 1;
      begin({ ...message, content: "", audio_present: true, result_id }, true);
    };

    socket.onmessage = ({ data }) => {
      if (problem) this.#add({ type: "error", ...problem });
      problem = undefined;
      if (typeof data !== "string") {
        if (chunk) this.#addChunk(index, chunk, data);
        chunk = undefined;
        return;
      }
      const message = parse(data);
      if (message.type === "audio_chunk") {
        beginStream(message as ResultMessage);
        chunk = message as ChunkMessage;
      } else if (message.type === "audio_complete") {
        beginStream(message as ResultMessage);
        isReceiving = false;
        this.#completeAudio(index);
      } else if (message.type === "control" && message.action === "STOP_ACK") {
        this.finish("stopped");
      } else if (message.status === "success") {
        begin(message as ResultMessage, false);
      } else if (message.status === "progress") {
        this.#add({ type: "progress", message });
      } else if (message.status === "error" && !known.has(data)) {
        const error = String(message.error);
        this.#noteId(message.result_id);
        // The text is there and its audio is not: a part of the answer, not its end.
        const isAudio = !isReceiving && error.startsWith("Audio ") && this.#results[index]?.isWhole;
        if (isReceiving) this.#completeAudio(index);
        isReceiving = false;
        if (isAudio || message.final === false) {
          this.#errors.add(data);
          this.#add({ type: "error", error, message });
        } else {
          problem = { error, message };
        }
      }
    };
    socket.onclose = ({ code, reason }) => this.#handleClose(code, reason, problem);
  }

  /**
   * How to ask for what is missing, and the index of the result that comes first then. A gateway
   * that numbers its results sends nothing twice; an older one begins with the first result again.
   */
  #resume(): { query: string; first: number } {
    const results = this.#results;
    const last = results[results.length - 1];
    if (last && !last.isWhole && last.id !== undefined) {
      const query = `?from_result=${last.id}&from_byte=${last.bytes}`;
      return { query, first: results.length - 1 };
    }
    if (this.#lastId !== undefined) {
      return { query: `?from_result=${this.#lastId + 1}`, first: results.length };
    }
    const known = results.find(({ message }) => message.audio_present)?.nextChunk;
    return { query: known ? `?from_chunk=${known}` : "", first: 0 };
  }

  #noteId(id: unknown): void {
    if (typeof id === "number") this.#lastId = Math.max(id, this.#lastId ?? 0);
  }

  #addResult(index: number, message: ResultMessage, isStream: boolean): void {
    if (this.#results[index]) return; // known from before the reconnect
    this.#noteId(message.result_id);
    this.#results[index] = {
      message,
      id: message.result_id,
      chunks: [],
      bytes: 0,
      nextChunk: 0,
      isWhole: !message.audio_present,
    };
    if (!isStream) this.#add({ type: "text", index, content: message.content, message });
  }

  #addChunk(index: number, message: ChunkMessage, data: ArrayBuffer): void {
    const result = this.#results[index];
    const { chunk_id, offset } = message;
    if (!result || result.isWhole) return;
    // How much of this piece came before the connection was lost.
    const known =
      offset !== undefined
        ? result.bytes - offset
        : chunk_id < result.nextChunk
          ? data.byteLength
          : 0;
    if (known < 0 || (offset === undefined && chunk_id > result.nextChunk)) {
      return this.#handleClose(1006, "a piece of the audio is missing"); // ask for it
    }
    result.nextChunk = Math.max(result.nextChunk, chunk_id + 1);
    if (known >= data.byteLength) return;
    const bytes = new Uint8Array(data, known);
    const part = { type: "audio", index, bytes, offset: result.bytes, message } as const;
    result.chunks.push(bytes);
    result.bytes += bytes.length;
    this.#add(part);
  }

  #completeAudio(index: number): void {
    const result = this.#results[index];
    if (!result || result.isWhole) return;
    result.isWhole = true;
    this.#add({ type: "audio_end", index });
  }

  #handleClose(code: number, reason: string, problem?: Problem): void {
    const last = this.#results[this.#results.length - 1];
    const isComplete = last?.isWhole && last.message.final !== false;
    const mayRetry = isTransient(code) && !(problem && code === 1011);
    if (mayRetry && this.#tries < TRIES_MAX) {
      this.become("reconnecting");
      this.#drop();
      // Shortened by chance, so that many clients do not return in the same moment.
      const pause = Math.min(FIRST_PAUSE_MS * 2 ** this.#tries++, PAUSE_MS_MAX);
      this.#timer = setTimeout(() => this.#connect(), pause * (0.5 + Math.random() / 2));
      return;
    }
    if (problem) this.#add({ type: "error", ...problem });
    if (problem && (code === 1000 || code === 1011)) {
      this.finish("failed", new AnswerError(problem.error, code));
    } else if (code === 1000 && reason === "stopped") {
      this.finish("stopped");
    } else if (code === 1000 && isComplete) {
      this.finish("done");
    } else {
      this.finish("failed", closeError(code, problem?.error ?? reason));
    }
  }

  /** Opens the connection again at once when the network is back or the page wakes up. */
  #watchPage(): void {
    if (typeof document === "undefined") return;
    const options = { signal: this.signal };
    let hiddenAt = Infinity;
    const retry = () => {
      if (this.taskId !== undefined) this.#connect();
    };
    addEventListener("online", retry, options);
    document.addEventListener(
      "visibilitychange",
      () => {
        if (document.hidden) hiddenAt = Date.now();
        else if (Date.now() - hiddenAt > HIDDEN_MS_MAX || this.state === "reconnecting") retry();
      },
      options,
    );
  }
}

/** The media type of audio by its first bytes, or `""`. */
export function audioType(bytes: Uint8Array | undefined): string {
  const head = String.fromCharCode(...(bytes?.subarray(0, 12) ?? []));
  if (head.startsWith("RIFF")) return "audio/wav";
  if (head.startsWith("OggS")) return "audio/ogg";
  if (head.startsWith("fLaC")) return "audio/flac";
  if (head.startsWith("\x1aE\xdf\xa3")) return "audio/webm";
  if (head.slice(4, 8) === "ftyp") return "audio/mp4";
  if (head.startsWith("ID3") || /^\xff[\xe2-\xff]/.test(head)) return "audio/mpeg";
  return "";
}
