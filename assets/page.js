// The form of the status page: sends a text, shows the answers, plays their audio.

import { Gateway } from "./client.js";

const ANSWERS_MAX = 10;
const STATES = {
  connecting: "Connecting…",
  uploading: "Sending…",
  waiting: "Waiting for the answer…",
  answering: "Answering…",
  reconnecting: "The connection was lost, trying again…",
};

const byId = (name) => document.getElementById("talk-" + name);
const form = byId("form");
const text = byId("text");
const send = byId("send");
const cancel = byId("stop");
const state = byId("state");
const answers = byId("answers");
// By the address of the library, so that it also works behind a server that adds a path prefix.
const gateway = new Gateway();
let current = null; // the newest answer; it may still be heard when it is complete
let isAnswering = false;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!isAnswering && text.value.trim()) ask(text.value);
});
text.addEventListener("keydown", (event) => {
  // Enter also confirms a word in an input method editor; that must not send.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
cancel.addEventListener("click", () => {
  if (!isAnswering) show("warn", "Stopped.");
  current.stop();
});
form.hidden = false;

async function ask(words) {
  current?.stop(); // one voice at a time
  const answer = gateway.ask(words);
  const playback = answer.play();
  const began = performance.now();
  const article = add(null, "article");
  add(article, "p", "you", words);
  const parts = [];
  let firstWords = "";
  let problem = "";

  current = answer;
  isAnswering = true;
  answer.addEventListener("state", () => {
    if (STATES[answer.state]) show("busy", STATES[answer.state]);
  });
  playback.ended.catch(() => {}).finally(() => answer === current && endOfSound());
  show("busy", STATES.connecting);
  state.ariaBusy = "true";
  text.select();
  text.focus();
  send.disabled = true;
  cancel.hidden = false;
  try {
    for await (const part of answer) {
      if (part.type === "text") {
        firstWords ||= `First words after ${((performance.now() - began) / 1000).toFixed(1)} s.`;
        parts[part.index] = addResult(article, part.message);
        if (!article.isConnected) place(article);
      } else if (part.type === "audio_end") {
        addPlayer(parts[part.index], await answer.blob(part.index));
      } else if (part.type === "error") {
        problem = part.error;
      }
    }
    if (answer.state === "stopped") finish("warn", "Stopped.");
    else if (problem) finish("bad", `Failed: ${problem}.`);
    else finish("good", `Done. ${firstWords}`);
  } catch (error) {
    finish("bad", `Failed: ${error.message}.`);
  }
}

function finish(mood, sentence) {
  isAnswering = false;
  send.disabled = false;
  state.ariaBusy = "false";
  show(mood, sentence);
  if (current.signal.aborted && current.playback.isOver) endOfSound();
}

/** There is nothing left to stop. */
function endOfSound() {
  if (isAnswering) return;
  if (document.activeElement === cancel) text.focus();
  cancel.hidden = true;
}

function show(mood, sentence) {
  state.className = "state " + mood;
  state.textContent = sentence;
}

/** Puts the newest answer first, and removes the oldest ones. */
function place(article) {
  answers.prepend(article);
  while (answers.children.length > ANSWERS_MAX) {
    answers.lastChild.querySelectorAll("audio").forEach((audio) => URL.revokeObjectURL(audio.src));
    answers.lastChild.remove();
  }
}

function addResult(article, { status, content, task_id, audio_present, final, ...others }) {
  const part = add(article, "div");
  add(part, "p", "answer", String(content));
  const about = add(part, "p", "about", "task ");
  const link = add(about, "a", "", task_id);
  link.href = "status/" + encodeURIComponent(task_id);
  if (Object.keys(others).length > 0) {
    const more = add(part, "details");
    add(more, "summary", "", "Further fields");
    add(more, "pre", "", JSON.stringify(others, null, 2));
  }
  return part;
}

/** Shows the audio with controls, to hear it again. It has been playing since its first chunk. */
async function addPlayer(part, blob) {
  const about = part.querySelector(".about");
  const audio = document.createElement("audio");
  audio.controls = true;
  audio.setAttribute("aria-label", "Audio of the answer");
  audio.src = URL.createObjectURL(blob);
  audio.addEventListener("play", () => {
    current.playback.stop();
    answers.querySelectorAll("audio").forEach((other) => other !== audio && other.pause());
  });
  about.before(audio);
  let words = "a sound format that this browser does not know";
  try {
    const context = new OfflineAudioContext(1, 1, 44100);
    const { duration } = await context.decodeAudioData(await blob.arrayBuffer());
    words = `${duration.toFixed(1)} s of sound`;
  } catch {
    // It can still be downloaded.
  }
  about.prepend(`${words} · ${size(blob.size)} · `);
}

function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  if (bytes < 1048576) return `${(bytes / 1024).toFixed(1)} KiB`;
  return `${(bytes / 1048576).toFixed(1)} MiB`;
}

/** Adds an element. Values from outside are only ever added as text. */
function add(parent, name, className = "", words = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = words;
  parent?.append(element);
  return element;
}
