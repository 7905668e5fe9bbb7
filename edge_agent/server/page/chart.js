// A small line chart in SVG: five minutes to the left, the newest value beside the title.

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 320;
const HEIGHT = 110;
const LEFT = 40;
const BOTTOM = 16;
const TOP = 6;
const GAP_S = 4;

function element(name, attributes) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

export function shown(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(digits, 4));
}

export class Chart {
  // `lines`: [{name, key, divisor}], drawn over the same axis.
  constructor(parent, title, unit, lines) {
    this.title = title;
    this.unit = unit;
    this.lines = lines;
    this.figure = document.createElement("figure");
    this.caption = document.createElement("figcaption");
    this.svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.figure.append(this.caption, this.svg);
    parent.append(this.figure);
  }

  draw(points, now, seconds, reason) {
    const series = this.lines.map((line) =>
      points.map((point) => {
        const value = point[line.key];
        return [point.at, value === null || value === undefined ? null : value / (line.divisor || 1)];
      }),
    );
    const values = series.flat().map((pair) => pair[1]).filter((value) => value !== null);
    this.svg.replaceChildren();
    this.svg.classList.toggle("empty", !values.length);
    if (!values.length) {
      this.tell(`${this.title}: not measured`, reason || "no reading yet");
      return;
    }
    const top = Math.max(...values) * 1.1 || 1;
    const x = (at) => LEFT + ((at - now + seconds) / seconds) * (WIDTH - LEFT - 4);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
    this.axes(top, y, seconds);
    series.forEach((line, index) => {
      this.svg.append(element("path", { class: `line s${index}`, d: path(line, x, y) }));
    });
    const last = series.map((line) => [...line].reverse().find((pair) => pair[1] !== null));
    const parts = last.map((pair, index) => {
      const name = this.lines.length > 1 ? `${this.lines[index].name} ` : "";
      return pair ? `${name}${shown(pair[1])} ${this.unit}` : `${name}not measured`;
    });
    this.tell(`${this.title}: ${parts.join(", ")}`, `highest in five minutes ${shown(Math.max(...values))} ${this.unit}`);
  }

  axes(top, y, seconds) {
    for (const value of [0, top / 2, top]) {
      this.svg.append(element("path", { class: "grid", d: `M${LEFT} ${y(value)}H${WIDTH - 4}` }));
      const label = element("text", { x: LEFT - 5, y: y(value) + 3, "text-anchor": "end" });
      label.textContent = shown(value);
      this.svg.append(label);
    }
    const ends = [[LEFT, "start", `-${Math.round(seconds / 60)} min`], [WIDTH - 4, "end", "now"]];
    for (const [at, anchor, text] of ends) {
      const label = element("text", { x: at, y: HEIGHT - 3, "text-anchor": anchor });
      label.textContent = text;
      this.svg.append(label);
    }
  }

  tell(headline, detail) {
    this.caption.textContent = headline;
    const small = document.createElement("small");
    small.textContent = detail;
    this.caption.append(small);
    this.svg.setAttribute("aria-label", `${headline}; ${detail}`);
  }
}

function path(line, x, y) {
  let d = "";
  let before = null;
  for (const [at, value] of line) {
    if (value === null) {
      before = null;
      continue;
    }
    d += `${before !== null && at - before < GAP_S ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    before = at;
  }
  return d;
}
