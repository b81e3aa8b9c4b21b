// The table of savings at the chosen target: a row a method, both ledgers side by side, each with its interval as a line.
"use strict";
const savings = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const DRAWN = ["svg", "g", "a", "title", "desc", "line", "circle", "path", "rect", "text"]; // what SVG has
  const WIDTH = 88, HEIGHT = 16; // of an interval's drawing
  const LEDGERS = { reuse: "reuse", build: "build" };

  // An element with attributes and children; text stays text.
  function made(tag, attributes = {}, ...children) {
    const element = DRAWN.includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  const name = (method) => [
    made("span", { class: "mark", style: `color:var(${method.variable})`, "aria-hidden": "true" }, method.glyph),
    method.label, ...(method.control ? [made("span", { class: "tag" }, "control")] : []),
  ];

  // `own`: the target is each seed's scratch's own final loss.
  function table(unit, own) {
    const title = unit === "flops" ? "FLOPs saved" : "Time saved";
    const ledgers = Object.values(LEDGERS).flatMap((ledger) => [
      made("th", { scope: "col", class: `live-${ledger}` }, `${title}, ${ledger}`),
      made("th", { scope: "col", class: `live-${ledger}` }, `verdict, ${ledger}`),
    ]);
    return made("thead", {}, made("tr", {},
      made("th", { scope: "col" }, "method"), made("th", { scope: "col" }, own ? "met scratch" : "met target"), ...ledgers));
  }

  function row(method, found, reached, seeds, chips) {
    const cells = Object.keys(LEDGERS).flatMap((ledger) => {
      const own = found[ledger];
      return [
        made("td", { class: `live-${ledger}` }, drawn(own.saving, ledger, method), made("span", { class: "live-figure" }, ...figure(own))),
        made("td", { class: `live-verdict live-${ledger}` }, ...verdict(own, chips)),
      ];
    });
    return made("tr", { "data-method": method.name },
      made("th", { scope: "row" }, ...name(method)), made("td", {}, `${reached} of ${seeds}`), ...cells);
  }

  // The saving, and its interval on a line of its own.
  function figure(found) {
    const why = found.untested.startsWith("did not finish") ? "did not finish" : "unknown";
    const missing = isNaN(found.saving.mean) && (why !== "unknown" || found.untested === "the cost of the source is not known");
    const [value, ends] = (missing ? why : format.saving(found.saving)).split(" (");
    return ends ? [value, made("small", {}, `(${ends}`)] : [value];
  }

  function verdict(found, chips) {
    const chip = chips[found.verdict];
    const why = isNaN(found.adjusted) ? found.untested : `p ${format.pValue(found.adjusted)}`;
    return [made("span", { class: `chip chip-${chip.name}` }, chip.text), made("small", {}, why)];
  }

  // From -100 % on the left to 100 % on the right, 0 in the middle. An arrow for a bound, and at an open end.
  function drawn(saving, ledger, method) {
    const place = (share) => (Math.min(Math.max(share, -1), 1) + 1) * (WIDTH - 16) / 2 + 8, middle = HEIGHT / 2;
    const picture = made("svg", { width: WIDTH, height: HEIGHT, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true", class: "live-interval" });
    picture.append(made("line", { x1: place(0), x2: place(0), y1: 0, y2: HEIGHT, class: "live-zero" }));
    if (isNaN(saving.mean)) return picture;
    const colour = `var(${method.variable})`;
    if (!isNaN(saving.low)) {
      picture.append(made("line", { x1: place(saving.low), x2: place(saving.high), y1: middle, y2: middle, stroke: colour, "stroke-width": 2 }));
      for (const [end, towards] of [[saving.low, -1], [saving.high, 1]]) {
        if (!isFinite(end)) picture.append(arrow(place(end), towards, colour));
      }
    }
    const at = place(saving.mean);
    if (saving.relation === "=") {
      picture.append(made("path", { d: method.shape, transform: `translate(${at} ${middle}) scale(9)`, stroke: colour, "stroke-width": 0.15,
        fill: ledger === "reuse" ? colour : "var(--paper)" }));
    } else picture.append(arrow(at, saving.relation === "<" ? -1 : 1, colour));
    return picture;
  }

  const arrow = (x, towards, colour) =>
    made("path", { d: `M${x} ${HEIGHT / 2 - 4}l${6 * towards} 4l${-6 * towards} 4z`, fill: colour });

  return { made, name, table, row };
})();
