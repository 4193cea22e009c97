/** How often a recording hands out what it has, in milliseconds. */
const SLICE_MS = 250;

/** What a recording is made as: the first that the browser can make. */
const TYPES = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];

/**
 * A recording in pieces, while it is being made. Ends with {@link Recording.finish} or the stream.
 */
export class Recording implements AsyncIterable<Blob> {
  /** The container and codec of the recording. */
  readonly type: string;
  #recorder: MediaRecorder;
  #pieces: Blob[] = [];
  #isOver = false;
  #wake: () => void = () => {};

  constructor(stream: MediaStream) {
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    this.#recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    this.type = this.#recorder.mimeType;
    this.#recorder.ondataavailable = ({ data }) => {
      if (data.size > 0) this.#pieces.push(data);
      this.#wake();
    };
    this.#recorder.onstop = this.#recorder.onerror = () => {
      this.#isOver = true;
      this.#wake();
    };
    this.#recorder.start(SLICE_MS);
  }

  /** The speaker has finished: what is recorded so far is the whole. */
  finish(): void {
    if (this.#recorder.state !== "inactive") this.#recorder.stop();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Blob, void> {
    for (;;) {
      yield* this.#pieces.splice(0);
      if (this.#isOver && this.#pieces.length === 0) return;
      if (this.#pieces.length === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}
