// The form to try it: sends a text or a recording, shows the answers, plays their audio.

import { Gateway } from "./client.js";

if (at("talk-form")) beginToTalk();

function beginToTalk() {
  const ANSWERS_MAX = 10;
  const STATES = ["connecting", "uploading", "waiting", "answering", "reconnecting"];
  const MICROPHONE_PROBLEMS = ["NotAllowedError", "NotFoundError", "NotReadableError"];

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
    show("warn", say("talk_stopped"));
    hideStop();
  });
  const noMicrophone = whyNoMicrophone();
  speak.disabled = noMicrophone !== "";
  byId("no-microphone").hidden = noMicrophone === "";
  const explain = () => retext(byId("no-microphone"), noMicrophone && say(noMicrophone));
  explain();
  inOtherWords.push(
    explain,
    () => (speak.textContent = say(microphone ? "talk_done" : "talk_speak")),
  );
  form.hidden = false;

  /** Why this browser offers no microphone here, as a key of WORDS; "" if it may. */
  function whyNoMicrophone() {
    if (!window.isSecureContext) {
      return "mic_insecure";
    }
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
      return "mic_impossible";
    }
    return "";
  }

  async function record() {
    current?.stop(); // one voice at a time
    setBusy(true);
    show("busy", say("talk_asking"));
    try {
      microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      const isKnown = MICROPHONE_PROBLEMS.includes(error.name);
      finish("bad", say("talk_failed", { why: isKnown ? say(error.name) : error.message }));
      return;
    }
    speak.disabled = false;
    speak.textContent = say("talk_done");
    speak.focus(); // which it lost while it was disabled
    ask(microphone, say("talk_spoken"));
    show("busy", say("talk_listening"));
  }

  function endRecording() {
    if (!microphone) return;
    microphone.getTracks().forEach((track) => track.stop());
    microphone = null;
    current.finishRecording();
    askedAt = performance.now();
    show("busy", say("talk_uploading"));
    speak.textContent = say("talk_speak");
    if (document.activeElement === speak) cancel.focus();
    speak.disabled = isBusy || noMicrophone !== "";
  }

  async function ask(question, words) {
    current?.stop(); // one voice at a time
    const answer = gateway.ask(question);
    const playback = answer.play();
    askedAt = performance.now();
    const article = put(null, "article");
    put(article, "p", "you", say("talk_you", { words }));
    const parts = [];
    let firstWords = "";
    let problem = "";
    const part = (index) => {
      parts[index] ??= put(article, "div");
      if (!article.isConnected) place(article);
      return parts[index];
    };

    current = answer;
    answer.addEventListener("state", () => {
      if (STATES.includes(answer.state) && !microphone) show("busy", say("talk_" + answer.state));
    });
    playback.ended.catch(() => {}).finally(() => answer === current && hideStop());
    setBusy(true);
    cancel.hidden = false;
    show("busy", say("talk_connecting"));
    try {
      for await (const { type, index, message, error } of answer) {
        if (type === "text") {
          const time = ((performance.now() - askedAt) / 1000).toFixed(1);
          firstWords ||= say("talk_first", { time });
          addResult(part(index), message);
          if (Array.isArray(message.captions))
            caption(part(index), message.captions, playback, index);
        } else if (type === "audio_end") {
          addPlayer(part(index), await answer.blob(index));
        } else if (type === "error") {
          problem = error;
        }
      }
      if (answer.state === "stopped") finish("warn", say("talk_stopped"));
      else if (problem) finish("bad", say("talk_failed", { why: problem }));
      else finish("good", say("talk_finished", { first: firstWords }));
    } catch (failure) {
      finish("bad", say("talk_failed", { why: failure.message }));
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
      answers.lastChild
        .querySelectorAll("audio")
        .forEach((audio) => URL.revokeObjectURL(audio.src));
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
    put(part, "p", "answer", String(content));
    const about = put(part, "p", "about", say("talk_task"));
    const link = put(about, "a", "", task_id);
    link.href = "status/" + encodeURIComponent(task_id);
    if (Object.keys(others).length > 0) {
      const more = put(part, "details");
      put(more, "summary", "", say("talk_more"));
      put(more, "pre", "", JSON.stringify(others, null, 2));
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
    const about = part.querySelector(".about") ?? put(part, "p", "about", "");
    const audio = document.createElement("audio");
    audio.controls = true;
    audio.setAttribute("aria-label", say("talk_audio"));
    audio.src = URL.createObjectURL(blob);
    audio.addEventListener("play", () => {
      current.playback.stop();
      answers.querySelectorAll("audio").forEach((other) => other !== audio && other.pause());
    });
    about.before(audio);
    let words = say("talk_unknown_sound");
    try {
      const context = new OfflineAudioContext(1, 1, 44100);
      const { duration } = await context.decodeAudioData(await blob.arrayBuffer());
      words = say("talk_sound", { time: duration.toFixed(1) });
    } catch {
      // It can still be downloaded.
    }
    about.prepend(`${words} · ${bytes(blob.size)} · `);
  }
}

applyLanguage();
