// The table of open connections: sorts, filters, and opens the story of one.
if (initial.admin) {
  /** How often the list is asked for, at most; a long list is asked for less often. */
  const LIST_MS = 2000;
  const LIST_SHARE = 20; // of the time that the last answer took
  const ROWS_MAX = 200;

  const COLUMNS = [
    { key: "id", kind: "text", value: ({ id }) => id },
    { key: "state", kind: "text", value: ({ state }) => state },
    { key: "client", kind: "text", value: ({ client }) => client },
    { key: "task", kind: "text", value: ({ task_id }) => task_id ?? "" },
    { key: "backend", kind: "text", value: ({ backend }) => backend ?? "" },
    {
      key: "from",
      kind: "number",
      value: ({ from_client }) => from_client.bytes,
      traffic: "from_client",
    },
    { key: "to", kind: "number", value: ({ to_client }) => to_client.bytes, traffic: "to_client" },
    { key: "idle", kind: "number", value: ({ idle_seconds }) => idle_seconds },
    { key: "opened", kind: "text", value: ({ opened }) => opened },
  ];

  let all = [];
  let sortedBy = COLUMNS[8];
  let isDescending = true;
  const filter = at("filter");

  const headings = COLUMNS.map((column) => {
    const heading = put(at("connections-head"), "th", column.kind === "number" ? "n" : "");
    heading.scope = "col";
    const button = put(heading, "button");
    button.type = "button";
    button.addEventListener("click", () => {
      isDescending = sortedBy === column ? !isDescending : column.kind === "number";
      sortedBy = column;
      draw();
    });
    return { column, heading, button };
  });
  filter.addEventListener("input", draw);

  function chosen() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = (one) => [one.id, one.route, one.state, one.client, one.task_id, one.backend];
    const fits = (one) => {
      const text = texts(one).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    };
    const order = isDescending ? -1 : 1;
    const collator = new Intl.Collator(language, { numeric: true });
    const compare = (a, b) => {
      const [left, right] = [sortedBy.value(a), sortedBy.value(b)];
      return sortedBy.kind === "number" ? left - right : collator.compare(left, right);
    };
    return all.filter(fits).sort((a, b) => order * (compare(a, b) || collator.compare(a.id, b.id)));
  }

  function draw() {
    for (const { column, heading, button } of headings) {
      retext(button, say("col_" + column.key));
      const direction = isDescending ? "descending" : "ascending";
      heading.setAttribute("aria-sort", column === sortedBy ? direction : "none");
    }
    const shown = chosen();
    const rows = at("connections-rows");
    const known = new Map([...rows.children].map((row) => [row.dataset.id, row]));
    const wanted = shown.slice(0, ROWS_MAX).map((one) => fill(known.get(one.id) ?? row(one), one));
    // Rows are moved, not made anew, so that the focus stays where it is.
    wanted.forEach((row, index) => {
      if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index] ?? null);
    });
    while (rows.children.length > wanted.length) rows.lastChild.remove();
    const counts = { shown: number(wanted.length), all: number(all.length) };
    let note = say(wanted.length < all.length ? "connections_some" : "connections_all", counts);
    if (!all.length) note = say("connections_none");
    else if (!wanted.length) note = say("connections_no_match");
    retext(at("connections-note"), note);
  }

  function row(one) {
    const row = document.createElement("tr");
    row.dataset.id = one.id;
    for (const { kind } of COLUMNS) put(row, "td", kind === "number" ? "n" : "");
    const button = put(row.children[0], "button", "link", one.id);
    button.type = "button";
    button.addEventListener("click", () => story.open(one.id));
    put(row.children[2], "code");
    put(row.children[3], "code");
    put(row.children[4], "code");
    put(row.children[5], "span");
    put(row.children[6], "span");
    return row;
  }

  function fill(row, one) {
    const cells = row.children;
    retext(cells[1], one.state);
    retext(cells[2].firstChild, one.client);
    retext(cells[3].firstChild, one.task_id ?? "");
    retext(cells[4].firstChild, one.backend ?? "");
    for (const [index, { frames, bytes: size }] of [one.from_client, one.to_client].entries()) {
      const cell = cells[5 + index].firstChild;
      retext(cell, bytes(size));
      cell.title = say("in_frames", { n: number(frames) });
    }
    retext(cells[7], duration(one.idle_seconds));
    retext(cells[8], moment(one.opened));
    return row;
  }

  async function ask() {
    let wait = LIST_MS;
    if (!document.hidden) {
      const begun = performance.now();
      try {
        const reply = await fetch("connections", { cache: "no-store" });
        all = (await reply.json()).details ?? [];
        wait = Math.max(LIST_MS, LIST_SHARE * (performance.now() - begun));
        draw();
        story.update(all);
      } catch {
        // Contact is lost, which live.js shows.
      }
    }
    setTimeout(ask, wait);
  }

  inOtherWords.push(draw);
  draw();
  ask();
}
