import type { Answer } from "./answer.js";
import { type Format, PcmReader, RAW, Resampler } from "./pcm.js";

/** How to play. */
export interface PlayOptions {
  /** The format of audio whose type is `audio/pcm` or unknown; by default 24 kHz, 16 bits, mono. */
  pcm?: Format;
}

/** How long sound is held back at first, so that the next piece can arrive in time. */
const FIRST_CUSHION_S = 0.06;
/** After the first gap: more than the arrival of speech usually varies. */
const CUSHION_S = 0.4;

/**
 * Plays the audio of an answer while it arrives, one result after the other.
 *
 * WAV and raw PCM go through Web Audio without gaps; MP3, WebM and MP4 through `MediaSource` where
 * the browser can; everything else is decoded when it is complete. Browsers start no sound before
 * the user's first click or key: then playing begins with that.
 */
export class Playback {
  /** Resolves when everything has been heard, or playing was stopped. */
  readonly ended: Promise<void>;
  /** How often sound was due and had not arrived. */
  underruns = 0;
  /** The audio clock's time, in seconds, at which the first sound starts. */
  startedAt: number | undefined;
  /** Plays everything; its clock runs while sound is allowed. */
  readonly context: AudioContext;

  #answer: Answer;
  #pcm: Format;
  #analyser: AnalyserNode;
  #samples: Float32Array<ArrayBuffer>;
  #cushion = FIRST_CUSHION_S;
  /** The result that is being scheduled. */
  #index = -1;
  #segments: Segment[] = [];
  /** When the sound that is scheduled so far ends, on the audio clock. */
  #nextAt = 0;
  #stop = new AbortController();

