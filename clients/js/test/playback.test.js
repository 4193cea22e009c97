// Playback and recording in a real browser: headless Chromium, a page with nothing but the library.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { WebSocketServer } from "ws";
import { TASK } from "./fake-gateway.js";

const RATE = 24000;
const client = readFileSync(new URL("../../../assets/client.js", import.meta.url));

/** What the page's gateway does with an output connection; each test sets its own. */
let serve;
let heard;
let server;
let browser;
let origin;

before(async () => {
  server = createServer((request, response) => {
    const isScript = request.url === "/client.js";
    response.setHeader("Content-Type", isScript ? "text/javascript" : "text/html");
    response.end(isScript ? client : "<!doctype html><title>test</title><button>Talk</button>");
  });
  const sockets = new WebSocketServer({ server });
  sockets.on("connection", (socket, request) => {
    if (request.url.startsWith("/ws/output")) return serve(socket);
    heard = { announcements: [], pieces: [] };
    const { promise, resolve } = withResolvers();
    heard.complete = promise;
    socket.send(JSON.stringify({ action: "task_id_assigned", task_id: TASK }));
    socket.on("message", (data, isBinary) => {
      if (isBinary) heard.pieces.push(data);
      else if (JSON.parse(data).action === "data_chunk") heard.announcements.push(JSON.parse(data));
      else {
        socket.send(JSON.stringify({ action: "upload_processed", task_id: TASK }));
        resolve();
      }
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  origin = `http://127.0.0.1:${server.address().port}`;
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--disable-dev-shm-usage",
      "--use-fake-device-for-media-stream",
      "--use-fake-ui-for-media-stream",
    ],
  });
});

after(async () => {
  await browser?.close();
  server?.closeAllConnections();
  server?.close();
});

function withResolvers() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}

const json = (socket, message) => socket.send(JSON.stringify(message));

/** Sends one result whose audio comes in `pieces`, each after the pause that `pause(n)` gives. */
async function speak(socket, pieces, pause = () => 0) {
  json(socket, { status: "success", task_id: TASK, content: "La", audio_present: true });
  const began = performance.now();
  for (const [chunk_id, piece] of pieces.entries()) {
    const wait = began + pause(chunk_id) - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    const made = Date.now();
    json(socket, { type: "audio_chunk", task_id: TASK, chunk_id, total_chunks: null, made });
    socket.send(piece);
  }
  json(socket, { type: "audio_complete", task_id: TASK });
  socket.close(1000, "done");
}

/** A WAV file of a tone, in pieces of `ms` milliseconds; the head is in the first. */
function tone(seconds, ms) {
  const head = Buffer.from("RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0", "latin1");
  const rest = Buffer.alloc(20);
  rest.writeUInt32LE(RATE, 0);
  rest.writeUInt32LE(RATE * 2, 4);
  rest.writeUInt16LE(2, 8);
  rest.writeUInt16LE(16, 10);
  rest.write("data\xff\xff\xff\xff", 12, "latin1");
  const samples = Int16Array.from({ length: RATE * seconds }, (_, n) => 9000 * Math.sin(n / 9));
  const data = Buffer.from(samples.buffer);
  const size = (RATE * 2 * ms) / 1000;
  const pieces = [];
  for (let at = 0; at < data.length; at += size) pieces.push(data.subarray(at, at + size));
  pieces[0] = Buffer.concat([head, rest, pieces[0]]);
  return pieces;
}

/**
 * Opens a page, clicks so that sound is allowed, and runs `script` in it with the library loaded.
 */
async function inPage(script) {
  const page = await browser.newPage({ permissions: ["microphone"] });
  try {
    await page.goto(origin);
    await page.click("button");
    return await page.evaluate(`(async () => {
      const { Gateway } = await import("/client.js");
      // When each buffer was to start, and how long it is.
      window.starts = [];
      const start = AudioBufferSourceNode.prototype.start;
      AudioBufferSourceNode.prototype.start = function (when) {
        window.starts.push([when, this.buffer.duration]);
        return start.call(this, when);
      };
      ${script}
    })()`);
  } finally {
    await page.close();
  }
}

