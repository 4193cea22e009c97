// A worker in Node: takes tasks from Redis, answers with text and a sound, and publishes.
//
//     npm install ioredis
//     AUDIO_ROOT=/tmp/aivtuber_tasks REDIS_URL=redis://localhost:6379 node worker.mjs
//
// Put your model where `answer` is. `AUDIO_ROOT` is the gateway's `audio_root`.
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Redis from "ioredis";

const redis = new Redis(process.env.REDIS_URL ?? "redis://localhost:6379");
const audioRoot = process.env.AUDIO_ROOT ?? "/tmp/aivtuber_tasks";
const rate = 24_000;

const answer = (text) => `You said: ${text}`;

// A tone, a tenth of a second for each letter, as a WAV file. A voice would go here.
function speak(text, file) {
  const samples = Math.floor((text.length * rate) / 10);
  const wav = Buffer.alloc(44 + samples * 2);
  wav.write("RIFF", 0);
  wav.writeUInt32LE(36 + samples * 2, 4);
  wav.write("WAVEfmt ", 8);
  wav.writeUInt32LE(16, 16);
  wav.writeUInt16LE(1, 20); // PCM
  wav.writeUInt16LE(1, 22); // mono
  wav.writeUInt32LE(rate, 24);
  wav.writeUInt32LE(rate * 2, 28);
  wav.writeUInt16LE(2, 32);
  wav.writeUInt16LE(16, 34);
  wav.write("data", 36);
  wav.writeUInt32LE(samples * 2, 40);
  for (let n = 0; n < samples; n++) {
    wav.writeInt16LE(Math.round(12_000 * Math.sin((2 * Math.PI * 330 * n) / rate)), 44 + n * 2);
  }
  writeFileSync(file, wav);
}

mkdirSync(audioRoot, { recursive: true });
console.log("worker waits for tasks");
for (;;) {
  const [, task] = await redis.brpop("ai_tasks", 0);
  const space = task.indexOf(" ");
  const taskId = task.slice(0, space);
  const reply = answer(task.slice(space + 1));
  // The file is whole before it has its name, and it has its name before the result is published.
  const unfinished = join(audioRoot, `.${taskId}.wav`);
  speak(reply, unfinished);
  renameSync(unfinished, join(audioRoot, `${taskId}.wav`));
  await redis.publish(`task_response:${taskId}`, JSON.stringify({ text: reply, audio_file: `${taskId}.wav` }));
}
