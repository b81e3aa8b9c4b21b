// The forest plot at a target other than the report's, drawn by the rules of growbench.report.forest and growbench.report.ranking.
"use strict";
const forest = (() => {
  const { made } = savings;
  const { EQUAL, BELOW, ABOVE, SAVES } = estimator;
  const LEDGERS = { reuse: "Reuse ledger: source model free", build: "Build ledger: source model charged" };
  const TITLES = { flops: "Training FLOPs", seconds: "Wall time" };
  const INCH = 72, TEXT = 9.5, SMALL = 8.5; // points

  // Where a method stands, and before whom.
  function group({ saving }, method) {
    if (method.control) return "controls";
    if (isNaN(saving.mean)) return "unknown";
    return saving.relation === BELOW ? "misses" : "meets";
  }

  const last = (value) => (isNaN(value) ? Infinity : -value);
  const before = (one, other) => (other.verdict === SAVES) - (one.verdict === SAVES) ||
    (one.saving.relation === BELOW) - (other.saving.relation === BELOW) || last(one.saving.mean) - last(other.saving.mean) || 0;

  // From top to bottom: titles of groups, and methods. `found`: by method, in the reuse ledger's FLOPs.
  function lines(methods, found, titles) {
    const placed = [...methods].sort((a, b) => a.place - b.place);
    const groups = Object.keys(titles).map((name) => [name, placed.filter((method) => group(found.get(method.name), method) === name)
      .sort((a, b) => before(found.get(a.name), found.get(b.name)))]).filter(([, members]) => members.length);
    return groups.flatMap(([name, members]) =>
      [...(groups.length > 1 ? [{ title: titles[name] }] : []), ...members.map((method) => ({ method }))]);
  }

  // A saving with its interval, or why there is none. `seeds`: how many there are, and how many finished.
  function outcome({ saving }, reuse, { seeds, finished }) {
    if (finished < seeds) return `did not finish (${seeds - finished} of ${seeds})`;
    return isNaN(saving.mean) && !isNaN(reuse.saving.mean) ? "unknown" : format.saving(saving);
  }

  // Savings up to 100 %; what costs more than twice scratch is drawn at the edge.
  function limits(given, unit) {
    const values = [0, 0.1, ...given.claims(unit)];
    for (const ledger of Object.keys(LEDGERS)) {
      for (const [name, { saving }] of given.judged(unit, ledger)) {
        values.push(...[saving.mean, saving.low, saving.high].filter(isFinite));
        values.push(...given.own(name, unit, ledger).map((own) => own.mean).filter((mean) => !isNaN(mean)));
      }
    }
    const low = Math.max(Math.min(...values), -1), high = Math.min(Math.max(...values), 1), room = 0.08 * (high - low);
    return [low - room, high + room];
  }

  const text = (x, y, said, attributes = {}) => made("text", { x, y: y + 0.36 * (attributes["font-size"] ?? TEXT), ...attributes }, said);
  const mark = (shape, x, y, size, colour, attributes = {}) => made("path", { d: shape, fill: colour, stroke: colour,
    "stroke-width": 1 / size, ...attributes, transform: `translate(${x} ${y}) scale(${size})` });
  const rule = (x1, x2, y1, y2, stroke, width) => made("line", { x1, x2, y1, y2, stroke, "stroke-width": width });

  // One panel: its place and limits, and how rows are drawn in it. `cut`: the lengths of growbench.report.forest.geometry, in inches.
  class Panel {
    constructor(given, cut, place) {
      const column = cut.across === 2 ? place.index % 2 : 0, row = cut.across === 2 ? Math.floor(place.index / 2) : place.index;
      const across = (cut.width - cut.left - given.beside(cut) * cut.across - cut.inner * (cut.across - 1)) / cut.across;
      const height = cut.pitch * (given.lines.length + 0.2);
      Object.assign(this, { given, cut, ...place, wide: cut.across === 2, named: column === 0, svg: [] });
      this.left = INCH * (cut.left + column * (across + given.beside(cut) + cut.inner));
      this.right = this.left + INCH * across;
      this.top = INCH * (row * (height + cut.above + cut.below) + cut.above);
      this.bottom = this.top + INCH * height;
      this.limits = limits(given, place.unit);
    }

    // Of a share that is saved; at the edge where it lies beyond, unless `beyond`.
    x(share) {
      const [low, high] = this.limits;
      return this.left + (this.right - this.left) * ((Math.max(share, low) - low) / (high - low));
    }

    y(row) {
      return this.top + (this.bottom - this.top) * ((row + 0.7) / (this.given.lines.length + 0.4));
    }

    draw() {
      this.#frame();
      this.given.lines.forEach((line, row) => (line.method ? this.#row(line.method, row) : this.#title(line.title, row)));
      return this.svg;
    }

    #frame() {
      const [low, high] = this.limits, { svg, bottom } = this, soft = { "font-size": 9, fill: "var(--soft)" };
      svg.push(text(this.wide ? this.left : 2.2, this.top - 12.5, LEDGERS[this.ledger], { "font-size": 10, "font-weight": "bold" }),
        rule(this.left, this.right, bottom, bottom, "var(--grey)", 0.8));
      for (const tick of chart.linear(low, high, 4)) {
        svg.push(rule(this.x(tick), this.x(tick), bottom, bottom + 3.5, "var(--grey)", 0.8),
          text(this.x(tick), bottom + 11, format.percentTo(tick, 0), { ...soft, "text-anchor": "middle" }));
      }
      svg.push(text(this.left, bottom + 24.5, `${TITLES[this.unit]} saved over scratch`, soft));
      if (this.wide) svg.push(rule(this.x(0), this.x(0), this.top, bottom, "var(--ink)", 0.9));
    }

    #title(title, row) {
      if (!this.named) return;
      this.svg.push(text(0, this.y(row + 0.12), title, { "font-size": SMALL, "font-weight": "bold", fill: "var(--soft)" }));
    }

    #row(method, row) {
      const { given, wide, svg } = this, { judged } = given, found = judged(this.unit, this.ledger).get(method.name);
      const drawn = made("g", { "data-method": method.name, "data-unit": this.unit, "data-ledger": this.ledger }, made("title", {}, method.name));
      const below = row + (wide ? 0.5 : 0.42), height = this.y(wide ? row : row + 0.15);
      svg.push(rule(this.left, this.right, this.y(below), this.y(below), "var(--rule)", 0.6));
      if (!wide) svg.push(rule(this.x(0), this.x(0), this.y(row - 0.08), this.y(row + 0.42), "var(--ink)", 0.9));
      if (this.named) drawn.append(...this.#name(method, this.y(wide ? row : row - 0.3)));
      drawn.append(...this.#seeds(method, height), ...this.#interval(method, found.saving, height), ...this.#figures(method, row));
      const claim = given.claim(method, this.unit);
      if (this.ledger === "reuse" && claim !== null) {
        drawn.append(rule(this.x(claim), this.x(claim), height - 5.5, height + 5.5, "var(--ink)", 1.2));
      }
      svg.push(drawn);
    }

    #name(method, y) {
      const colour = `var(${method.variable})`, said = text(15.1, y, method.brief, { fill: colour });
      return [mark(method.shape, 7.2, y, 6, colour), method.paper ? made("a", { href: method.paper }, said) : said];
    }

    // What each seed saves by itself; an arrow where that is only a bound.
    #seeds(method, y) {
      const { arrows, own } = this.given, known = own(method.name, this.unit, this.ledger).filter(({ mean }) => !isNaN(mean));
      return known.map(({ mean, relation }) => mark(arrows[relation] ?? arrows.none, this.x(mean), y, relation === EQUAL ? 3 : 4.5,
        `var(${method.variable})`, { opacity: 0.45 }));
    }

    // The interval as a line, to the panel's edge with an arrow where its end is beyond; on it the value.
    #interval(method, saving, y) {
      const [low, high] = this.limits, { arrows } = this.given, colour = `var(${method.variable})`, drawn = [];
      if (!isNaN(saving.low)) {
        const [from, to] = [saving.low, saving.high].map((end) => this.x(Math.min(end, high)));
        drawn.push(made("line", { class: "live-ends", x1: from, x2: to, y1: y, y2: y, stroke: colour, "stroke-width": 1.6 }));
        if (saving.low < low) drawn.push(mark(arrows[BELOW], this.left, y, 5, colour));
        if (saving.high > high) drawn.push(mark(arrows[ABOVE], this.right, y, 5, colour));
      }
      if (!isNaN(saving.mean)) {
        drawn.push(mark(arrows[saving.relation] ?? method.shape, this.x(saving.mean), y, 7, colour,
          { class: "live-value", fill: this.ledger === "reuse" ? colour : "var(--paper)" }));
      }
      return drawn;
    }

    // The saving and its interval in words, and of the FLOPs the verdict.
    #figures(method, row) {
      const { given, wide, right } = this, y = this.y(wide ? row : row - 0.3);
      const said = given.outcome(method.name, this.unit, this.ledger), [value, ...interval] = said.split(" (");
      const size = wide ? SMALL + 0.5 : SMALL - 0.5, at = wide ? right + 0.72 * INCH : right - 1.12 * INCH;
      const drawn = [text(at, y, wide ? value : said, { "font-size": size, "text-anchor": "end" })];
      if (wide && interval.length) drawn.push(text(at + 4.3, y, `(${interval}`, { "font-size": SMALL, fill: "var(--soft)" }));
      if (this.unit !== "flops") return drawn;
      const chip = given.chips[given.judged("flops", this.ledger).get(method.name).verdict];
      const middle = wide ? right + INCH * (given.beside(this.cut) - 0.52) : right - 0.53 * INCH, width = 4.6 * chip.text.length + 8;
      return [...drawn, made("rect", { x: middle - width / 2, y: y - 7, width, height: 14, rx: 6, fill: `var(--chip-${chip.name})` }),
        text(middle, y, chip.text, { "font-size": SMALL - 0.5, "text-anchor": "middle", fill: `var(--chip-${chip.name}-ink)` })];
    }
  }

  // An SVG a cut. `given`: lines, units, chips, arrows, and judged, own, outcome, claim, claims and beside, which are asked;
  // `cuts`: of growbench.report.forest.geometry, by name; `titled`: title and result.
  function draw(given, cuts, titled) {
    const panels = given.units.flatMap((unit) => Object.keys(LEDGERS).map((ledger) => ({ unit, ledger })));
    return Object.entries(cuts).map(([name, cut]) => {
      const drawn = panels.map((place, index) => new Panel(given, cut, { ...place, index }));
      const height = drawn[drawn.length - 1].bottom + INCH * cut.below;
      const ids = ["title", "result"].map((part) => `live-forest-${name}-${part}`);
      return made("svg", { class: name, viewBox: `0 0 ${INCH * cut.width} ${height}`, "font-size": TEXT, role: "group",
        "aria-labelledby": ids[0], "aria-describedby": ids[1] }, made("title", { id: ids[0] }, titled.title),
      made("desc", { id: ids[1] }, titled.result), ...drawn.flatMap((panel) => panel.draw()));
    });
  }

  return { lines, outcome, draw };
})();
