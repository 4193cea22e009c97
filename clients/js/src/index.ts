/**
 * A client for aivtuber-gateway: ask an AI character something, hear and read the answer as it is
 * made.
 *
 * ```js
 * const gateway = new Gateway();
 * const answer = gateway.ask("Hello!");
 * answer.play();
 * for await (const part of answer) if (part.type === "text") console.log(part.content);
 * ```
 *
 * @module
 */
import { Answer as CoreAnswer } from "./answer.js";
import { type AskOptions, Gateway as CoreGateway } from "./gateway.js";
import { Playback, type PlayOptions } from "./playback.js";
import { Recording } from "./recording.js";
import type { Input } from "./upload.js";

export {
  AnswerError,
  ConnectionError,
  GatewayError,
  RefusedError,
  TimeoutError,
  meaning,
} from "./errors.js";
export type { State } from "./answer.js";
export type { AskOptions, GatewayOptions } from "./gateway.js";
export type { ChunkMessage, Part, ResultMessage } from "./messages.js";
export type { Format } from "./pcm.js";
export { type Input, type Upload, type UploadContext, upload } from "./upload.js";
export { Playback, type PlayOptions, Recording };

/** An answer that can be played. */
export class Answer extends CoreAnswer {
  /** What plays it, once {@link Answer.play} was called. */
  playback?: Playback;
  /** The recording that it answers, where a `MediaStream` was asked. */
  recording?: Recording;

  /**
   * Plays the audio while it arrives. Call it from a click or a key: browsers want that for sound.
   */
  play(options?: PlayOptions): Playback {
    return (this.playback ??= new Playback(this, options));
  }

  /** How loud it is right now, from 0 to 1; 0 while nothing plays. */
  get level(): number {
    return this.playback?.level ?? 0;
  }

  /** Ends the recording of a `MediaStream`: the speaker has finished, the answer may begin. */
  finishRecording(): void {
    this.recording?.finish();
  }

  override stop(): void {
    this.recording?.finish();
    this.playback?.stop();
    super.stop();
  }
}

/**
 * A gateway whose answers can be played, and that takes a microphone's `MediaStream` as a question.
 */
export class Gateway extends CoreGateway<Answer> {
  protected override Answer = Answer;

  /**
   * Sends a text or a recording, and gives the answer. A `MediaStream` is recorded and sent while
   * the user speaks, until `answer.finishRecording()` or the end of the stream.
   */
  override ask(input: Input | MediaStream, options?: AskOptions): Answer {
    const isStream = typeof MediaStream !== "undefined" && input instanceof MediaStream;
    if (!isStream) return super.ask(input as Input, options);
    const recording = new Recording(input as MediaStream);
    const answer = super.ask(recording, options);
    answer.recording = recording;
    return answer;
  }
}
