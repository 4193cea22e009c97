// The form of the status page: sends a text, shows the answers, plays their audio.

import { ask } from "./client.js";

const SHOWN_MAX = 10;
const MEANINGS = {
  1006: "no gateway there, the connection broke, or it was not a WebSocket",
  1008: "the address of this page is not in allowed_origins",
  1009: "the text is too long for the service behind the gateway",
  1011: "the service behind the gateway is not available",
  1012: "the gateway is restarting: try again in a moment",
  1013: "overloaded, or Redis is not available: try again later",
  4008: "the service behind the gateway did not answer in time",
};

const byId = (id) => document.getElementById(id);
const [form, text, send, cancel, state, answers] = ["form", "text", "send", "stop", "state", "answers"].map((id) => byId("talk-" + id));
// Relative to this page, so that it also works behind a server that adds a path prefix.
const gateway = new URL(".", location.href).href.replace(/^http/, "ws").replace(/\/$/, "");
let stop = null;
let silence = () => {};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!stop && text.value.trim()) begin(text.value);
});
text.addEventListener("keydown", (event) => {
  // Enter also confirms a word in an input method editor; that must not send.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
cancel.addEventListener("click", () => {
  stop?.();
  silence();
  finish("warn", "Stopped.");
});
form.hidden = false;

function begin(words) {
  silence();
  const article = add(null, "article");
  add(article, "p", "you", words);
  const sounds = playlist();
  silence = sounds.silence;
  const parts = [];
  const began = performance.now();
  let firstWords = "";
  show("busy", "Connecting\u2026");
  state.ariaBusy = "true";
  text.select();
  text.focus();
  send.disabled = true;
  cancel.hidden = false;
  try {
    stop = ask(gateway, words, {
      state: (sentence) => show("busy", sentence[0].toUpperCase() + sentence.slice(1) + "."),
      result: (index, message) => {
        if (index === 0) firstWords = `First words after ${((performance.now() - began) / 1000).toFixed(1)} s.`;
        parts[index] = answer(article, message);
        if (!article.isConnected) place(article);
      },
      sound: (index, blob) => sounds.add(parts[index], blob),
      end: (problem, code) => {
        if (problem === null) finish("good", `Done. ${firstWords}`);
        else finish("bad", `Failed: ${problem}${code ? ` (close code ${code}${MEANINGS[code] ? `: ${MEANINGS[code]}` : ""})` : ""}.`);
      },
    });
  } catch (error) {
    finish("bad", `Failed: ${error.message}`);
  }
}

function finish(mood, sentence) {
  stop = null;
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

// The newest answer comes first; the oldest ones are removed.
function place(article) {
  answers.prepend(article);
  while (answers.children.length > SHOWN_MAX) {
    answers.lastChild.querySelectorAll("audio").forEach((audio) => URL.revokeObjectURL(audio.src));
    answers.lastChild.remove();
  }
}

function answer(article, { status, content, task_id, audio_present, final, ...others }) {
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

// Shows audio as it arrives, and plays one after the other.
function playlist() {
  let isSilent = false;
  let turn = Promise.resolve();
  const audios = [];
  async function reveal(part, blob) {
    const bytes = await blob.arrayBuffer();
    const about = part.querySelector(".about");
    about.prepend(size(bytes.byteLength) + " \u00b7 ");
    const audio = document.createElement("audio");
    audio.controls = true;
    audio.setAttribute("aria-label", "Audio of the answer");
    audio.src = URL.createObjectURL(blob);
    about.before(audio);
    audios.push(audio);
    // Started by hand, it silences the others.
    audio.addEventListener("play", () => audios.forEach((other) => other !== audio && other.pause()));
    try {
      const sound = await new OfflineAudioContext(1, 1, 44100).decodeAudioData(bytes);
      about.prepend(sound.duration.toFixed(1) + " s of sound \u00b7 ");
    } catch {
      about.prepend("a sound format that this browser does not know \u00b7 ");
    }
    return audio;
  }
  async function play(audio) {
    if (isSilent) return;
    const isOver = new Promise((done) => ["ended", "pause", "error"].forEach((name) => audio.addEventListener(name, done)));
    // Browsers refuse to play before the user has done something; the controls are there for that.
    await audio.play().then(() => isOver, () => {});
  }
  return {
    add: (part, blob) => {
      const revealed = reveal(part, blob);
      turn = turn.then(() => revealed).then(play);
    },
    silence: () => {
      isSilent = true;
      audios.forEach((audio) => audio.pause());
    },
  };
}

function size(bytes) {
  return bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`;
}

// Values from outside are only ever added as text.
function add(parent, name, className = "", words = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = words;
  parent?.append(element);
  return element;
}
