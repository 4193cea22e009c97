// The console: a WebSocket to any path of this gateway, and every message on it.
if (initial.admin) {
  const LINES_MAX = 500;
  const TEXT_MAX = 4000; // characters of one message that are shown

  let socket = null;
  let status = () => ["", ""]; // the words of the state, in the language of the page
  const path = at("console-path");
  const frames = at("console-frames");

  for (const route of initial.routes)
    put(at("console-paths"), "option").value = example(route.path);
  path.value = example(initial.routes[0]?.path ?? "/ws/input");

  /** A path that a template matches. */
  function example(template) {
    return template.replace(
      /\{\w+\}/g,
      () => crypto.randomUUID?.() ?? "00000000-0000-4000-8000-000000000000",
    );
  }

  function show(words) {
    status = words;
    const [mood, text] = status();
    at("console-state").className = "state " + mood;
    retext(at("console-state"), text);
  }

  function setOpen(isOpen) {
    at("console-send-text").disabled = !isOpen;
    at("console-file").disabled = !isOpen;
    at("console-close").disabled = socket === null;
    at("console-connect").disabled = socket !== null;
  }

  function line(direction, words) {
    const item = put(frames, "p");
    put(item, "span", "at", clock(Date.now()) + " ");
    put(item, "span", direction === ">" ? "up" : "down", direction + " ");
    item.append(words.length > TEXT_MAX ? words.slice(0, TEXT_MAX) + "…" : words);
    while (frames.childElementCount > LINES_MAX) frames.firstChild.remove();
    frames.scrollTop = frames.scrollHeight;
  }

  at("console-open").addEventListener("submit", (event) => {
    event.preventDefault();
    const url = new URL(path.value, location.origin);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const protocol = at("console-protocol").value.trim();
    let isClosing = false;
    try {
      socket = new WebSocket(url, protocol ? [protocol] : []);
    } catch (error) {
      show(() => ["bad", say("console_bad", { why: error.message })]);
      return;
    }
    const one = socket;
    one.binaryType = "arraybuffer";
    one.begin = () => (isClosing = true);
    show(() => ["busy", say("console_connecting")]);
    setOpen(false);
    one.addEventListener("open", () => {
      const words = one.protocol ? "console_is_open_as" : "console_is_open";
      show(() => ["good", say(words, { protocol: one.protocol })]);
      setOpen(true);
      at("console-text").focus();
    });
    one.addEventListener("message", ({ data }) => {
      line("<", typeof data === "string" ? data : say("binary", { size: bytes(data.byteLength) }));
    });
    one.addEventListener("close", ({ code, reason }) => {
      socket = null;
      const values = () => ({ who: say(isClosing ? "this_page" : "other_side"), code, reason });
      if (code === 1006) show(() => ["bad", say("console_failed")]);
      else show(() => [code === 1000 ? "soft" : "warn", say("console_closed", values())]);
      setOpen(false);
    });
  });

  at("console-close").addEventListener("click", () => {
    socket.begin();
    socket.close(1000);
    at("console-connect").focus();
  });

  at("console-send").addEventListener("submit", (event) => {
    event.preventDefault();
    if (socket?.readyState !== WebSocket.OPEN) return;
    const words = at("console-text").value;
    socket.send(words);
    line(">", words);
    at("console-text").select();
  });
  at("console-text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("console-send").requestSubmit();
  });
  at("console-file").addEventListener("change", async () => {
    const [file] = at("console-file").files;
    at("console-file").value = "";
    if (!file || socket?.readyState !== WebSocket.OPEN) return;
    const data = await file.arrayBuffer();
    socket.send(data);
    line(">", `${file.name} · ${say("binary", { size: bytes(data.byteLength) })}`);
  });

  inOtherWords.push(() => show(status));
}
