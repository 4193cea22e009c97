import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { WebSocket } from "ws";
import { AnswerError, Gateway, RefusedError, TimeoutError } from "../dist/core.js";
import { fakeGateway, TASK } from "./fake-gateway.js";

/** Runs `body` with a gateway that answers as `options` say, and a client for it. */
async function withGateway(options, body) {
  const fake = await fakeGateway(options);
  try {
    return await body(new Gateway({ url: fake.url, WebSocket }), fake.seen);
  } finally {
    fake.close();
  }
}

const collect = async (answer) => {
  const parts = [];
  for await (const part of answer) parts.push(part);
  return parts;
};

const bytesOf = (parts, index) =>
  Buffer.concat(
    parts.filter((part) => part.type === "audio" && part.index === index).map(({ bytes }) => bytes),
  );

test("text and audio arrive as parts, in order", () =>
  withGateway(
    { results: [{ content: "Hello", audio: Buffer.from("RIFF".padEnd(2500, "x")) }] },
    async (gateway) => {
      const answer = gateway.ask("Hi");
      const parts = await collect(answer);
      assert.deepEqual(
        parts.map(({ type }) => type),
        ["text", "audio", "audio", "audio", "audio_end"],
      );
      assert.deepEqual(
        parts.slice(1, 4).map(({ offset }) => offset),
        [0, 1000, 2000],
      );
      assert.equal(await answer.text, "Hello");
      const blob = await answer.blob();
      assert.equal(blob.type, "audio/wav");
      assert.equal(blob.size, 2500);
      assert.equal(answer.state, "done");
      assert.equal(answer.taskId, TASK);
    },
  ));

test("a second consumer gets all parts too, after the end", () =>
  withGateway(
    { results: [{ content: "One", final: false }, { content: "Two" }] },
    async (gateway) => {
      const answer = gateway.ask("Hi");
      const first = await collect(answer);
      assert.deepEqual(await collect(answer), first);
      assert.equal(await answer.text, "One\nTwo");
    },
  ));

test("a text is sent in pieces that cut no character", () =>
  withGateway({ results: [{ content: "" }] }, async (gateway, seen) => {
    const text = "語".repeat(9000);
    await gateway.ask(text).ended;
    const [{ announcements, pieces }] = seen.uploads;
    assert.deepEqual(announcements[1], { type: "text", chunk_id: 1, action: "data_chunk" });
    assert.equal(announcements.length, 3);
    assert.equal(
      pieces.map((piece) => new TextDecoder("utf-8", { fatal: true }).decode(piece)).join(""),
      text,
    );
  }));

test("a recording is sent as audio, byte for byte, also while it is being made", () =>
  withGateway({ results: [{ content: "" }] }, async (gateway, seen) => {
    const recording = randomBytes(100_000);
    await gateway.ask(new Blob([recording])).ended;
    async function* live() {
      yield recording.subarray(0, 10);
      yield new Blob([recording.subarray(10)]);
    }
    await gateway.ask(live()).ended;
    for (const { announcements, pieces } of seen.uploads) {
      assert.equal(announcements[0].type, "audio");
      assert.deepEqual(Buffer.concat(pieces), recording);
    }
  }));

for (const isNumbered of [true, false]) {
  const kind = isNumbered ? "that numbers its results" : "without numbers";
  test(`cuts at random moments lose and repeat nothing, with a gateway ${kind}`, async () => {
    const audio = [randomBytes(20_500), randomBytes(7_300)];
    const results = [
      { content: "One", audio: audio[0], final: false },
      { content: "Two", final: false },
      { content: "Three", audio: audio[1] },
    ];
    let sent = 0;
    let cuts = 0;
    // Ever later, so that the client of a gateway without numbers gets on, too.
    const cut = () => ++sent % (13 + 7 * cuts) === 0 && cuts < 8 && ++cuts > 0;
    await withGateway({ results, isNumbered, cut }, async (gateway, seen) => {
      const answer = gateway.ask("Hi");
      const parts = await collect(answer);
      assert.equal(await answer.text, "One\nTwo\nThree");
      assert.deepEqual(bytesOf(parts, 0), audio[0]);
      assert.deepEqual(bytesOf(parts, 2), audio[1]);
      assert.ok(seen.outputs > 2, "connections were cut");
      const texts = parts.filter(({ type }) => type === "text").map(({ content }) => content);
      assert.deepEqual(texts, ["One", "Two", "Three"]);
    });
  });
}

