// The last endings: the newest ten as they happen, or those of the last 1,000 that are searched for.
// Workers of the inbox that published and left are among them only where they are searched for: each
// result has one.

/** What the page says of an ending: the gateway's sentence, in another language with a summary. */
function inBrief({ reason, sentence }) {
  const words = REASONS[language]?.[reason];
  return words ? `${words}（${sentence}）` : sentence;
}

if (initial.admin) {
  const SHOWN_MAX = 100;
  const NEWEST_MAX = 10;
  const TYPING_MS = 200;

  const words = at("endings-filter");
  const failures = at("endings-failures");
  let newest = []; // the first is the last that ended
  let found = null; // what was searched for; null: nothing is
  let remembered = 0; // endings that were looked through
  let typing = 0;

  /** Adds endings, the newest first, to those that are known. */
  function add(endings) {
    const known = new Set(newest.map(({ id }) => id));
    const isWorkerDone = ({ phase, failure }) => phase === "inbox" && !failure;
    const added = endings.filter((one) => !known.has(one.id) && !isWorkerDone(one));
    newest = [...added, ...newest].slice(0, NEWEST_MAX);
    return added.length > 0;
  }

  const isSearching = () => words.value.trim() !== "" || failures.checked;
  const fits = (one) => {
    if (failures.checked && !one.failure) return false;
    const { id, client, task_id, backend, reason, client_code, sentence } = one;
    const texts = [id, client, task_id, backend, reason, client_code, clock(one.closed), sentence];
    const text = texts.concat(inBrief(one)).join(" ").toLowerCase();
    const wanted = words.value.toLowerCase().split(/\s+/);
    return wanted.every((word) => text.includes(word));
  };

  function draw() {
    const lines = (isSearching() ? (found ?? []) : newest).slice(0, SHOWN_MAX).map(row);
    const list = at("endings-list");
    // Only what differs is replaced, so that a text being read or selected stays.
    lines.forEach((line, index) => {
      const old = list.children[index];
      if (!old) list.append(line);
      else if (!old.isEqualNode(line)) old.replaceWith(line);
    });
    while (list.children.length > lines.length) list.lastChild.remove();
    const counts = { shown: number(lines.length), all: number(remembered) };
    let note = "";
    if (isSearching()) note = found ? say("endings_found", counts) : "";
    else if (!newest.length) note = say("endings_none");
    retext(at("endings-note"), note);
  }

  function row(one) {
    const line = document.createElement("li");
    const about = put(line, "p", "soft");
    const button = put(about, "button", "link", one.id);
    button.type = "button";
    about.append(` ${moment(one.closed)}`);
    const what = put(line, "p");
    const summary = REASONS[language]?.[one.reason];
    if (summary) put(what, "span", one.failure ? "bad" : "", summary);
    put(what, "span", summary ? "soft" : one.failure ? "bad" : "", one.sentence);
    const code = one.client_code === null ? "" : ` · ${say("code")} ${one.client_code}`;
    const more = [`${one.reason}${code}`, duration(one.duration_seconds), one.client];
    put(what, "span", "soft", more.join(" · "));
    return line;
  }

  async function search() {
    if (isSearching()) {
      try {
        const reply = await fetch("connections/closed?limit=1000", { cache: "no-store" });
        const { closed } = await reply.json();
        remembered = closed.length;
        found = closed.filter(fits);
      } catch {
        // Contact is lost, which live.js shows.
      }
    }
    draw();
  }

  at("endings-list").addEventListener("click", ({ target }) => {
    if (target.matches("button")) story.open(target.textContent);
  });
  words.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(search, TYPING_MS);
  });
  failures.addEventListener("change", search);
  document.addEventListener("snapshot", ({ detail }) => {
    if (add(detail.closed) && isSearching()) search();
    else draw();
  });
  inOtherWords.push(search);
  draw();
  fetch("connections/closed", { cache: "no-store" })
    .then((reply) => reply.json())
    .then(({ closed }) => {
      newest = newest.filter(({ id }) => !closed.some((one) => one.id === id));
      const later = newest;
      newest = [];
      add([...later, ...closed]);
      draw();
    })
    .catch(() => {}); // Contact is lost, which live.js shows.
}
