// The form of the status page: sends a text or a recording, shows the answers, plays their audio.

import { Gateway } from "./client.js";

const ANSWERS_MAX = 10;
const STATES = {
  connecting: "Connecting…",
  uploading: "Sending…",
  waiting: "Waiting for the answer…",
  answering: "Answering…",
  reconnecting: "The connection was lost, trying again…",
};
const MICROPHONE_PROBLEMS = {
  NotAllowedError: "the microphone is not allowed for this page",
  NotFoundError: "there is no microphone",
  NotReadableError: "another program uses the microphone",
};

const byId = (name) => document.getElementById("talk-" + name);
const form = byId("form");
const text = byId("text");
const send = byId("send");
const speak = byId("speak");
const cancel = byId("stop");
const state = byId("state");
const answers = byId("answers");
// By the address of the library, so that it also works behind a server that adds a path prefix.
const gateway = new Gateway();
let current = null; // the newest answer; it may still be heard when it is complete
let isBusy = false; // from the question to the end of the answer
let microphone = null; // while it records
let askedAt = 0; // when the question was complete, on the page's clock

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (isBusy || !text.value.trim()) return;
  ask(text.value, text.value);
  text.select();
  text.focus();
});
text.addEventListener("keydown", (event) => {
  // Enter also confirms a word in an input method editor; that must not send.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
speak.addEventListener("click", () => (microphone ? endRecording() : record()));
cancel.addEventListener("click", () => {
  current.stop();
  if (isBusy) return; // the end of the answer shows it
  show("warn", "Stopped.");
  hideStop();
});
const noMicrophone = whyNoMicrophone();
speak.disabled = noMicrophone !== "";
byId("no-microphone").hidden = noMicrophone === "";
byId("no-microphone").textContent = noMicrophone;
form.hidden = false;

/** Why this browser offers no microphone here; "" if it may. */
function whyNoMicrophone() {
  if (!window.isSecureContext) {
    return "Speaking needs https:// or localhost: browsers give no microphone to other pages.";
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
    return "Speaking is not possible: this browser cannot record.";
  }
  return "";
}

async function record() {
  current?.stop(); // one voice at a time
  setBusy(true);
  show("busy", "Asking for the microphone…");
  try {
    microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    finish("bad", `Failed: ${MICROPHONE_PROBLEMS[error.name] ?? error.message}.`);
    return;
  }
  speak.disabled = false;
  speak.textContent = "Done";
  speak.focus(); // which it lost while it was disabled
  ask(microphone, "(spoken)");
  show("busy", "Listening… Press Done when you have finished.");
}

function endRecording() {
  if (!microphone) return;
  microphone.getTracks().forEach((track) => track.stop());
  microphone = null;
  current.finishRecording();
  askedAt = performance.now();
  show("busy", STATES.uploading);
  speak.textContent = "Speak";
  if (document.activeElement === speak) cancel.focus();
  speak.disabled = isBusy || noMicrophone !== "";
}

async function ask(question, words) {
  current?.stop(); // one voice at a time
  const answer = gateway.ask(question);
  const playback = answer.play();
  askedAt = performance.now();
  const article = add(null, "article");
  add(article, "p", "you", words);
  const parts = [];
  let firstWords = "";
  let problem = "";
  const part = (index) => {
    parts[index] ??= add(article, "div");
    if (!article.isConnected) place(article);
    return parts[index];
  };

  current = answer;
  answer.addEventListener("state", () => {
    if (STATES[answer.state] && !microphone) show("busy", STATES[answer.state]);
  });
  playback.ended.catch(() => {}).finally(() => answer === current && hideStop());
  setBusy(true);
  cancel.hidden = false;
  show("busy", STATES.connecting);
  try {
    for await (const { type, index, message, error } of answer) {
      if (type === "text") {
        firstWords ||= `First words after ${((performance.now() - askedAt) / 1000).toFixed(1)} s.`;
        addResult(part(index), message);
        if (Array.isArray(message.captions))
          caption(part(index), message.captions, playback, index);
      } else if (type === "audio_end") {
        addPlayer(part(index), await answer.blob(index));
      } else if (type === "error") {
        problem = error;
      }
    }
    if (answer.state === "stopped") finish("warn", "Stopped.");
    else if (problem) finish("bad", `Failed: ${problem}.`);
    else finish("good", `Done. ${firstWords}`);
  } catch (failure) {
    finish("bad", `Failed: ${failure.message}.`);
  }
}

function finish(mood, sentence) {
  endRecording();
  setBusy(false);
  show(mood, sentence);
  if (current?.playback.isOver ?? true) hideStop();
}

function setBusy(value) {
  isBusy = value;
  send.disabled = isBusy;
  speak.disabled = (isBusy && !microphone) || noMicrophone !== "";
  state.ariaBusy = String(isBusy);
}

/** There is nothing left to stop. */
function hideStop() {
  if (isBusy) return;
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

function addResult(part, message) {
  const {
    status,
    content,
    task_id,
    result_id,
    audio_present,
    audio_type,
    final,
    captions,
    ...others
  } = message;
  add(part, "p", "answer", String(content));
  const about = add(part, "p", "about", "task ");
  const link = add(about, "a", "", task_id);
  link.href = "status/" + encodeURIComponent(task_id);
  if (Object.keys(others).length > 0) {
    const more = add(part, "details");
    add(more, "summary", "", "Further fields");
    add(more, "pre", "", JSON.stringify(others, null, 2));
  }
}

/** Shows the words that are being heard: `[{ start: seconds, text }, …]`. */
function caption(part, captions, playback, index) {
  const line = document.createElement("p");
  line.className = "caption";
  line.ariaHidden = "true"; // the whole text is there already
  part.querySelector(".answer").after(line);
  const draw = () => {
    if (playback.isOver) return line.remove();
    const at = playback.position(index) ?? -1;
    line.textContent = captions.filter(({ start }) => start <= at).pop()?.text ?? "";
    requestAnimationFrame(draw);
  };
  draw();
}

/** Shows the audio with controls, to hear it again. It has been playing since its first chunk. */
async function addPlayer(part, blob) {
  const about = part.querySelector(".about") ?? add(part, "p", "about", "");
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
