// The interactive layer of an experiment's page: its controls, its state in the address, and what they show.
"use strict";
(() => {
  const { SCRATCH, Runs, Reading, remembered, unpacked } = reading;
  const { made } = savings;
  const AXES = { flops: "FLOPs", seconds: "seconds", tokens: "tokens" };
  const TITLES = { flops: "Training FLOPs", seconds: "Wall time", tokens: "Tokens of training" };
  const SYMBOLS = { flops: "FLOP", seconds: "s", tokens: " tokens" };
  const LEDGERS = { reuse: "free (reuse)", build: "charged (build)" };
  const PROTOCOLS = { ladder: "ladder", single: "one run's curve" };
  const MEASURES = {
    loss: { axis: "loss (nats)", text: format.loss, tick: format.short },
    accuracy: { axis: "accuracy", text: format.percent, tick: (share) => `${format.short(100 * share)} %` },
  };
  const SCALES = { log: "log", linear: "linear" };

  const data = JSON.parse(document.getElementById("live-data").textContent);
  for (const { curve } of data.runs.filter((run) => run.curve)) {
    for (const key of Object.keys(curve).filter((key) => key !== "phases")) curve[key] = unpacked(curve[key]);
  }
  const protocols = data.climbers.length ? PROTOCOLS : { single: PROTOCOLS.single };
  const axes = Object.fromEntries(Object.entries(AXES).filter(([axis]) => axis === "tokens" || data.units.includes(axis)));
  const runs = {
    single: new Runs("single", data.runs.filter((run) => run.budget === 1)),
    ...(data.climbers.length ? { ladder: new Runs("ladder", data.runs) } : {}),
  };
  const methodsOf = (protocol) => data.methods.filter((method) => protocol === "single" || data.climbers.includes(method.name));

  // State, and the address that keeps it

  const START = { target: null, measure: "loss", axis: "flops", scale: "log", ledger: "reuse", protocol: Object.keys(protocols)[0], near: false, hide: [] };
  const CHOICES = { measure: Object.fromEntries(data.measures.map((measure) => [measure, measure])), axis: axes, scale: SCALES, ledger: LEDGERS, protocol: protocols };
  let state = { ...START };

  function address() {
    const parts = new URLSearchParams();
    if (state.target !== null) parts.set("target", state.target);
    for (const key of Object.keys(CHOICES)) if (state[key] !== START[key]) parts.set(key, state[key]);
    if (state.near) parts.set("near", "1");
    for (const name of state.hide) parts.append("hide", name);
    return parts.toString();
  }

  // Null for an address that names a place in the page.
  function read(hash) {
    if (hash.length > 1 && !hash.includes("=")) return null;
    const parts = new URLSearchParams(hash.slice(1)), found = { ...START }, target = parseFloat(parts.get("target"));
    for (const [key, choices] of Object.entries(CHOICES)) if (Object.hasOwn(choices, parts.get(key))) found[key] = parts.get(key);
    const names = data.methods.map((method) => method.name);
    return { ...found, target: target > 0 && isFinite(target) ? target : null, near: parts.get("near") === "1",
      hide: parts.getAll("hide").filter((name) => names.includes(name)) };
  }

  // `lasting`: with an entry of its own in the browser's history.
  function change(changes, lasting = true) {
    state = { ...state, ...changes };
    history[lasting ? "pushState" : "replaceState"](null, "", `#${address()}`);
    show();
  }

  // What the state means

  const estimates = () => new Reading(runs[state.protocol], state.target ?? data.target);
  const unit = () => (state.axis === "tokens" ? "flops" : state.axis);

  function meanTarget(read) {
    if (read.target !== null) return read.target;
    return estimator.mean([...read.references("flops").values()].map((reference) => reference.loss));
  }

  // From the lowest loss that a run ends at to that of scratch at 5 % of its cost, or at the ladder's smallest budget.
  const limits = remembered((protocol) => {
    const ended = methodsOf(protocol).flatMap(({ name }) => runs[protocol].finished(name).map(
      (seed) => runs[protocol].curve(name, seed, "flops", "reuse")).filter((curve) => curve.costs.length));
    const scratch = runs[protocol].finished(SCRATCH).map((seed) => runs[protocol].curve(SCRATCH, seed, "flops", "reuse"));
    const low = Math.min(...ended.map((curve) => Math.min(...curve.losses)));
    const high = Math.max(...scratch.map((curve) => estimator.lossAt(curve, 0.05 * curve.costs[curve.costs.length - 1])));
    return [Math.floor(100 * low) / 100, Math.max(Math.ceil(100 * high) / 100, Math.floor(100 * low) / 100 + 0.1)];
  });

  // Controls

  // Slider, number and button for the target, of which the page has several.
  function targetControl(name) {
    const slider = made("input", { type: "range", id: `${name}-slider`, step: "0.001", "aria-describedby": `${name}-said` });
    const number = made("input", { type: "number", id: `${name}-number`, step: "0.001", min: "0" });
    const reset = made("button", { type: "button" }, data.target === null ? "Scratch's final loss" : "The report's target");
    slider.addEventListener("input", () => change({ target: slider.valueAsNumber }, false));
    slider.addEventListener("change", () => change({ target: slider.valueAsNumber }));
    number.addEventListener("change", () => change({ target: number.valueAsNumber > 0 ? number.valueAsNumber : null }));
    reset.addEventListener("click", () => change({ target: null }));
    const element = made("div", { class: "live-target" }, made("label", { for: slider.id }, "Target loss"), slider,
      made("label", { for: number.id, class: "unseen" }, "Target loss, in nats"), number, reset);
    return { slider, number, reset, element };
  }

  const targets = [targetControl("live"), targetControl("live-forest")];
  const near = made("input", { type: "checkbox", id: "live-near" });
  const view = made("div", { class: "live-chart", tabindex: "0", role: "application", "aria-roledescription": "chart",
    "aria-describedby": "live-keys", "aria-label": "Validation loss against cost" });
  const readout = made("p", { class: "live-readout", role: "status" });
  const said = made("p", { class: "live-said", id: "live-said", role: "status" });
  const legend = made("div", { class: "live-legend", role: "group", "aria-label": "Methods shown" });
  const head = made("table", { class: "live-table", id: "live-table" });
  const radios = {};

  function choice(title, key, choices) {
    radios[key] = Object.entries(choices).map(([value, text]) => {
      const button = made("input", { type: "radio", name: `live-${key}`, id: `live-${key}-${value}`, value });
      button.addEventListener("change", () => change(key === "protocol" ? { protocol: value, target: null } : { [key]: value }));
      return [button, made("label", { for: button.id }, text)];
    });
    return made("fieldset", { class: "live-choice" }, made("legend", {}, title), ...radios[key].flat());
  }

  function toggle(method) {
    const button = made("button", { type: "button", "data-method": method.name }, ...savings.name(method),
      made("span", { class: "live-final" }));
    button.addEventListener("click", () => change({
      hide: state.hide.includes(method.name) ? state.hide.filter((name) => name !== method.name) : [...state.hide, method.name],
    }));
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => drawing.highlight(method.name));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => drawing.highlight(null));
    return button;
  }

  function several(text, hidden) {
    const button = made("button", { type: "button", class: "live-several" }, text);
    button.addEventListener("click", () => change({ hide: data.methods.filter(hidden).map((method) => method.name) }));
    return button;
  }

  function build(host) {
    near.addEventListener("change", () => change({ near: near.checked }));
    const choices = [
      ...(data.measures.length > 1 ? [choice("Validation", "measure", CHOICES.measure)] : []), choice("Cost in", "axis", axes), choice("Axis of cost", "scale", SCALES), choice("Small model", "ledger", LEDGERS),
      ...(data.climbers.length ? [choice("Read off", "protocol", PROTOCOLS)] : []),
    ];
    legend.append(...data.methods.map(toggle));
    const all = made("div", { class: "live-all" }, several("all", () => false), several("none", (method) => method.name !== SCRATCH),
      ...(data.methods.some((method) => method.control) ? [several("no controls", (method) => method.control)] : []));
    host.append(
      made("div", { class: "live-choices" }, ...choices, made("span", { class: "live-check" }, near, made("label", { for: near.id }, "only near the target"))),
      targets[0].element, readout, view,
      made("p", { class: "live-keys soft", id: "live-keys" }, "Point at a line, or walk along it with the arrow keys: left and right ",
        "along a line, up and down to the next method. Names below show and hide lines."),
      made("div", { class: "live-names" }, all, legend), said, made("div", { class: "scroll", tabindex: "0" }, head));
  }

  // What is shown

  function show() {
    const read = estimates(), target = meanTarget(read);
    showControls(target);
    const asked = remembered((unit, ledger) => read.judged(methodsOf(state.protocol), unit, ledger));
    const judged = Object.fromEntries(Object.keys(LEDGERS).map((ledger) => [ledger, asked(unit(), ledger)]));
    showChart(target, judged[state.ledger]);
    showSavings(read, target, judged);
    showForest(read, target, asked);
  }

  function showControls(target) {
    const [low, high] = limits(state.protocol);
    for (const { slider, number, reset } of targets) {
      Object.assign(slider, { min: low, max: high, value: target });
      slider.setAttribute("aria-valuetext", `${format.loss(target)} nats`);
      if (document.activeElement !== number) number.value = target.toFixed(3);
      reset.disabled = state.target === null;
    }
    near.checked = state.near;
    near.disabled = state.measure !== "loss";
    for (const [key, buttons] of Object.entries(radios)) {
      for (const [button] of buttons) button.checked = state[key] === button.value;
    }
    const present = methodsOf(state.protocol).map((method) => method.name);
    for (const button of legend.children) {
      button.setAttribute("aria-pressed", String(!state.hide.includes(button.dataset.method)));
      button.hidden = !present.includes(button.dataset.method);
      button.querySelector(".live-final").textContent = button.hidden ? "" : finalOf(button.dataset.method);
    }
  }

  const drawnOf = remembered((name, protocol, ledger, measure) => {
    const own = runs[protocol].all(name);
    return [...curves.broken(own, protocol, ledger, measure), curves.ofMethod(own, protocol, ledger, measure)];
  });

  // A method's mean at the end of the full budget.
  function finalOf(name) {
    const { points } = drawnOf(name, state.protocol, state.ledger, state.measure).at(-1);
    const last = state.protocol === "ladder" ? points.find((point) => point.budget === 1) : points[points.length - 1];
    return last ? MEASURES[state.measure].text(last.value) : "";
  }

  // Of many lines only those of named methods have colours and names; grey ones lie below them.
  function linesShown() {
    const { measure, axis, ledger, protocol, hide } = state;
    const lines = methodsOf(protocol).filter((method) => !hide.includes(method.name)).flatMap((method) =>
      drawnOf(method.name, protocol, ledger, measure).map((line) => ({
        ...line, method, points: line.points.map((point) => ({ ...point, x: point[axis] })).filter((point) => isFinite(point.x)),
      }))).filter((line) => line.points.length);
    const many = lines.length > data.few;
    return lines.map((line) => ({ ...line, grey: many && !line.method.named })).sort((a, b) => b.grey - a.grey);
  }

  function showChart(meanTarget, judged) {
    const { measure, axis, ledger, protocol, near: cropped } = state, ladder = protocol === "ladder", log = state.scale === "log";
    const target = measure === "loss" ? meanTarget : null, lines = linesShown(), { x, y } = curves.ranges(lines, { target, log, ladder, cropped, scratch: SCRATCH });
    const dots = lines.filter((line) => !line.grey && !line.broken && axis !== "tokens").flatMap(({ method }) => {
      const cost = judged.get(method.name)?.cost;
      return isFinite(cost) ? [{ method, x: cost }] : [];
    });
    const scale = format.scale(x[1], SYMBOLS[axis]);
    const title = `${TITLES[axis]}${ladder ? " of a whole run" : ""} (${scale.name.trim()})${log ? ", log scale" : ""}`;
    const label = `${ladder ? "final " : ""}validation ${MEASURES[measure].axis}`, { tick } = MEASURES[measure];
    drawing.draw(lines, { x, y, log, scale, title, label, tick, target, dots, open: ledger === "build", ladder });
    view.setAttribute("aria-label", `Validation ${measure} against ${TITLES[axis].toLowerCase()}: lines of ${new Set(lines.map((line) => line.method.name)).size} methods`);
  }

  // Of a chosen point.
  function tell(method, point, line) {
    if (!point) {
      readout.textContent = "";
      return;
    }
    const { text } = MEASURES[state.measure];
    const band = point.seeds > 1 ? ` (${text(point.low)} to ${text(point.high)} over seeds ${line.seeds.join(", ")})` :
      ` (seed ${line.seeds.join(", ")})`;
    const where = point.step === undefined ? `budget ${format.digits(100 * point.budget)} %` : `step ${point.step}, phase ${point.phase}`;
    const uncounted = (point.scored ? "" : ", not scored") + (line.broken ? ", of a run that did not finish" : "");
    readout.replaceChildren(...savings.name(method),
      ` ${state.measure} ${text(point.value)}${band}, ${where}${uncounted}, ${format.quantity(point.x, SYMBOLS[state.axis])}`);
  }

  function showSavings(read, target, judged) {
    const methods = methodsOf(state.protocol).filter((method) => method.name !== SCRATCH), kept = runs[state.protocol];
    const rows = methods.map((method) => {
      const found = Object.fromEntries(Object.keys(LEDGERS).map((ledger) => [ledger, judged[ledger].get(method.name)]));
      return savings.row(method, found, read.reached(method.name), kept.seeds(method.name).length, data.chips);
    });
    head.replaceChildren(made("caption", { class: "unseen" }, "Savings at the target loss"), savings.table(unit(), read.target === null), made("tbody", {}, ...rows));
    head.className = `live-table live-by-${state.ledger}`;
    said.textContent = summary(read, target, judged);
  }

  function summary(read, target, judged) {
    const methods = data.methods.filter(({ name }) => judged.reuse.has(name));
    const [rivals, controls] = [false, true].map((control) => methods.filter((method) => method.control === control));
    const saves = (ledger) => ({ name }) => judged[ledger].get(name).verdict === estimator.SAVES;
    const count = (ledger) => rivals.filter(saves(ledger)).length;
    const saving = controls.filter(saves("reuse")).map((method) => method.label);
    const own = read.target === null ? `scratch's final loss with the same seed (mean ${format.loss(target)})` : format.loss(target);
    return `Target: ${own}; ${met(read)}. ${count("reuse")} of ${rivals.length} ${rivals.length === 1 ? "method is" : "methods are"} shown to save ` +
      `with the small model free, ${count("build")} with its training charged.${saving.length ? ` Controls save too: ${saving.join(", ")}.` : ""}`;
  }

  // The report's own forest, or that of the target and the protocol which are chosen.
  function showForest(read, target, judged) {
    const printed = data.methods.length < 2 || (state.target === null && state.protocol === START.protocol);
    forestFigure.classList.toggle("live-moved", !printed);
    forestSaid.textContent = "";
    if (printed) return;
    const kept = runs[state.protocol], methods = methodsOf(state.protocol).filter((method) => method.name !== SCRATCH);
    const count = (name) => ({ seeds: kept.seeds(name).length, finished: kept.finished(name).length });
    const outcome = (name, unit, ledger) =>
      forest.outcome(judged(unit, ledger).get(name), judged(unit, "reuse").get(name), count(name));
    const claim = (method, unit) => (state.protocol === "single" ? method.claims[unit] : null);
    const claims = (unit) => methods.map((method) => claim(method, unit)).filter((value) => value !== null);
    const intervals = methods.some(({ name }) => Object.keys(LEDGERS).some((ledger) => !isNaN(judged("flops", ledger).get(name).saving.low)));
    const given = { judged, outcome, claim, claims, units: methods.length < data.few ? data.units : ["flops"],
      lines: forest.lines(methods, judged("flops", "reuse"), data.groups), own: remembered((...asked) => read.own(...asked)),
      beside: (cut) => cut.right[Number(intervals)], chips: data.chips, arrows: data.arrows };
    const said = summary(read, target, { reuse: judged("flops", "reuse"), build: judged("flops", "build") });
    forestDrawn.replaceChildren(...forest.draw(given, data.cuts, { title: "What each method saves over scratch at the chosen target",
      result: `${said} ${methods.map(({ label, name }) => `${label}: ${outcome(name, "flops", "reuse")}, ${outcome(name, "flops", "build")}`).join("; ")}.` }));
    forestSaid.textContent = `${said} The sentences above, the files below, and other figures and tables keep the report's target.`;
  }

  // Whether and where scratch meets the target.
  function met(read) {
    const { relation } = read.scratchSaving(unit()), cost = read.meanReference(unit());
    if (!read.scratchCurves(unit()).length) return "scratch did not finish, and nothing compares";
    if (relation === estimator.BELOW) return "scratch never meets it, and savings are lower bounds";
    if (relation === estimator.ABOVE) return "scratch meets it at its smallest cost already, and nothing compares";
    return `scratch meets it at ${format.quantity(cost, SYMBOLS[unit()])}, ${format.percent(cost / read.meanFullCost(unit()))} of its cost`;
  }

  const forestFigure = document.getElementById("fig-forest"), forestDrawn = made("div", { class: "drawn live-forest" });
  const forestSaid = made("p", { class: "live-forest-said", id: "live-forest-said" });
  forestFigure.querySelector(".drawn").after(forestDrawn,
    made("section", { class: "live", "aria-label": "Another target" }, targets[1].element, forestSaid));
  const host = document.getElementById(data.climbers.length ? "fig-ladder" : "fig-curves"), section = made("section", { class: "live", "aria-label": "Explore the runs" });
  const drawing = new chart.Chart(view, tell);
  build(section);
  host.prepend(section);
  host.classList.add("live-on");
  window.addEventListener("popstate", () => {
    const found = read(location.hash);
    if (!found) return;
    state = found;
    show();
  });
  state = read(location.hash) ?? state;
  show();
})();
