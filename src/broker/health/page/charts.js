// Line charts of the last two minutes. Each series has its colour and its kind of line; the values at the pointer, or
// at the place that the arrow keys have come to, stand in the legend.

const SVG = 'http:' + '//www.w3.org/2000/svg';
const PLACES = 121;

class Chart {
  /** `series`: names. `format`: how a value is written. `scale`: `decimal`, `binary`, or `decades` for wide ranges. */
  constructor(figure, title, series, format, scale = 'decimal') {
    const [logarithmic, base] = [scale === 'decades', scale === 'binary' ? 1024 : 10];
    Object.assign(this, { figure, title, format, logarithmic, base, at: null, width: 600, height: 150 });
    this.series = series.map((name, index) => ({ name, index, values: new Array(PLACES).fill(null) }));
    const caption = make('figcaption');
    this.when = make('span', 'when');
    const legend = make('div', 'legend');
    for (const one of this.series) {
      const entry = make('span');
      entry.append(make('span', `key s${one.index}`), `${one.name} `, one.shown = make('b', '', '–'));
      legend.append(entry);
    }
    caption.append(make('h2', '', title), this.when, legend);
    this.svg = this.shape('svg', { role: 'img', tabindex: '0' });
    figure.replaceChildren(caption, this.svg);
    this.svg.addEventListener('pointermove', (event) => this.query(this.placeAt(event)));
    this.svg.addEventListener('pointerleave', () => this.query(null));
    this.svg.addEventListener('blur', () => this.query(null));
    this.svg.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(this.svg);
  }

  /** The next value of each series; null where nothing is known. */
  push(values) {
    this.series.forEach((one, index) => {
      one.values.shift();
      one.values.push(isNumber(values[index]) ? values[index] : null);
    });
    this.draw();
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined && event.key !== 'Escape') return;
    event.preventDefault();
    const next = (this.at ?? PLACES - 1) + (step ?? 0);
    this.query(step === undefined ? null : Math.max(0, Math.min(PLACES - 1, next)));
  }

  placeAt(event) {
    const x = event.clientX - this.svg.getBoundingClientRect().left - this.left();
    return Math.max(0, Math.min(PLACES - 1, Math.round(x / this.inner() * (PLACES - 1))));
  }

  look(place) {
    this.at = place;
    this.draw();
  }

  resize() {
    const box = this.svg.getBoundingClientRect();
    if (box.width < 1 || (box.width === this.width && box.height === this.height)) return;
    [this.width, this.height] = [box.width, box.height];
    this.draw();
  }

  left() { return 62; }
  inner() { return this.width - this.left() - 6; }
  x(place) { return this.left() + place / (PLACES - 1) * this.inner(); }

  /** Where the values lie: marks at the axis, and the height of each value. */
  scale() {
    const [top, bottom] = [8, this.height - 20];
    const known = this.series.flatMap((one) => one.values).filter(isNumber);
    if (this.logarithmic) {
      const some = known.filter((value) => value > 0);
      const low = Math.floor(Math.log10(Math.min(...some, 1e-6)));
      const high = Math.max(Math.ceil(Math.log10(Math.max(...some, 1e-5))), low + 1);
      const step = Math.ceil((high - low) / 4);
      const marks = [];
      for (let power = low; power <= high; power += step) marks.push(10 ** power);
      const y = (value) => bottom - (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low) * (bottom - top);
      return { marks, y, bottom };
    }
    const most = Math.max(...known, 1e-9);
    const power = this.base ** Math.floor(Math.log(most) / Math.log(this.base));
    const binary = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
    const steps = this.base === 10 ? [1, 2, 3, 4, 5, 6, 8, 10] : binary;
    const limit = steps.map((n) => n * power).find((n) => n >= most) ?? most;
    const y = (value) => bottom - Math.min(1, value / limit) * (bottom - top);
    return { marks: known.some((value) => value > 0) ? [0, limit / 2, limit] : [0], y, bottom };
  }

  draw() {
    const { marks, y, bottom } = this.scale();
    const parts = [];
    for (const value of marks) {
      const at = y(value);
      parts.push(this.shape('line', { class: 'grid', x1: this.left(), x2: this.width - 6, y1: at, y2: at }));
      parts.push(this.text(this.left() - 6, at + 4, this.format(value), 'end'));
    }
    parts.push(this.text(this.left(), this.height - 4, '2 min ago', 'start'));
    parts.push(this.text(this.width - 6, this.height - 4, 'now', 'end'));
    for (const one of this.series) {
      const [line, area] = this.paths(one.values, y, bottom);
      if (!this.logarithmic) parts.push(this.shape('path', { class: `area s${one.index}`, d: area }));
      parts.push(this.shape('path', { class: `line s${one.index}`, d: line }));
    }
    if (this.at !== null) {
      const x = this.x(this.at);
      parts.push(this.shape('line', { class: 'cursor', x1: x, x2: x, y1: 4, y2: bottom }));
    }
    this.svg.setAttribute('viewBox', `0 0 ${this.width} ${this.height}`);
    this.svg.replaceChildren(...parts);
    const place = this.at ?? PLACES - 1;
    const shown = this.series.map((one) => this.format(one.values[place]));
    this.series.forEach((one, index) => say(one.shown, shown[index]));
    say(this.when, this.at === null ? '' : `${PLACES - 1 - place} s ago`);
    const told = this.series.map((one, index) => `${one.name} ${shown[index]}`).join(', ');
    mark(this.svg, 'aria-label', `${this.title}: ${told}`);
  }

  /** The line, with a gap where nothing is known, and the area below it. */
  paths(values, y, bottom) {
    let [line, area, start] = ['', '', null];
    values.forEach((value, place) => {
      const x = this.x(place).toFixed(1);
      if (value !== null) {
        const step = `${x},${y(value).toFixed(1)}`;
        line += start === null ? `M${step}` : `L${step}`;
        area += start === null ? `M${x},${bottom}L${step}` : `L${step}`;
        start ??= x;
      }
      if (start !== null && (value === null || place === values.length - 1)) {
        const end = value === null ? this.x(place - 1).toFixed(1) : x;
        area += `L${end},${bottom}Z`;
        start = null;
      }
    });
    return [line, area];
  }

  shape(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
    return made;
  }

  text(x, y, content, anchor) {
    const made = this.shape('text', { x, y, 'text-anchor': anchor });
    made.textContent = content;
    return made;
  }
}