const PLAY = `
  const answer = new Gateway().ask("sing");
  const playback = answer.play();
  let loudest = 0;
  const watch = setInterval(() => (loudest = Math.max(loudest, answer.level)), 20);
  await playback.ended;
  clearInterval(watch);
  const { underruns } = playback;
  return { underruns, loudest, starts, state: answer.state };
`;

/** Seconds of silence between one scheduled piece and the next. */
const gaps = (starts) => starts.slice(1).map(([when], n) => when - starts[n][0] - starts[n][1]);

test("speech that arrives steadily plays without a gap, and moves the mouth", async () => {
  serve = (socket) => speak(socket, tone(1, 20), (n) => n * 20);
  const { underruns, loudest, starts, state } = await inPage(PLAY);
  assert.equal(state, "done");
  assert.ok(starts.length > 10);
  const silent = gaps(starts).filter((gap) => Math.abs(gap) > 1e-6);
  assert.equal(silent.length, underruns, "a gap only where a piece came late");
  assert.ok(loudest > 0.3, `level ${loudest}`);
});

test("the first sound is heard soon after it was made", async (t) => {
  serve = (socket) => speak(socket, tone(0.5, 20), (n) => n * 20);
  const delay = await inPage(`
    const answer = new Gateway().ask("sing");
    const playback = answer.play();
    for await (const part of answer) {
      if (part.type !== "audio") continue;
      // Playback has the part already: when it starts, on the page's clock.
      const { context } = playback;
      while (playback.startedAt === undefined) await new Promise(requestAnimationFrame);
      const { contextTime, performanceTime } = context.getOutputTimestamp();
      const now = contextTime || context.currentTime;
      const at = (contextTime ? performanceTime : performance.now()) + (playback.startedAt - now) * 1000;
      return performance.timeOrigin + at - part.message.made;
    }
  `);
  t.diagnostic(`${delay.toFixed(0)} ms from the first chunk to the first sound`);
  assert.ok(delay > 0 && delay < 1000, `${delay} ms`);
});

test("results are heard one after the other", async () => {
  serve = (socket) => {
    for (const final of [false, true]) {
      json(socket, { status: "success", task_id: TASK, content: "", audio_present: true, final });
      json(socket, { type: "audio_chunk", task_id: TASK, chunk_id: 0, total_chunks: 1 });
      socket.send(Buffer.concat(tone(0.3, 300)));
      json(socket, { type: "audio_complete", task_id: TASK });
    }
    socket.close(1000);
  };
  const { starts } = await inPage(PLAY);
  assert.equal(starts.length, 2);
  assert.ok(gaps(starts)[0] > -1e-6, "they do not overlap");
});

test("speech that varies by 300 ms has at most one gap, in the first second", async (t) => {
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  // Made at 1.5 times real time, each piece delayed by up to 300 ms, in order.
  serve = (socket) => speak(socket, tone(4, 40), (n) => (n * 40) / 1.5 + random() * 300);
  const { underruns, starts } = await inPage(PLAY);
  // Of each gap, when it began, by what had been heard.
  const began = gaps(starts).flatMap((gap, n) => {
    const [when, duration] = starts[n];
    return gap > 1e-6 ? [when + duration - starts[0][0]] : [];
  });
  t.diagnostic(`${underruns} gaps ${began.map((at) => `after ${at.toFixed(2)} s`).join()}`);
  assert.ok(underruns <= 1, `${underruns} gaps`);
  assert.ok(
    began.every((at) => at < 1),
    `gaps after ${began} s`,
  );
  assert.ok(starts.length > 20);
});

test("stop is silent at once", async () => {
  serve = (socket) => speak(socket, tone(3, 20));
  const { state, context, ended, heard, left } = await inPage(`
    // What is connected to the speakers.
    const speakers = new Set();
    const { connect, disconnect } = AudioNode.prototype;
    AudioNode.prototype.connect = function (target, ...rest) {
      if (target === this.context.destination) speakers.add(this);
      return connect.call(this, target, ...rest);
    };
    AudioNode.prototype.disconnect = function (...rest) {
      speakers.delete(this);
      return disconnect.apply(this, rest);
    };
    const answer = new Gateway().ask("sing");
    const playback = answer.play();
    for await (const part of answer) if (part.type === "audio_end") break;
    const heard = speakers.size;
    answer.stop();
    const left = speakers.size; // in the same task
    let ended = false;
    await playback.ended.then(() => (ended = true));
    return { state: answer.state, context: playback.context.state, ended, heard, left };
  `);
  assert.deepEqual({ heard, left }, { heard: 1, left: 0 });
  assert.deepEqual({ context, ended }, { context: "closed", ended: true });
  assert.match(state, /stopped|done/);
});

