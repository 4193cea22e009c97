/** How the samples of a sound are laid out. */
export interface Format {
  rate: number;
  channels: number;
  /** Bits per sample: 8, 16, 24 or 32. */
  bits: number;
  isFloat: boolean;
}

/** What raw PCM is taken for when nothing says more: speech engines mostly make this. */
export const RAW: Format = { rate: 24000, channels: 1, bits: 16, isFloat: false };

/** Reads a WAV file as it arrives, whatever its pieces are, and gives its samples. */
export class PcmReader {
  /** Known once the head of the file has come; for raw PCM from the start. */
  format: Format | undefined;
  #held = new Uint8Array(0);
  #isInData: boolean;

  /** `format`: the bytes are raw samples; without it they are a WAV file. */
  constructor(format?: Format) {
    this.format = format;
    this.#isInData = format !== undefined;
  }

  /** Takes the next bytes; gives the whole frames of samples that are complete now, per channel. */
  read(bytes: Uint8Array): Float32Array<ArrayBuffer>[] {
    const held = new Uint8Array(this.#held.length + bytes.length);
    held.set(this.#held);
    held.set(bytes, this.#held.length);
    this.#held = held;
    if (!this.#isInData && !this.#readHead()) return [];
    return this.#readSamples();
  }

  /** Chunks of a RIFF file up to `data`. False: more bytes are needed. */
  #readHead(): boolean {
    const view = new DataView(this.#held.buffer, this.#held.byteOffset, this.#held.byteLength);
    for (let at = 12; at + 8 <= view.byteLength;) {
      const name = view.getUint32(at);
      const length = view.getUint32(at + 4, true);
      at += 8;
      if (name === 0x64617461 /* "data"; its length is unknown while the file grows */) {
        if (!this.format) throw new TypeError("a WAV file without a format");
        this.#held = this.#held.subarray(at);
        return (this.#isInData = true);
      }
      if (at + length > view.byteLength) return false;
      if (name === 0x666d7420 /* "fmt " */) {
        const tag = view.getUint16(at, true);
        this.format = {
          // WAVE_FORMAT_EXTENSIBLE has the real tag at the start of its GUID.
          isFloat: (tag === 0xfffe ? view.getUint16(at + 24, true) : tag) === 3,
          channels: view.getUint16(at + 2, true),
          rate: view.getUint32(at + 4, true),
          bits: view.getUint16(at + 14, true),
        };
      }
      at += length + (length & 1);
    }
    return false;
  }

  #readSamples(): Float32Array<ArrayBuffer>[] {
    const { channels, bits, isFloat } = this.format!;
    const size = bits >> 3;
    const frames = Math.floor(this.#held.length / (size * channels));
    const view = new DataView(this.#held.buffer, this.#held.byteOffset);
    const samples = Array.from({ length: channels }, () => new Float32Array(frames));
    for (let frame = 0, at = 0; frame < frames; frame++) {
      for (const channel of samples) {
        channel[frame] = isFloat
          ? view.getFloat32(at, true)
          : size === 1
            ? view.getUint8(at) / 128 - 1
            : size === 2
              ? view.getInt16(at, true) / 0x8000
              : size === 3
                ? (view.getInt16(at + 1, true) * 256 + view.getUint8(at)) / 0x800000
                : view.getInt32(at, true) / 0x80000000;
        at += size;
      }
    }
    this.#held = this.#held.subarray(frames * size * channels);
    return frames > 0 ? samples : [];
  }
}

/**
 * Converts one channel to another sample rate, piece by piece and without a seam between the
 * pieces. (A browser converts each buffer by itself, which clicks where two of them meet.)
 */
export class Resampler {
  #step: number;
  /** The sample before the next piece, and where the next output sample is, counted from it. */
  #last = 0;
  #at = 1;

  /** `step`: input samples for each output sample. */
  constructor(step: number) {
    this.#step = step;
  }

  /** Takes the next samples; gives those of the new rate that lie between samples known so far. */
  resample(input: Float32Array<ArrayBuffer>): Float32Array<ArrayBuffer> {
    if (this.#step === 1) return input;
    const count = Math.max(0, Math.floor((input.length - this.#at) / this.#step) + 1);
    const output = new Float32Array(count);
    for (let n = 0; n < count; n++) {
      const at = this.#at + n * this.#step;
      const whole = Math.floor(at);
      // `input[k]` is sample k + 1, counted from the one before this piece.
      const before = whole === 0 ? this.#last : input[whole - 1]!;
      output[n] = before + (at - whole) * ((input[whole] ?? before) - before);
    }
    this.#at += count * this.#step - input.length;
    this.#last = input[input.length - 1] ?? this.#last;
    return output;
  }
}
