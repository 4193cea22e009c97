// Asks the AI behind a gateway one thing. `gateway` is where it is, such as "ws://localhost:8000"; `on` is told what happens:
//   on.state(sentence)          how far it is
//   on.result(index, message)   an answer: message.content; with message.final === false, more of them follow
//   on.sound(index, blob)       its audio, whole
//   on.end(problem, code)       it is over: null, or what went wrong, with the close code if a close was the reason
// Gives a function that stops it.
function ask(gateway, text, on) {
  const worthAnotherTry = [1001, 1006, 1011, 1012, 1013];  // something was lost, and nothing refused
  const results = [];                                      // { message, chunks, isWhole }
  let taskId, output, timer, isTaken = false, isOver = false, tries = 0;

  const input = new WebSocket(gateway + "/ws/input");
  input.binaryType = "arraybuffer";
  input.onmessage = ({ data }) => {
    const message = read(data);
    if (message.action === "task_id_assigned" && !taskId) {
      taskId = message.task_id;
      listen();
      (text.match(/[^]{1,4000}/gu) ?? []).forEach((piece, index) => {
        input.send(JSON.stringify({ type: "text", chunk_id: index, action: "data_chunk" }));
        input.send(new TextEncoder().encode(piece));       // bytes make a binary message
      });
      input.send(JSON.stringify({ action: "upload_complete" }));
      on.state("sent");
    } else if (message.action === "upload_processed") {
      isTaken = true;
      on.state("taken, waiting for the answer");
    } else if (message.status === "error" || message.type === "error") {
      end(String(message.error ?? message.message));
    }
  };
  input.onclose = ({ code, reason }) => {
    if (!taskId || (!isTaken && code !== 1000)) end(reason || "the connection for the text was closed", code);
  };

  function listen() {
    let at = -1;     // the result that is being told; after a reconnect they are told again from the first
    let chunk = 0;   // the chunk that the next binary message is
    let problem = null;
    // `from_chunk` counts in the first audio of the task.
    const known = results.find(({ message }) => message.audio_present)?.chunks.length ?? 0;
    output = new WebSocket(`${gateway}/ws/output/${taskId}${known ? `?from_chunk=${known}` : ""}`);
    output.binaryType = "arraybuffer";
    output.onmessage = ({ data }) => {
      const result = results[at];
      if (typeof data !== "string") {
        if (result && !result.isWhole) {
          result.chunks[chunk] = data;
          tries = 0;
        }
        return;
      }
      const message = read(data);
      if (message.type === "audio_chunk") {
        chunk = message.chunk_id;
        on.state(`audio, part ${chunk + 1} of ${message.total_chunks}`);
      } else if (message.type === "audio_complete") {
        if (result && !result.isWhole) {
          result.isWhole = true;
          on.sound(at, new Blob(result.chunks));
        }
      } else if (message.status === "success") {
        at += 1;
        if (results[at]) return;                           // known from before the reconnect
        results[at] = { message, chunks: [], isWhole: !message.audio_present };
        tries = 0;
        on.result(at, message);
      } else if (message.status === "error") {
        problem = String(message.error);
        if (result && !result.isWhole) result.chunks = [];  // what came of it cannot be gone on with
      }
    };
    output.onclose = ({ code, reason }) => {
      const last = results[results.length - 1];
      const said = problem ?? (reason || "the connection for the answer was closed");
      if (last && last.isWhole && last.message.final !== false) {
        end(problem);
      } else if (worthAnotherTry.includes(code) && tries < 10) {
        const seconds = Math.min(2 ** tries++, 30) * (0.5 + Math.random() / 2);
        timer = setTimeout(listen, seconds * 1000);
        on.state(`${said} (${code}): trying again in ${seconds.toFixed(1)} s`);
      } else {
        end(said, code);
      }
    };
  }

  function read(data) {
    try {
      return JSON.parse(data) ?? {};
    } catch {
      return {};                                           // not for us
    }
  }

  function end(problem, code) {
    if (isOver) return;
    isOver = true;
    stop();
    on.end(problem, code);
  }

  function stop() {
    clearTimeout(timer);
    for (const socket of [input, output]) {
      if (!socket) continue;
      socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  return stop;
}

// ---- the form of the status page

(() => {
  const SHOWN_MAX = 10;
  const MEANINGS = {
    1006: "nobody is there, it was cut, or it never was a WebSocket",
    1008: "the address of this page is not in allowed_origins",
    1009: "the text is too long for the service behind the gateway",
    1011: "the service behind the gateway is away, or was lost",
    1012: "the gateway is restarting: try again in a moment",
    1013: "there is too much to do, or Redis is away: try again later",
    4008: "the service behind the gateway did not answer in time",
  };

  const byId = (id) => document.getElementById(id);
  const [form, text, send, cancel, state, answers] = ["form", "text", "send", "stop", "state", "answers"].map((id) => byId("talk-" + id));
  // Relative to this page, so that it also works where another server shows the gateway under a path of its own.
  const gateway = new URL(".", location.href).href.replace(/^http/, "ws").replace(/\/$/, "");
  let stop = null;
  let silence = () => {};

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!stop && text.value.trim()) begin(text.value);
  });
  text.addEventListener("keydown", (event) => {
    // Enter also ends the choice of a word in an input method, which must not send.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  cancel.addEventListener("click", () => {
    stop?.();
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
    let saysWhole = "";
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
          if (index === 0) saysWhole = `First words after ${((performance.now() - began) / 1000).toFixed(1)} s.`;
          parts[index] = answer(article, message);
          if (!article.isConnected) place(article);
        },
        sound: (index, blob) => sounds.add(parts[index], blob),
        end: (problem, code) => {
          if (problem === null) finish("good", `Done. ${saysWhole}`);
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

  // The newest stands first; the oldest goes.
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
      add(more, "summary", "", "More that the worker said");
      add(more, "pre", "", JSON.stringify(others, null, 2));
    }
    return part;
  }

  // Shows sounds as they come, and plays one after the other.
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
      audio.setAttribute("aria-label", "The answer as sound");
      audio.src = URL.createObjectURL(new Blob([bytes], { type: kind(new Uint8Array(bytes)) }));
      about.before(audio);
      audios.push(audio);
      try {
        const sound = await new OfflineAudioContext(1, 1, 44100).decodeAudioData(bytes);
        about.prepend(sound.duration.toFixed(1) + " s of sound \u00b7 ");
      } catch {
        about.prepend("no sound that this browser knows \u00b7 ");
      }
      return audio;
    }
    async function play(audio) {
      if (isSilent) return;
      const isOver = new Promise((done) => ["ended", "error"].forEach((name) => audio.addEventListener(name, done)));
      // Refused where a browser wants a person to begin: for that there are the controls.
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

  // The protocol does not say what the file is; its first bytes do.
  function kind(bytes) {
    const begins = (...codes) => codes.every((code, at) => bytes[at] === code);
    if (begins(0x52, 0x49, 0x46, 0x46)) return "audio/wav";
    if (begins(0x4f, 0x67, 0x67, 0x53)) return "audio/ogg";
    if (begins(0x66, 0x4c, 0x61, 0x43)) return "audio/flac";
    if (begins(0x49, 0x44, 0x33) || (bytes[0] === 0xff && bytes[1] >= 0xe0)) return "audio/mpeg";
    return "";
  }

  function size(bytes) {
    return bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`;
  }

  // What comes from outside is only ever text.
  function add(parent, name, className = "", words = "") {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.textContent = words;
    parent?.append(element);
    return element;
  }
})();