test("a compressed recording plays while it arrives, and again where pieces of it are no use", async () => {
  // `parts`: in how many pieces the page's own recording comes back to it. Unknown to `MediaSource`
  // is what has no type of its own that it supports.
  for (const [audio_type, parts] of [
    ["audio/webm;codecs=opus", 20],
    ["video/unknown", 20],
    ["audio/mpeg", 20], // a wrong type: the pieces cannot be read, the whole can
  ]) {
    serve = async (socket) => {
      await heard.complete;
      const audio = Buffer.concat(heard.pieces);
      json(socket, {
        status: "success",
        task_id: TASK,
        content: "",
        audio_present: true,
        audio_type,
      });
      const size = Math.ceil(audio.length / parts);
      for (let n = 0; n < parts; n++) {
        json(socket, { type: "audio_chunk", task_id: TASK, chunk_id: n, total_chunks: null });
        socket.send(audio.subarray(n * size, (n + 1) * size));
      }
      json(socket, { type: "audio_complete", task_id: TASK });
      socket.close(1000);
    };
    const { loudest, startedAt } = await inPage(`
      const context = new AudioContext();
      const tone = context.createOscillator();
      const stream = context.createMediaStreamDestination();
      tone.connect(stream);
      tone.start();
      const recorder = new MediaRecorder(stream.stream);
      const recorded = new Promise((resolve) => (recorder.ondataavailable = resolve));
      recorder.start();
      await new Promise((resolve) => setTimeout(resolve, 1000));
      recorder.stop();
      const answer = new Gateway().ask((await recorded).data);
      const playback = answer.play();
      let loudest = 0;
      const watch = setInterval(() => (loudest = Math.max(loudest, answer.level)), 20);
      await playback.ended;
      clearInterval(watch);
      return { loudest, startedAt: playback.startedAt };
    `);
    assert.ok(startedAt > 0, audio_type);
    assert.ok(loudest > 0.3, `level ${loudest} with ${audio_type}`);
  }
});

test("audio that cannot be played is skipped and reported", async () => {
  serve = (socket) => {
    for (const [audio_type, audio, final] of [
      ["audio/flac", Buffer.from("this is no flac"), false],
      ["audio/wav", Buffer.concat(tone(0.3, 300)), true],
    ]) {
      json(socket, {
        status: "success",
        task_id: TASK,
        content: "",
        audio_present: true,
        audio_type,
        final,
      });
      json(socket, { type: "audio_chunk", task_id: TASK, chunk_id: 0, total_chunks: 1 });
      socket.send(audio);
      json(socket, { type: "audio_complete", task_id: TASK });
    }
    socket.close(1000);
  };
  const { starts, problem } = await inPage(`
    const problem = await new Gateway().ask("sing").play().ended.catch(({ name }) => name);
    return { starts, problem };
  `);
  assert.equal(starts.length, 1);
  assert.equal(problem, "EncodingError");
});

test("a microphone is recorded and sent while it speaks", async () => {
  serve = async (socket) => {
    await heard.complete;
    json(socket, { status: "success", task_id: TASK, content: "heard", audio_present: false });
    socket.close(1000);
  };
  const text = await inPage(`
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const gateway = new Gateway();
    const answer = gateway.ask(stream);
    await new Promise((resolve) => setTimeout(resolve, 700));
    answer.finishRecording();
    return answer.text;
  `);
  assert.equal(text, "heard");
  assert.ok(Buffer.concat(heard.pieces).length > 1000);
  assert.ok(heard.announcements.length >= 2, "in pieces, while it was made");
  assert.ok(heard.announcements.every(({ type }) => type === "audio"));
});
