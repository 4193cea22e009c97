// Small charts over five minutes, drawn as SVG. One that has two lines draws the second one dashed,
// so that no colour has to be told apart.

/** Seconds that a chart shows. */
const CHART_SECONDS = 300;

/** A pause in the data after which a line is interrupted, in seconds. */
const CHART_GAP = 3;

class Chart {
  /** `title` and the names of `lines` are keys of WORDS; `format` writes a value. */
  constructor(parent, title, lines, format, floor) {
    Object.assign(this, { title, lines, format, floor, points: [] });
    this.card = put(parent, "div", "chart");
    this.heading = put(this.card, "h3");
    this.numbers = put(this.card, "p");
    const svg = (name, attributes, inside) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      inside?.append(element);
      return element;
    };
    this.picture = svg("svg", { viewBox: "0 0 300 60", preserveAspectRatio: "none", role: "img" });
    svg("line", { x1: 0, x2: 300, y1: 59.5, y2: 59.5 }, this.picture);
    this.paths = lines.map((_, index) => svg("path", index ? { class: "two" } : {}, this.picture));
    this.card.append(this.picture);
    this.top = put(this.card, "p", "top");
  }

  /** Adds a value for each line, seen at `time` in seconds. */
  push(time, values) {
    this.points.push({ time, values });
    while (this.points[0].time < time - CHART_SECONDS) this.points.shift();
    this.draw();
  }

  draw() {
    retext(this.heading, say(this.title));
    const latest = this.points[this.points.length - 1];
    if (!latest) return;
    const highest = Math.max(...this.points.flatMap(({ values }) => values));
    const scale = Math.max(highest, this.floor);
    this.paths.forEach((path, index) => {
      let before = -Infinity;
      const steps = this.points.map(({ time, values }) => {
        const x = CHART_SECONDS - (latest.time - time);
        const y = 58 - (values[index] / scale) * 55;
        const step = `${time - before > CHART_GAP ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
        before = time;
        return step;
      });
      path.setAttribute("d", steps.join(""));
    });
    const shown = this.lines.map((line, index) => [say(line), this.format(latest.values[index])]);
    if (this.numbers.childElementCount !== shown.length) {
      this.numbers.replaceChildren();
      shown.forEach(() => {
        const part = put(this.numbers, "span");
        put(part, "b");
        part.append(" ");
        put(part, "span");
      });
    }
    shown.forEach(([name, value], index) => {
      const [figure, key] = this.numbers.children[index].children;
      retext(figure, value);
      key.className = shown.length > 1 ? (index ? "key two" : "key") : "soft";
      retext(key, name);
    });
    retext(this.top, say("highest", { value: this.format(highest) }));
    const values = shown.map(([name, value]) => `${name} ${value}`).join(", ");
    const label = { title: say(this.title), values, highest: this.format(highest) };
    this.picture.setAttribute("aria-label", say("chart_label", label));
  }
}
