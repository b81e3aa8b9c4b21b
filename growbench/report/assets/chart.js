// The chart of loss or accuracy against cost, on uPlot's canvas: pointed at with a pointer, or walked through with the arrow keys.
"use strict";
const chart = (() => {
  const LABEL_HEIGHT = 14, NARROW = 560, REACH = 45; // CSS pixels; within REACH a pointer means the nearest point
  const FEWER = [1, 2, 5], MORE = [1, 1.5, 2, 3, 4, 5, 6, 8]; // ticks of a decade

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  class Chart {
    // `told`: what to do with the method and the point that are chosen, or with nothing.
    constructor(host, told) {
      this.host = host;
      this.told = told;
      this.chosen = null;
      new ResizeObserver(() => this.#resize()).observe(host);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.plot?.redraw());
      host.addEventListener("keydown", (event) => this.#walk(event));
      host.addEventListener("blur", () => this.choose(null));
    }

    // lines: [{method, points: [{x, value, low, high, ...}]}]; view: {x, y: [low, high], log, scale, title, label, tick, target,
    // dots, open, ladder}; a target null is none.
    draw(lines, view) {
      this.lines = lines;
      this.view = view;
      this.plot?.destroy();
      this.lit = -1;
      this.width = this.host.clientWidth;
      this.plot = new uPlot(this.#options(), this.#data(), this.host);
      this.plot.over.addEventListener("pointermove", (event) => this.#point(event));
      this.plot.over.addEventListener("pointerleave", () => this.choose(null));
      this.marker = this.plot.over.appendChild(document.createElement("div"));
      this.marker.className = "live-point";
      this.choose(null);
    }

    #resize() {
      if (this.plot && this.host.clientWidth !== this.width) this.draw(this.lines, this.view);
    }

    // Two columns a line: where its values count, and where they do not.
    #data() {
      const columns = this.lines.flatMap(({ points }) => {
        const x = points.map((point) => point.x);
        const unscored = points.map((point, i) => !point.scored || (i && !points[i - 1].scored));
        return [[x, points.map((point) => (point.scored ? point.value : null))],
          [x, points.map((point, i) => (unscored[i] ? point.value : null))]];
      });
      return columns.length ? uPlot.join(columns) : [[0], []];
    }

    #options() {
      const { view, width } = this, narrow = width < NARROW;
      this.named = !narrow;
      const room = narrow ? 12 : 22 + 7.2 * Math.max(4, ...this.lines.map((line) => (line.grey ? 0 : line.method.label.length + 2)));
      const height = Math.max(narrow ? 300 : 380, this.named ? LABEL_HEIGHT * this.lines.filter((line) => !line.grey && !line.broken).length + 70 : 0);
      const axis = { stroke: () => colour("--ink"), grid: { stroke: () => colour("--rule"), width: 1 },
        ticks: { stroke: () => colour("--grey"), width: 1, size: 5 }, font: "12px system-ui, sans-serif",
        labelFont: "12px system-ui, sans-serif", labelSize: 22 };
      return {
        width, height, padding: [8, room, 0, 0], legend: { show: false },
        cursor: { show: true, x: false, y: false, points: { show: false }, drag: { x: false, y: false } },
        focus: { alpha: 0.25 },
        scales: { x: { time: false, distr: view.log ? 3 : 1, range: () => view.x }, y: { range: () => view.y } },
        axes: [
          { ...axis, label: view.title, size: 34, splits: () => ticks(...view.x, view),
            filter: (plot, splits) => splits, values: (plot, splits) => splits.map((each) => format.short(each / view.scale.size)) },
          { ...axis, label: view.label, size: 52, values: (plot, splits) => splits.map(view.tick) },
        ],
        series: [{}, ...this.lines.flatMap((line) => this.#series(line))],
        hooks: { drawAxes: [() => this.#drawBands()], draw: [() => this.#drawMarkers(), () => this.#drawTarget(), () => this.#drawBroken(), () => this.#drawNames()] },
      };
    }

    #series(line) {
      const { method } = line, stroke = () => this.#colour(line), width = line.grey || line.broken ? 1 : 1.7;
      const dash = method.dashes.map((length) => length * width);
      return [{ stroke, width, dash, points: { show: false } },
        { stroke, width: 1.2, dash: [1.5, 2], points: { show: false } }];
    }

    // Grey lines have their own colour while they stand out.
    #colour(line) {
      return colour(line.grey && this.lines[this.lit] !== line ? "--grey" : line.method.variable);
    }

    #clipped(paint) {
      const { ctx, bbox } = this.plot;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      paint(ctx);
      ctx.restore();
    }

    #at(x, value) {
      return [this.plot.valToPos(x, "x", true), this.plot.valToPos(value, "y", true)];
    }

    // From the lowest seed to the highest.
    #drawBands() {
      this.#clipped((ctx) => {
        ctx.globalAlpha = 0.15;
        for (const line of this.lines) {
          const { points } = line;
          if (points.every((point) => point.low === point.high)) continue;
          ctx.fillStyle = this.#colour(line);
          ctx.beginPath();
          points.forEach((point) => ctx.lineTo(...this.#at(point.x, point.high)));
          [...points].reverse().forEach((point) => ctx.lineTo(...this.#at(point.x, point.low)));
          ctx.fill();
        }
      });
    }

    // The target, and where methods meet it: full dots with the source free, open ones with it charged.
    #drawTarget() {
      const { target, dots, open } = this.view, ratio = devicePixelRatio;
      if (target === null) return;
      this.#clipped((ctx) => {
        ctx.strokeStyle = colour("--soft");
        ctx.lineWidth = ratio;
        ctx.setLineDash([5 * ratio, 4 * ratio]);
        ctx.beginPath();
        ctx.moveTo(...this.#at(this.view.x[0], target));
        ctx.lineTo(...this.#at(this.view.x[1], target));
        ctx.stroke();
        ctx.setLineDash([]);
        for (const { method, x } of dots) {
          ctx.fillStyle = colour(open ? "--paper" : method.variable);
          ctx.strokeStyle = colour(open ? method.variable : "--paper");
          this.#mark(ctx, method.shape, this.#at(x, target), 10);
        }
      });
    }

    // Each method's own marker, on all budgets of a ladder, or on some points of a curve.
    #drawMarkers() {
      this.#clipped((ctx) => {
        for (const line of this.lines.filter((each) => !each.grey && !each.broken)) {
          const every = this.view.ladder ? 1 : Math.max(Math.floor(line.points.length / 5), 1);
          ctx.fillStyle = ctx.strokeStyle = this.#colour(line);
          line.points.forEach((point, i) => {
            if (i % every === 0 && point.scored) this.#mark(ctx, line.method.shape, this.#at(point.x, point.value), 7);
          });
        }
      });
    }

    // `size`: in CSS pixels.
    #mark(ctx, shape, [x, y], size) {
      const pixels = size * devicePixelRatio;
      ctx.save();
      ctx.translate(x, y);
      ctx.scale(pixels, pixels);
      ctx.lineWidth = 1.5 / size;
      ctx.fill(new Path2D(shape));
      ctx.stroke(new Path2D(shape));
      ctx.restore();
    }

    // A cross where a run broke off.
    #drawBroken() {
      this.#clipped((ctx) => {
        ctx.lineWidth = 1.5 * devicePixelRatio;
        for (const line of this.lines.filter((each) => each.broken)) {
          const last = line.points[line.points.length - 1], [x, y] = this.#at(last.x, last.value), arm = 3.5 * devicePixelRatio;
          ctx.strokeStyle = this.#colour(line);
          ctx.beginPath();
          for (const slope of [-1, 1]) {
            ctx.moveTo(x - arm, y - slope * arm);
            ctx.lineTo(x + arm, y + slope * arm);
          }
          ctx.stroke();
        }
      });
    }

    // Each line's name at its end, moved apart; a thin leader where it had to move.
    #drawNames() {
      if (!this.named) return;
      const { ctx, bbox } = this.plot, ratio = devicePixelRatio, gap = LABEL_HEIGHT * ratio;
      const ends = this.lines.filter((line) => !line.grey && !line.broken).flatMap(({ method, points }) => {
        const seen = points.filter((point) => point.x <= this.view.x[1] && point.value <= this.view.y[1] && point.value >= this.view.y[0]);
        if (!seen.length) return [];
        const [x, y] = this.#at(seen[seen.length - 1].x, seen[seen.length - 1].value);
        return [{ method, x, y }];
      }).sort((a, b) => a.y - b.y);
      ctx.save();
      ctx.font = `${12 * ratio}px system-ui, sans-serif`;
      ctx.textBaseline = "middle";
      ctx.textAlign = "left";
      ctx.setLineDash([]);
      spread(ends.map((end) => end.y), gap, bbox.top, bbox.top + bbox.height).forEach((y, i) => {
        const { method, x, y: own } = ends[i], edge = bbox.left + bbox.width;
        if (Math.abs(y - own) > 2 * ratio || edge - x > 8 * ratio) {
          ctx.strokeStyle = colour("--grey");
          ctx.lineWidth = 0.6 * ratio;
          ctx.beginPath();
          ctx.moveTo(x + 2 * ratio, own);
          ctx.lineTo(edge + 12 * ratio, y);
          ctx.stroke();
        }
        ctx.fillStyle = colour(method.variable);
        ctx.fillText(`${method.glyph} ${method.label}`, edge + 14 * ratio, y);
      });
      ctx.restore();
    }

    // Choosing a point

    // `place`: {line, point}, of indices; null for none.
    choose(place) {
      this.chosen = place;
      const line = place && this.lines[place.line], point = line?.points[place.point];
      this.marker.hidden = !point;
      if (point) {
        const [left, top] = [this.plot.valToPos(point.x, "x"), this.plot.valToPos(point.value, "y")];
        this.marker.style.transform = `translate(${left}px, ${top}px)`;
        this.marker.style.background = `var(${line.method.variable})`;
      }
      this.#light(line ? place.line : -1);
      this.told(line?.method, point, line);
    }

    // Lets one method's mean stand out; null: none.
    highlight(name) {
      this.#light(this.lines.findLastIndex((line) => line.method.name === name));
    }

    #light(index) {
      if (index === this.lit) return;
      this.lit = index;
      this.plot.setSeries(index < 0 ? null : 1 + 2 * index, { focus: true });
    }

    #point(event) {
      const box = this.plot.over.getBoundingClientRect();
      const [left, top] = [event.clientX - box.left, event.clientY - box.top];
      let nearest = null, distance = REACH;
      this.lines.forEach(({ points }, line) => points.forEach((each, point) => {
        if (!this.#inside(each)) return;
        const far = Math.hypot(this.plot.valToPos(each.x, "x") - left, this.plot.valToPos(each.value, "y") - top);
        if (far < distance) [nearest, distance] = [{ line, point }, far];
      }));
      this.choose(nearest);
    }

    #inside({ x, value }) {
      const { view } = this;
      return x >= view.x[0] && x <= view.x[1] && value >= view.y[0] && value <= view.y[1];
    }

    // Left and right: along a line. Up and down: to the next method, at the nearest cost. Home and End: its ends.
    #walk(event) {
      const seen = this.lines.map((line) => line.points.flatMap((each, i) => (this.#inside(each) ? [i] : [])));
      const filled = this.lines.flatMap((_, i) => (seen[i].length ? [i] : []));
      if (!filled.length || event.altKey || event.ctrlKey || event.metaKey) return;
      const now = this.chosen ?? { line: filled[0], point: seen[filled[0]][seen[filled[0]].length - 1] };
      const own = seen[now.line], rank = own.indexOf(now.point), next = (by) => own[Math.min(Math.max(rank + by, 0), own.length - 1)];
      const moved = {
        ArrowLeft: () => ({ line: now.line, point: next(-1) }), ArrowRight: () => ({ line: now.line, point: next(1) }),
        Home: () => ({ line: now.line, point: own[0] }), End: () => ({ line: now.line, point: own[own.length - 1] }),
        ArrowUp: () => this.#beside(now, filled, seen, -1), ArrowDown: () => this.#beside(now, filled, seen, 1),
        Escape: () => null,
      }[event.key];
      if (!moved) return;
      event.preventDefault();
      this.choose(this.chosen || event.key === "Escape" ? moved() : now);
    }

    #beside(now, filled, seen, by) {
      const line = filled[(filled.indexOf(now.line) + by + filled.length) % filled.length];
      const { x } = this.lines[now.line].points[now.point], { points } = this.lines[line];
      const nearest = seen[line].reduce((best, i) => (Math.abs(points[i].x - x) < Math.abs(points[best].x - x) ? i : best));
      return { line, point: nearest };
    }
  }

  // Round numbers between two costs, in the unit that the axis is written in.
  function ticks(low, high, { log, scale, ladder }) {
    const [first, last] = [low / scale.size, high / scale.size];
    const wanted = log ? logarithmic(first, last, ladder || last / first < 12 ? MORE : FEWER) : linear(first, last, 5);
    return wanted.map((each) => each * scale.size);
  }

  function logarithmic(low, high, digits) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      found.push(...digits.map((digit) => digit * 10 ** power));
    }
    return found.filter((each) => each >= low && each <= high);
  }

  // At most `most` steps.
  function linear(low, high, most) {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
    return found;
  }

  // Rising places moved as little as need be so that they are `gap` apart, and inside if they all fit.
  function spread(places, gap, low, high) {
    const moved = [];
    places.forEach((place, i) => moved.push(Math.max(place, low + gap / 2, i ? moved[i - 1] + gap : -Infinity)));
    for (let i = moved.length - 1, most = high - gap / 2; i >= 0; i--, most = moved[i + 1] - gap) moved[i] = Math.min(moved[i], most);
    return moved;
  }

  return { Chart, ticks, linear };
})();