  constructor(answer: Answer, { pcm = RAW }: PlayOptions = {}) {
    this.#answer = answer;
    this.#pcm = pcm;
    this.context = new AudioContext({ latencyHint: "interactive" });
    this.#analyser = this.context.createAnalyser();
    this.#analyser.fftSize = 1024;
    this.#analyser.connect(this.context.destination);
    this.#samples = new Float32Array(this.#analyser.fftSize);
    answer.addEventListener("end", () => answer.state === "stopped" && this.stop());
    for (const event of ["pointerdown", "keydown"]) {
      const options = { signal: this.#stop.signal };
      addEventListener(event, () => void this.context.resume().catch(() => {}), options);
    }
    void this.context.resume().catch(() => {});
    this.ended = this.#run().finally(() => this.stop());
    this.ended.catch(() => {});
  }

  /** How loud it is right now, from 0 to 1: made for the mouth of an avatar, once a frame. */
  get level(): number {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    const power = this.#samples.reduce((sum, sample) => sum + sample * sample, 0);
    return Math.min(1, 3 * Math.sqrt(power / this.#samples.length));
  }

  /**
   * How much of the audio of result `index` has been heard, in seconds, for captions and subtitles;
   * `undefined` before it begins.
   */
  position(index: number): number | undefined {
    const now = this.context.currentTime;
    const begun = this.#segments.filter((segment) => segment.index === index && segment.at <= now);
    const segment = begun[begun.length - 1];
    if (!segment) return undefined;
    const seconds = segment.audio?.currentTime ?? now - segment.at;
    return segment.from + Math.min(seconds, segment.length);
  }

  /** Whether everything has been heard, or playing was stopped. */
  get isOver(): boolean {
    return this.#stop.signal.aborted;
  }

  /** Silence, at once and for good. */
  stop(): void {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    this.#analyser.disconnect(); // closing takes a moment
    void this.context.close().catch(() => {});
  }

  async #run(): Promise<void> {
    let sound: Sound | undefined;
    let problem: unknown;
    // What cannot be played is skipped, and reported at the end.
    const play = async (step: () => void | Promise<void>): Promise<void> => {
      try {
        await step();
      } catch (error) {
        problem ??= error;
        sound = undefined;
      }
    };
    const end = async (): Promise<void> => {
      await play(() => sound?.end());
      sound = undefined;
    };
    try {
      for await (const part of this.#answer) {
        if (this.#stop.signal.aborted) return;
        if (part.type === "audio") {
          if (part.index !== this.#index) {
            await end();
            this.#index = part.index;
            await play(() => void (sound = this.#begin(this.#answer.audioType(part.index))));
          }
          await play(() => sound?.push(part.bytes));
        } else if (part.type === "audio_end" && part.index === this.#index) {
          await end();
        }
      }
    } finally {
      // What came before a failure is heard to its end.
      if (!this.#stop.signal.aborted) await this.#until(this.#nextAt);
    }
    if (problem) throw problem;
  }

  #begin(type: string): Sound {
    const [name, parameters] = type.split(";");
    if (/wav/.test(name!)) return this.#pcmSound(new PcmReader());
    if (!name || /pcm|octet-stream/.test(name)) {
      const rate = Number(/rate=(\d+)/.exec(parameters ?? "")?.[1]);
      return this.#pcmSound(new PcmReader(rate ? { ...this.#pcm, rate } : this.#pcm));
    }
    if (typeof MediaSource !== "undefined" && MediaSource.isTypeSupported(type)) {
      return this.#mediaSound(type);
    }
    return this.#wholeSound();
  }

  #pcmSound(reader: PcmReader): Sound {
    const { sampleRate } = this.context;
    let channels: Resampler[] | undefined;
    const push = (bytes: Uint8Array): void => {
      const read = reader.read(bytes);
      if (read.length === 0 || this.#stop.signal.aborted) return;
      channels ??= read.map(() => new Resampler(reader.format!.rate / sampleRate));
      const samples = read.map((channel, number) => channels![number]!.resample(channel));
      const { length } = samples[0]!;
      if (length === 0) return;
      const buffer = this.context.createBuffer(samples.length, length, sampleRate);
      samples.forEach((channel, number) => buffer.copyToChannel(channel, number));
      this.#schedule(buffer);
    };
    return { push, end: () => {} };
  }

  #wholeSound(): Sound {
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    return {
      push: (bytes) => void pieces.push(bytes),
      end: async () => {
        const bytes = await new Blob(pieces).arrayBuffer();
        this.#schedule(await this.context.decodeAudioData(bytes));
      },
    };
  }

  /** Behind what is scheduled already, or as soon as possible. */
  #schedule(buffer: AudioBuffer): void {
    const now = this.context.currentTime;
    if (this.#nextAt < now) {
      if (this.startedAt !== undefined) {
        this.underruns += 1;
        this.#cushion = CUSHION_S;
      }
      // On a whole frame of the clock, as all that follows is: otherwise each seam would be
      // audible.
      const { sampleRate } = this.context;
      this.#nextAt = Math.ceil((now + this.#cushion) * sampleRate) / sampleRate;
    }
    this.startedAt ??= this.#nextAt;
    this.#note(this.#nextAt, buffer.duration);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#analyser);
    source.start(this.#nextAt);
    this.#nextAt += buffer.duration;
  }

  /** Notes that `length` more seconds of the result are to be heard from `at` on. */
  #note(at: number, length: number, audio?: HTMLAudioElement): void {
    const last = this.#segments[this.#segments.length - 1];
    const isSame = last?.index === this.#index;
    if (isSame && Math.abs(last.at + last.length - at) < 1e-4) {
      last.length += length;
      return;
    }
    const from = isSame ? last.from + last.length : 0;
    this.#segments.push({ index: this.#index, at, from, length, audio });
  }

  #mediaSound(type: string): Sound {
    const media = new MediaSource();
    const audio = new Audio(URL.createObjectURL(media));
    // Used where the browser cannot play the file piece by piece, such as MP4 that is not fragmented.
    let whole: Sound | undefined = this.#wholeSound();
    this.context.createMediaElementSource(audio).connect(this.#analyser);
    const stopped = { signal: this.#stop.signal };
    this.#stop.signal.addEventListener("abort", () => audio.pause());
    const event = (target: EventTarget, names: string): Promise<void> =>
      new Promise((resolve) => {
        names.split(" ").forEach((name) => target.addEventListener(name, () => resolve()));
        this.#stop.signal.addEventListener("abort", () => resolve());
      });
    const opened = event(media, "sourceopen").then(() => media.addSourceBuffer(type));
    let hasStarted = false;
    const start = async (): Promise<void> => {
      hasStarted = true;
      whole = undefined;
      await this.#until(this.#nextAt); // the result before it
      void audio
        .play()
        .catch(() => addEventListener("pointerdown", () => void audio.play(), stopped));
      this.startedAt ??= this.context.currentTime;
      this.#note(this.context.currentTime, Infinity, audio);
    };
    const push = async (bytes: Uint8Array<ArrayBuffer>): Promise<void> => {
      await whole?.push(bytes);
      const buffer = await opened;
      if (stopped.signal.aborted || audio.error) return;
      const done = event(buffer, "updateend error");
      buffer.appendBuffer(bytes);
      await done;
      if (!hasStarted && buffer.buffered.length > 0) await start();
    };
    const end = async (): Promise<void> => {
      await opened;
      if (stopped.signal.aborted) return;
      if (whole) return whole.end();
      const over = event(audio, "ended error");
      media.endOfStream();
      await over;
    };
    return { push, end: () => end().finally(() => URL.revokeObjectURL(audio.src)) };
  }

  /** Waits until the audio clock, which stands still while sound is not allowed, shows `time`. */
  async #until(time: number): Promise<void> {
    while (!this.#stop.signal.aborted && this.context.currentTime < time) {
      const wait = (time - this.context.currentTime) * 1000;
      await new Promise((resolve) => setTimeout(resolve, Math.min(Math.max(wait, 5), 100)));
    }
  }
}

/** One result's audio on its way to the speakers. */
interface Sound {
  push(bytes: Uint8Array<ArrayBuffer>): void | Promise<void>;
  end(): void | Promise<void>;
}

/** A part of a result's audio that is heard without a gap. */
interface Segment {
  index: number;
  /** When it begins, on the audio clock. */
  at: number;
  /** Seconds of the result before it. */
  from: number;
  length: number;
  /** What plays it, if that is not Web Audio. */
  audio: HTMLAudioElement | undefined;
}
