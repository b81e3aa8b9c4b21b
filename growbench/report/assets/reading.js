// Stored runs read by one protocol, as growbench.analysis.protocols and growbench.analysis.savings have it.
"use strict";
const reading = (() => {
  const E = estimator;
  const SCRATCH = "scratch";
  const NO_SCRATCH = "no seed in common with a finished scratch run";
  const NO_SECONDS = "no seconds that compare";
  const UNKNOWN_SOURCE = "the cost of the source is not known";
  const NO_REFERENCE = "scratch meets the target loss at its smallest cost already";
  const SOURCE_SHARES = { reuse: 0, build: 1 };

  // Keeps what a function has given before, by its arguments.
  function remembered(ask) {
    const found = new Map();
    return (...key) => {
      const name = key.join("\n");
      if (!found.has(name)) found.set(name, ask(...key));
      return found.get(name);
    };
  }

  // The runs of a comparison grouped by method and seed. Its curves do not depend on the target, and are made once.
  class Runs {
    constructor(protocol, runs) {
      this.protocol = protocol;
      this.groups = new Map();
      for (const run of [...runs].sort((a, b) => a.budget - b.budget)) {
        if (run.budget > 1 && !run.finished) continue;
        const key = `${run.method}\n${run.seed}`;
        this.groups.set(key, [...(this.groups.get(key) ?? []), run]);
      }
      this.curve = remembered((method, seed, unit, ledger) => this.#curve(this.of(method, seed), unit, ledger));
    }

    of(method, seed) {
      return this.groups.get(`${method}\n${seed}`) ?? [];
    }

    all(method) {
      return [...this.groups.values()].flat().filter((run) => run.method === method);
    }

    seeds(method) {
      return [...new Set(this.all(method).map((run) => run.seed))].sort((a, b) => a - b);
    }

    whole(method, seed) {
      return this.of(method, seed).find((run) => run.budget === 1 && run.finished);
    }

    finished(method) {
      return this.seeds(method).filter((seed) => this.whole(method, seed));
    }

    #curve(group, unit, ledger) {
      const costs = group.map((run) => costOf(run, unit, ledger));
      if (costs.some(isNaN)) return E.curveOfRun([], []);
      if (this.protocol === "ladder") return E.curveOfLadder(costs, group.map((run) => run.final));
      const [run] = group, source = sourceCost(run, unit, ledger), start = run.curve.scored.lastIndexOf(0) + 1;
      return E.curveOfRun(run.curve[unit].slice(start).map((cost) => source + cost), run.curve.loss.slice(start));
    }
  }

  const known = (value) => (value === null || value === undefined ? NaN : value);
  const sourceCost = (run, unit, ledger) => (SOURCE_SHARES[ledger] ? SOURCE_SHARES[ledger] * known(run.source[unit]) : 0);
  const costOf = (run, unit, ledger) => known(run.charged[unit]) + sourceCost(run, unit, ledger);

  // What methods are compared with, and what they save. `target`: given by hand (nats); null: each seed's scratch's own loss.
  class Reading {
    constructor(runs, target) {
      this.runs = runs;
      this.target = target;
      this.references = remembered((unit) => this.#references(unit));
    }

    scratchCurves(unit) {
      const curves = this.runs.finished(SCRATCH).map((seed) => [seed, this.runs.curve(SCRATCH, seed, unit, "reuse")]);
      return curves.filter(([, curve]) => curve.costs.length);
    }

    scratchSaving(unit) {
      const curves = this.scratchCurves(unit);
      if (this.target === null || !curves.length) return { ...E.NO_SAVING, mean: 0 };
      const full = curves.map(([seed]) => this.#fullCost(seed, unit));
      return E.estimate(curves.map(([, curve]) => curve), full.map(() => this.target), full).saving;
    }

    // Of scratch's runs at the full budget.
    meanFullCost(unit) {
      return E.mean(this.scratchCurves(unit).map(([seed]) => this.#fullCost(seed, unit)));
    }

    #fullCost(seed, unit) {
      return costOf(this.runs.whole(SCRATCH, seed), unit, "reuse");
    }

    // By seed, a cost of scratch and its loss there.
    #references(unit) {
      const saving = this.scratchSaving(unit), found = new Map();
      if (saving.relation === E.ABOVE) return found;
      for (const [seed, curve] of this.scratchCurves(unit)) {
        const full = this.#fullCost(seed, unit);
        if (saving.relation === E.BELOW && this.target !== null) {
          found.set(seed, { cost: full, loss: this.target, met: false });
        } else {
          const cost = (1 - saving.mean) * full;
          found.set(seed, { cost, loss: E.lossAt(curve, cost), met: true });
        }
      }
      return found;
    }

    meanReference(unit) {
      const costs = [...this.references(unit).values()].map((reference) => reference.cost);
      return costs.length ? E.mean(costs) : NaN;
    }

    reached(method) {
      return this.runs.finished(method).filter((seed) => {
        const loss = this.references("flops").get(seed)?.loss ?? this.target;
        return loss !== null && E.meets(this.runs.curve(method, seed, "flops", "reuse"), loss) < Infinity;
      }).length;
    }

    estimate(method, unit, ledger) {
      const none = (untested) => ({ ...E.NOTHING, untested });
      const seeds = this.runs.seeds(method), finished = this.runs.finished(method), references = this.references(unit);
      if (finished.length < seeds.length) {
        return none(`did not finish in ${seeds.length - finished.length} of ${seeds.length} seeds`);
      }
      const group = (seed) => this.runs.of(method, seed);
      const paired = finished.filter(
        (seed) => references.has(seed) && !group(seed).some((run) => isNaN(costOf(run, unit, "reuse"))));
      if (!paired.length) {
        if (this.scratchSaving(unit).relation === E.ABOVE) return none(NO_REFERENCE);
        return none(unit === "flops" ? NO_SCRATCH : NO_SECONDS);
      }
      if (paired.some((seed) => group(seed).some((run) => isNaN(sourceCost(run, unit, ledger))))) return none(UNKNOWN_SOURCE);
      const curves = paired.map((seed) => this.runs.curve(method, seed, unit, ledger));
      if (curves.some((curve) => !curve.costs.length)) return none(E.NO_COMMON_COST);
      const scratch = paired.map((seed) => references.get(seed));
      const found = E.estimate(curves, scratch.map((each) => each.loss), scratch.map((each) => each.cost));
      return scratch.every((each) => each.met) ? found : E.atLeast(found);
    }

    // What each seed saves by itself.
    own(method, unit, ledger) {
      const references = this.references(unit);
      return this.runs.finished(method).filter((seed) => references.has(seed)).map((seed) => {
        const { loss, cost, met } = references.get(seed);
        const found = E.estimate([this.runs.curve(method, seed, unit, ledger)], [loss], [cost]);
        return (met ? found : E.atLeast(found)).saving;
      });
    }

    // By method, each judged within its family of tests: growth methods, and controls.
    judged(methods, unit, ledger) {
      const found = new Map();
      for (const control of [false, true]) {
        const family = methods.filter((method) => method.control === control && method.name !== SCRATCH);
        const estimates = family.map((method) => this.estimate(method.name, unit, ledger));
        const adjusted = E.holm(estimates.map((each) => each.p));
        family.forEach((method, i) => {
          const said = E.verdict(estimates[i], adjusted[i]);
          const cost = this.#costToTarget(method.name, estimates[i].saving, unit);
          found.set(method.name, { ...estimates[i], adjusted: adjusted[i], verdict: said, cost });
        });
      }
      return found;
    }

    // The cost at which a method meets scratch on average; Infinity if it does not.
    #costToTarget(method, saving, unit) {
      const unfinished = this.runs.finished(method).length < this.runs.seeds(method).length;
      if (unfinished || saving.relation === E.BELOW) return Infinity;
      return (1 - saving.mean) * this.meanReference(unit);
    }
  }

  // Columns of the embedded JSON: a number stands for itself, [number, count, step] for a row of numbers that rise by a step.
  function unpacked(column) {
    const values = [];
    for (const entry of column) {
      if (!Array.isArray(entry)) {
        values.push(entry);
        continue;
      }
      let value = entry[0];
      for (let i = 0; i < entry[1]; i++, value += entry[2]) values.push(value);
    }
    return values;
  }

  return { SCRATCH, Runs, Reading, remembered, unpacked, known, sourceCost, costOf };
})();
