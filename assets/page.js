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
const [form, text, send, cancel, state, answers] = [
  "form",
  "text",
  "send",
  "stop",
  "state",
  "answers",
].map(byId);
// By the address of the library, so that it also works behind a server that shows the gateway
// under a path of its own.
const gateway = new Gateway();
let current = null; // the answer that is under way
let latest = null; // it may still be heard when it is complete

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!current && text.value.trim()) talk(text.value);
});
text.addEventListener("keydown", (event) => {
  // Enter also ends the choice of a word in an input method, which must not send.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
cancel.addEventListener("click", () => current?.stop());
form.hidden = false;

async function talk(words) {
  latest?.playback.stop(); // one voice at a time
  const answer = (current = latest = gateway.ask(words));
  const began = performance.now();
  const seconds = () => ((performance.now() - began) / 1000).toFixed(1);
  const article = add(null, "article");
  add(article, "p", "you", words);
  const parts = [];
  let firstWords = "";
  let problem = null;

  answer.play();
  answer.addEventListener(
    "state",
    () => STATES[answer.state] && show("busy", STATES[answer.state]),
  );
  show("busy", STATES.connecting);
  state.ariaBusy = "true";
  text.select();
  text.focus();
  send.disabled = true;
  cancel.hidden = false;
  try {
    for await (const part of answer) {
      if (part.type === "text") {
        firstWords ||= `First words after ${seconds()} s.`;
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
  current = null;
  if (document.activeElement === cancel) text.focus();
  send.disabled = false;
  cancel.hidden = true;
  state.ariaBusy = "false";
  show(mood, sentence);
}

function show(mood, sentence) {
  state.className = "state " + mood;
  state.textContent = sentence;
}

/** Puts the newest answer first, and removes the oldest. */
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
    add(more, "summary", "", "Further fields of the worker");
    add(more, "pre", "", JSON.stringify(others, null, 2));
  }
  return part;
}

/** Shows the audio with controls, to hear it again. It has been playing since its first chunk. */
async function addPlayer(part, blob) {
  const about = part.querySelector(".about");
  const audio = document.createElement("audio");
  audio.controls = true;
  audio.setAttribute("aria-label", "The answer's audio");
  audio.src = URL.createObjectURL(blob);
  about.before(audio);
  let words = "audio of an unknown format";
  try {
    const context = new OfflineAudioContext(1, 1, 44100);
    const { duration } = await context.decodeAudioData(await blob.arrayBuffer());
    words = `${duration.toFixed(1)} s of audio`;
  } catch {
    // The browser cannot decode it; downloading it is still possible.
  }
  about.prepend(`${words} · ${size(blob.size)} · `);
}

function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1048576
    ? `${(bytes / 1024).toFixed(1)} KiB`
    : `${(bytes / 1048576).toFixed(1)} MiB`;
}

/** Adds an element. What comes from outside is only ever text. */
function add(parent, name, className = "", words = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = words;
  parent?.append(element);
  return element;
}
