// What the gateway says about itself, kept up to date: from `/events` for admins, from `/health` for
// everyone else. The last known state stays on the page when contact is lost, and the page says so.
{
  /** Silence of `/events`, which speaks every second, that counts as lost contact. */
  const SILENCE_MS = 3000;
  const POLL_MS = 5000;
  /** Problems that are neither a backend's nor that of Redis, and the words for what they concern. */
  const OTHER_PROBLEMS = { audio_root: "audio", log: "log" };

  let latest = {
    health: initial.health,
    draining: initial.draining,
    uptime_seconds: initial.uptime_seconds,
  };
  let heardAt = 0; // on this page's clock
  let lostAt = null;
  const charts = initial.admin
    ? [
        ["chart_open", ["now"], number, 4, ({ connections }) => [connections.open]],
        [
          "chart_frames",
          ["from_clients", "to_clients"],
          (value) => number(value, 1),
          4,
          ({ rates }) => [rates.from_client.frames, rates.to_client.frames],
        ],
        [
          "chart_bytes",
          ["from_clients", "to_clients"],
          bytes,
          1024,
          ({ rates }) => [rates.from_client.bytes, rates.to_client.bytes],
        ],
        [
          "chart_backend",
          ["from_backends", "to_backends"],
          bytes,
          1024,
          ({ rates }) => [rates.from_backend.bytes, rates.to_backend.bytes],
        ],
        [
          "chart_lag",
          ["now"],
          (value) => `${number(value, 2)} ms`,
          1,
          ({ process }) => [process.loop_lag_ms],
        ],
        ["chart_memory", ["now"], bytes, 1048576, ({ process }) => [process.memory_bytes]],
      ].map(([title, lines, format, floor, read]) => [
        new Chart(at("charts"), title, lines, format, floor),
        read,
      ])
    : [];

  for (const element of document.querySelectorAll("[data-admin]")) element.hidden = !initial.admin;
  at("strangers").hidden = initial.admin;
  for (const route of initial.routes) {
    const row = put(at("routes-rows"), "tr");
    put(row, "td", "", route.name);
    put(put(row, "td"), "code", "", route.path);
    put(put(row, "td"), "code", "", route.target);
    put(row, "td", "n", "–").dataset.open = route.name;
  }

  function drawState() {
    const word = latest.draining ? "draining" : latest.health.status;
    const state = at("state");
    retext(state, say("state_" + word));
    state.className = "state " + { draining: "warn", degraded: "bad", ok: "good" }[word];
    document.title = `${say("state_" + word)} · aivtuber-gateway`;
    const time = clock(latest.time ?? Date.now());
    const uptime = duration(latest.uptime_seconds);
    retext(at("as-of"), say("as_of", { time, uptime, version: latest.health.version }));
  }

  /** One line of the list: who, how it is, and why. */
  function healthLine(name, mood, words, detail = "", why = "") {
    const line = document.createElement("li");
    put(line, "span", "state " + mood, words);
    const subject = put(line, "p");
    put(subject, "b", "", name);
    if (detail) subject.append(" ", detail);
    if (why) put(line, "p", "why", why);
    return line;
  }

  function adminLines({ health }) {
    const moods = { ok: "good", failed: "bad", untried: "soft" };
    const lines = Object.entries(health.backend_states ?? {}).flatMap(([route, backends]) =>
      Object.entries(backends).map(([url, { state, since, error }]) => {
        const when = since ? say("since", { time: moment(since) }) : "";
        const why = error ? `${error}${when && ` (${when})`}` : "";
        return healthLine(route, moods[state], say("backend_" + state), url, why);
      }),
    );
    const why = (prefix) => {
      const problem = health.problems?.find((one) => one.startsWith(prefix));
      return problem?.slice(prefix.length) ?? "";
    };
    const redis = why("redis: ");
    const isWell = health.redis !== "disconnected" && !redis;
    const mood = isWell ? (health.redis === "disabled" ? "soft" : "good") : "bad";
    const word = say(isWell ? "backend_ok" : "backend_failed");
    const words = [say("redis_" + health.redis), health.redis_address].filter(Boolean).join(" · ");
    lines.push(healthLine(say("redis"), mood, word, words, redis));
    for (const [prefix, name] of Object.entries(OTHER_PROBLEMS)) {
      const what = why(prefix + ": ");
      if (what) lines.push(healthLine(say(name), "bad", say("backend_failed"), "", what));
    }
    return lines;
  }

  function plainLines({ health, draining }) {
    const line = (mood, words) => {
      const item = document.createElement("li");
      put(item, "p", "state " + mood, words);
      return item;
    };
    if (draining) return [line("warn", say("plain_draining"))];
    const lines = Object.entries(health.backends)
      .filter(([, state]) => state !== "ok" || health.status !== "ok")
      .map(([route, state]) => {
        const mood = { ok: "good", failed: "bad", untried: "soft" }[state];
        return line(mood, say("plain_backend_" + state, { route }));
      });
    if (health.redis === "disconnected") lines.push(line("bad", say("plain_redis_disconnected")));
    if (health.status === "ok") lines.unshift(line("good", say("plain_ok")));
    return lines;
  }

  function drawHealth() {
    const lines = initial.admin ? adminLines(latest) : plainLines(latest);
    const list = at("health-list");
    // Only what differs is replaced, so that a text being read or selected stays.
    const same = (a, b) => a && a.isEqualNode(b);
    lines.forEach((line, index) => {
      const old = list.children[index];
      if (!old) list.append(line);
      else if (!same(old, line)) old.replaceWith(line);
    });
    while (list.children.length > lines.length) list.lastChild.remove();
  }

  function drawFigures({ connections, tasks, latency, process }) {
    const spread = ({ p50, p99 }) =>
      p50 === null ? say("none_yet") : `${number(p50, 1)} / ${number(p99, 1)} ms`;
    const figures = [
      ["waiting", number(tasks.waiting)],
      ["sending", number(tasks.sending)],
      ["completed", number(tasks.completed)],
      ["failed", number(tasks.failed)],
      ["to_text", spread(latency.publish_to_text)],
      ["to_audio", spread(latency.publish_to_first_audio)],
      ["opened_total", number(connections.opened_total)],
      ["files", number(process.open_fds)],
    ];
    const list = at("figures");
    if (!list.childElementCount) {
      for (const [key] of figures) {
        const figure = put(list, "div");
        put(figure, "dt");
        put(figure, "dd").dataset.figure = key;
      }
    }
    figures.forEach(([key, value], index) => {
      const [term, figure] = list.children[index].children;
      retext(term, say(key));
      retext(figure, value);
    });
  }

  function draw() {
    drawState();
    drawHealth();
    if (!latest.connections) return;
    drawFigures(latest);
    for (const cell of document.querySelectorAll("[data-open]"))
      retext(cell, number(latest.connections.by_route[cell.dataset.open] ?? 0));
  }

  /** Something was heard of the gateway. */
  function heard(news) {
    latest = { ...latest, ...news };
    heardAt = performance.now();
    lostAt = null;
    at("lost").hidden = true;
    document.body.classList.remove("is-lost");
    draw();
    document.dispatchEvent(new CustomEvent("snapshot", { detail: latest }));
  }

  function lose() {
    if (lostAt === null) lostAt = Date.now();
    const lost = at("lost");
    retext(lost, say("lost", { time: clock(lostAt) }));
    lost.hidden = false;
    document.body.classList.add("is-lost");
  }

  function listen() {
    const source = new EventSource("events");
    source.addEventListener("snapshot", ({ data }) => {
      const snapshot = JSON.parse(data);
      for (const [chart, read] of charts)
        chart.push(Date.parse(snapshot.time) / 1000, read(snapshot));
      heard(snapshot);
    });
    source.addEventListener("error", () => {
      lose();
      // A browser gives up after an answer that is no stream, such as that of a proxy.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
    });
    heardAt = performance.now();
  }

  async function ask() {
    try {
      const [health, ready] = await Promise.all([
        fetch("health", { cache: "no-store" }).then((reply) => reply.json()),
        fetch("ready", { cache: "no-store" }).then((reply) => reply.text()),
      ]);
      const { uptime_seconds } = health;
      heard({
        health,
        uptime_seconds,
        time: Date.now(),
        draining: ready.includes("shutting down"),
      });
    } catch {
      lose();
    }
    setTimeout(ask, POLL_MS);
  }

  inOtherWords.push(
    draw,
    () => charts.forEach(([chart]) => chart.draw()),
    () => lostAt && lose(),
  );
  draw();
  if (initial.admin) {
    listen();
    setInterval(() => {
      if (!document.hidden && performance.now() - heardAt > SILENCE_MS) lose();
    }, 500);
  } else {
    setTimeout(ask, POLL_MS);
  }
}
