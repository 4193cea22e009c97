import assert from "node:assert/strict";
import { test } from "node:test";
import { build } from "esbuild";

// Not public, so not in dist/ as a module of its own.
const { outputFiles } = await build({
  absWorkingDir: new URL("..", import.meta.url).pathname,
  entryPoints: ["src/pcm.ts"],
  bundle: true,
  format: "esm",
  write: false,
});
const { PcmReader, Resampler } = await import(
  `data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`
);

function wav({ tag = 1, channels = 1, rate = 24000, bits = 16, extra = 0 }, data) {
  const fmt = Buffer.alloc(24 + extra);
  fmt.write("fmt ", 0);
  fmt.writeUInt32LE(16 + extra, 4);
  fmt.writeUInt16LE(tag, 8);
  fmt.writeUInt16LE(channels, 10);
  fmt.writeUInt32LE(rate, 12);
  fmt.writeUInt16LE(bits, 22);
  if (extra > 0) fmt.writeUInt16LE(3, 32);
  const list = Buffer.from("LIST\x05\0\0\0hello\0", "latin1"); // odd length, padded
  const head = Buffer.from("data\xff\xff\xff\xff", "latin1");
  return Buffer.concat([Buffer.from("RIFF\xff\xff\xff\xffWAVE", "latin1"), fmt, list, head, data]);
}

const SAMPLES = [0, 0.5, -0.5, 0.25, -1];
const LAYOUTS = [
  ["8 bits", { bits: 8 }, Buffer.from(SAMPLES.map((sample) => (sample + 1) * 128))],
  [
    "16 bits",
    { bits: 16 },
    Buffer.from(Int16Array.from(SAMPLES, (sample) => sample * 0x8000).buffer),
  ],
  [
    "24 bits",
    { bits: 24 },
    Buffer.concat(
      SAMPLES.map((sample) => {
        const bytes = Buffer.alloc(3);
        bytes.writeIntLE(sample * 0x800000, 0, 3);
        return bytes;
      }),
    ),
  ],
  [
    "32 bits",
    { bits: 32 },
    Buffer.from(Int32Array.from(SAMPLES, (sample) => sample * 0x80000000).buffer),
  ],
  ["float", { tag: 3, bits: 32 }, Buffer.from(Float32Array.from(SAMPLES).buffer)],
  [
    "extensible float",
    { tag: 0xfffe, bits: 32, extra: 24 },
    Buffer.from(Float32Array.from(SAMPLES).buffer),
  ],
];

for (const [name, layout, data] of LAYOUTS) {
  test(`a WAV file of ${name} is read wherever it is cut`, () => {
    const file = wav(layout, data);
    for (let cut = 0; cut <= file.length; cut++) {
      const reader = new PcmReader();
      const samples = [file.subarray(0, cut), file.subarray(cut)].flatMap((piece) => [
        ...(reader.read(piece)[0] ?? []),
      ]);
      assert.deepEqual(samples, SAMPLES, `cut at ${cut}`);
      assert.equal(reader.format.rate, 24000);
    }
  });
}

test("the channels of a stereo file are separated", () => {
  const data = Buffer.from(Int16Array.from([1, 2, 3, 4], (sample) => sample * 0x1000).buffer);
  const [left, right] = new PcmReader().read(wav({ channels: 2 }, data));
  assert.deepEqual(
    [[...left], [...right]],
    [
      [0.125, 0.375],
      [0.25, 0.5],
    ],
  );
});

for (const [from, to] of [
  [24000, 48000],
  [16000, 44100],
  [48000, 24000],
  [24000, 24000],
]) {
  test(`a tone at ${from} Hz becomes the same tone at ${to} Hz without seams`, () => {
    const tone = Float32Array.from({ length: from / 10 }, (_, n) =>
      Math.sin((2 * Math.PI * 200 * n) / from),
    );
    const resampler = new Resampler(from / to);
    const output = [];
    for (let at = 0, size = 1; at < tone.length; at += size, size = (size * 7 + 3) % 501) {
      output.push(...resampler.resample(tone.slice(at, at + size)));
    }
    assert.ok(Math.abs(output.length - to / 10) <= 2, `${output.length} samples`);
    output.forEach((sample, n) => {
      assert.ok(Math.abs(sample - Math.sin((2 * Math.PI * 200 * n) / to)) < 0.01, `sample ${n}`);
    });
  });
}