test("audio without a text is a result of its own, also when it is resumed", async () => {
  const audio = [randomBytes(9_500), Buffer.alloc(0), randomBytes(3_000), randomBytes(12_500)];
  const results = [
    { audio: audio[0] },
    { audio: audio[1] },
    { content: "Said", audio: audio[2], final: false },
    { audio: audio[3] },
  ];
  let sent = 0;
  const cut = () => ++sent % 9 === 0 && sent < 80;
  await withGateway({ results, isNumbered: true, cut }, async (gateway, seen) => {
    const answer = gateway.ask("Hi");
    const parts = await collect(answer);
    audio.forEach((bytes, index) => assert.deepEqual(bytesOf(parts, index), bytes, `${index}`));
    assert.equal(parts.filter(({ type }) => type === "audio_end").length, 4);
    assert.equal(await answer.text, "Said");
    assert.ok(seen.outputs > 3, "connections were cut");
    assert.match(seen.queries.join(" "), /from_result=3&from_byte=\d+/);
  });
});

for (const isNumbered of [true, false]) {
  const kind = isNumbered ? "that numbers its results" : "without numbers";
  test(`an error that is not final comes once, however often, with a gateway ${kind}`, async () => {
    const results = [
      { content: "One", final: false },
      { error: "one sentence failed", final: false },
      { content: "Two", audio: randomBytes(5_000) },
    ];
    let sent = 0;
    const cut = () => ++sent % 6 === 0 && sent < 40;
    await withGateway({ results, isNumbered, cut }, async (gateway, seen) => {
      const parts = await collect(gateway.ask("Hi"));
      assert.equal(parts.filter(({ type }) => type === "error").length, 1);
      assert.deepEqual(bytesOf(parts, 1), results[2].audio);
      assert.ok(seen.outputs > 1, "connections were cut");
    });
  });
}

test("audio that breaks off is an error, and what follows it still comes", () =>
  withGateway(
    {
      results: [
        { content: "One", audio: randomBytes(2_500), fault: "Audio stalled" },
        { content: "Two" },
      ],
    },
    async (gateway) => {
      const answer = gateway.ask("Hi");
      assert.deepEqual(
        (await collect(answer)).map(({ type }) => type),
        ["text", "audio", "audio", "audio", "audio_end", "error", "text"],
      );
      assert.equal(await answer.text, "One\nTwo");
    },
  ));

test("an error that the next attempt mends is not shown", () =>
  withGateway(
    { results: [{ error: "Redis connection not available", closes: [1013, 1013, 1008] }] },
    async (gateway, seen) => {
      const answer = gateway.ask("Hi");
      await assert.rejects(collect(answer), { code: 1008 });
      assert.equal(seen.outputs, 3);
    },
  ));

test("a worker's failure rejects with its words", () =>
  withGateway({ results: [{ error: "the model is gone" }] }, async (gateway) => {
    const answer = gateway.ask("Hi");
    await assert.rejects(
      collect(answer),
      (error) => error instanceof AnswerError && /model is gone/.test(error.message),
    );
    await assert.rejects(answer.text, AnswerError);
    assert.equal(answer.state, "failed");
  }));

test("a failure that is not final is a part of the answer", () =>
  withGateway(
    { results: [{ error: "one sentence failed", final: false }, { content: "Rest" }] },
    async (gateway) => {
      const answer = gateway.ask("Hi");
      assert.deepEqual(
        (await collect(answer)).map(({ type }) => type),
        ["error", "text"],
      );
      assert.equal(await answer.text, "Rest");
    },
  ));

test("missing audio leaves the text", () =>
  withGateway(
    { results: [{ content: "Text" }, { error: "Audio file not found" }] },
    async (gateway) => {
      const answer = gateway.ask("Hi");
      assert.deepEqual(
        (await collect(answer)).map(({ type }) => type),
        ["text", "error"],
      );
      assert.equal(await answer.text, "Text");
    },
  ));

for (const [close, Class] of [
  [4008, TimeoutError],
  [1002, RefusedError],
  [1007, RefusedError],
  [1008, RefusedError],
  [1009, RefusedError],
  [4004, RefusedError],
]) {
  test(`close code ${close} is final`, () =>
    withGateway(
      { results: [{ content: "x", final: false, closes: [close] }] },
      async (gateway, seen) => {
        await assert.rejects(
          gateway.ask("Hi").ended,
          (error) =>
            error instanceof Class && error.code === close && !error.message.includes("close code"),
        );
        assert.equal(seen.outputs, 1);
      },
    ));
}

