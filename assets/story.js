// Everything about one connection: what it is doing, frame by frame, or how it ended.

const story = {
  /** Shows a connection by its id. */
  open() {},
  /** The connections that are open now, as `/connections` describes them. */
  update() {},
};

if (initial.admin) {
  const LINES_MAX = 500;

  let shown = null; // the id of the connection
  let all = []; // open connections
  let ending = null; // how the connection ended
  let events = null; // what happens on it

  story.open = (id) => {
    shown = id;
    ending = null;
    retext(at("story-title"), id);
    at("story-facts").replaceChildren();
    at("story-frames").replaceChildren();
    at("story-end").textContent = "";
    at("story-waiting").hidden = true;
    if (isOpen()) listen();
    draw();
    at("story").showModal();
    at("story").scrollTop = 0;
  };
  story.update = (connections) => {
    all = connections;
    if (shown !== null) draw();
  };

  const isOpen = () => all.some(({ id }) => id === shown);

  /** Follows what happens on it, frame by frame. */
  function listen() {
    at("story-waiting").hidden = false;
    events = new EventSource("events/frames?id=" + encodeURIComponent(shown));
    events.addEventListener("frame", ({ data }) => {
      const { time, from, to, opcode, length, fin, text } = JSON.parse(data);
      const direction = from === "client" ? "up" : "down";
      if (text !== undefined) return line(time, "", text);
      line(time, direction, `${from} → ${to} ${opcode} ${bytes(length)}${fin ? "" : " …"}`);
    });
    events.addEventListener("lost", ({ data }) => {
      line(Date.now(), "", say("story_lost", { n: number(JSON.parse(data).count) }));
    });
  }

  function line(time, className, words) {
    const frames = at("story-frames");
    const isAtEnd = frames.scrollTop + frames.clientHeight >= frames.scrollHeight - 8;
    at("story-waiting").hidden = true;
    const item = put(frames, "p");
    put(item, "span", "at", clock(time, 3) + " ");
    put(item, "span", className, words);
    while (frames.childElementCount > LINES_MAX) frames.firstChild.remove();
    if (isAtEnd) frames.scrollTop = frames.scrollHeight;
  }

  const traffic = ({ frames, bytes: size }) =>
    `${bytes(size)} · ${say("in_frames", { n: number(frames) })}`;
  const code = (value, close) =>
    [value ?? "–", say("close_" + close)].filter((part) => part !== "").join(" · ");

  function draw() {
    const one = all.find(({ id }) => id === shown);
    if (one) drawOpen(one);
    else if (ending) drawEnded(ending);
    else ask();
  }

  function drawOpen(one) {
    drawFacts([
      ["col_state", one.state],
      ["col_client", one.client],
      ["col_task", one.task_id ?? "–"],
      ["col_backend", one.backend ?? "–"],
      ["col_from", traffic(one.from_client)],
      ["col_to", traffic(one.to_client)],
      ["col_idle", duration(one.idle_seconds)],
      ["col_opened", moment(one.opened)],
    ]);
    at("story-end").className = "state good";
    retext(at("story-end"), say("story_open"));
  }

  function drawEnded(one) {
    drawFacts([
      ["ended_by", say("by_" + one.ended_by)],
      ["reason", one.reason],
      ["code_client", code(one.client_code, one.client_close)],
      ["code_backend", code(one.backend_code, one.backend_close)],
      ["col_client", one.client],
      ["col_task", one.task_id ?? "–"],
      ["col_backend", one.backend ?? "–"],
      ["col_from", traffic(one.from_client)],
      ["col_to", traffic(one.to_client)],
      ["lasted", duration(one.duration_seconds)],
      ["col_opened", moment(one.opened)],
      ["ended", moment(one.closed)],
    ]);
    at("story-end").className = "state " + (one.failure ? "bad" : "soft");
    retext(at("story-end"), inBrief(one));
    at("story-waiting").hidden = true;
  }

  function drawFacts(facts) {
    const list = at("story-facts");
    while (list.childElementCount > facts.length) list.lastChild.remove();
    while (list.childElementCount < facts.length) {
      const fact = put(list, "div");
      put(fact, "dt");
      put(fact, "dd");
    }
    facts.forEach(([key, value], index) => {
      retext(list.children[index].children[0], say(key));
      retext(list.children[index].children[1], value);
    });
  }

  /** It is not among the open ones: how did it end? */
  async function ask() {
    const id = shown;
    try {
      const query = "connections/closed?id=" + encodeURIComponent(id);
      const reply = await fetch(query, { cache: "no-store" });
      const [one] = (await reply.json()).closed;
      if (!one || id !== shown) return;
      ending = one;
      drawEnded(one);
    } catch {
      // Contact is lost, which live.js shows.
    }
  }

  at("story-close").addEventListener("click", () => at("story").close());
  at("story").addEventListener("close", () => {
    shown = null;
    events?.close();
    events = null;
  });
  inOtherWords.push(() => shown !== null && draw());
}