test("another upload brings the input to the back end", () =>
  withGateway({ results: [{ content: "Hello" }] }, async ({ url }, seen) => {
    const inputs = [];
    const upload = async (input, { begin, signal }) => {
      inputs.push(input, signal.aborted);
      begin(TASK);
    };
    const answer = new Gateway({ url, WebSocket, upload }).ask("Hi");
    assert.equal(await answer.text, "Hello");
    assert.deepEqual([inputs, seen.uploads.length], [["Hi", false], 0]);
  }));

test("an upload that fails fails the answer", async () => {
  const upload = async () => {
    throw new Error("no microphone");
  };
  const answer = new Gateway({ url: "http://127.0.0.1:9", WebSocket, upload }).ask("Hi");
  await assert.rejects(answer.ended, /no microphone/);
  assert.equal(answer.state, "failed");
});

/** Runs `body` within a page, whose events it can dispatch, while no timer ever fires. */
async function withPage(t, body) {
  const page = Object.assign(new EventTarget(), { hidden: false });
  const { document, addEventListener } = globalThis;
  globalThis.document = page;
  globalThis.addEventListener = page.addEventListener.bind(page);
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 0 });
  try {
    await body(page);
  } finally {
    t.mock.timers.reset();
    Object.assign(globalThis, { document, addEventListener });
  }
}

/** Resolves when an answer is in this state. */
const reaches = (answer, state) =>
  new Promise((resolve) => {
    const check = () => answer.state === state && resolve();
    answer.addEventListener("state", check);
    check();
  });

for (const event of ["online", "visibilitychange"]) {
  test(`a lost connection is opened again at once on ${event}`, (t) =>
    withPage(t, (page) =>
      withGateway({ results: [{ content: "x", closes: [1012, 1000] }] }, async (gateway, seen) => {
        const answer = gateway.ask("Hi");
        await reaches(answer, "reconnecting");
        assert.equal(seen.outputs, 1);
        page.dispatchEvent(new Event(event));
        await answer.ended;
        assert.equal(seen.outputs, 2);
      }),
    ));
}

test("a connection is opened anew after a page was hidden for long, and kept after a moment", (t) =>
  withPage(t, (page) =>
    withGateway(
      { results: [{ content: "x", final: false, closes: ["never"] }] },
      async (gateway, seen) => {
        const answer = gateway.ask("Hi");
        await reaches(answer, "answering");
        const hide = (ms) => {
          page.hidden = true;
          page.dispatchEvent(new Event("visibilitychange"));
          t.mock.timers.setTime(Date.now() + ms);
          page.hidden = false;
          page.dispatchEvent(new Event("visibilitychange"));
        };
        hide(5_000);
        const first = seen.left;
        let hasLeft = false;
        first.then(() => (hasLeft = true));
        await new Promise(setImmediate);
        assert.equal(hasLeft, false);
        hide(11_000);
        await first;
        answer.stop();
      },
    ),
  ));

const STOP = '{"type":"control","action":"STOP"}';

test("stop ends the answer and asks the gateway to stop the task, once", () =>
  withGateway(
    { results: [{ content: "x", final: false, closes: ["never"] }] },
    async (gateway, seen) => {
      const controller = new AbortController();
      const answer = gateway.ask("Hi", { signal: controller.signal });
      for await (const part of answer) if (part.type === "text") controller.abort();
      await answer.ended;
      assert.equal(answer.state, "stopped");
      answer.stop();
      await seen.left;
      assert.deepEqual(seen.clientMessages, [STOP]);
      assert.equal(seen.outputs, 1);
    },
  ));

test("stop reaches the gateway also while the connection is lost", () =>
  withGateway(
    { results: [{ content: "x", final: false, closes: [1012] }] },
    async (gateway, seen) => {
      const answer = gateway.ask("Hi");
      await new Promise((resolve) => {
        answer.addEventListener("state", () => answer.state === "reconnecting" && resolve());
      });
      answer.stop();
      while (seen.clientMessages.length === 0) await new Promise(setImmediate);
      assert.deepEqual(seen.clientMessages, [STOP]);
    },
  ));

test("a task that the gateway stopped is stopped", () =>
  withGateway(
    { results: [{ content: "x", final: false, closes: ["stopped"] }] },
    async (gateway) => {
      const answer = gateway.ask("Hi");
      await answer.ended;
      assert.equal(answer.state, "stopped");
    },
  ));

test("a gateway that is not there fails the answer", async () => {
  const fake = await fakeGateway();
  fake.close();
  const answer = new Gateway({ url: fake.url, WebSocket }).ask("Hi");
  await assert.rejects(answer.ended, { name: "ConnectionError" });
});
