// What the chart draws: by method the mean over its seeds, evaluation by evaluation, or budget by budget of a ladder.
"use strict";
const curves = (() => {
  const { mean } = estimator;
  const { known, sourceCost } = reading;

  const FINALS = { loss: "final", accuracy: "accuracy" }; // of a run

  // Points of one method: {step, phase, scored, tokens, flops, seconds, value, low, high}, with the seeds that they are over.
  // `measure`: "loss" or "accuracy".
  function ofMethod(runs, protocol, ledger, measure) {
    const finished = runs.filter((run) => run.finished);
    return line(finished, (protocol === "ladder" ? byBudget : byEvaluation)(finished, ledger, measure));
  }

  // Each run that did not finish, by itself.
  function broken(runs, protocol, ledger, measure) {
    const unfinished = runs.filter((run) => !run.finished && protocol === "single");
    return unfinished.map((run) => ({ ...line([run], byEvaluation([run], ledger, measure)), broken: true }));
  }

  const line = (runs, groups) => ({
    seeds: [...new Set(runs.map((run) => run.seed))].sort((a, b) => a - b),
    points: groups.map(averaged).filter((point) => isFinite(point.value)),
  });

  // The evaluations that all runs have: a step is evaluated again in the next phase, after growth.
  function byEvaluation(runs, ledger, measure) {
    const groups = new Map();
    for (const run of runs) {
      run.curve.step.forEach((step, i) => {
        const key = `${run.curve.phase[i]} ${step}`;
        groups.set(key, [...(groups.get(key) ?? []), {
          step, phase: run.curve.phases[run.curve.phase[i]], scored: run.curve.scored[i], value: known(run.curve[measure][i]),
          tokens: known(run.curve.tokens[i]),
          flops: known(run.curve.flops[i]) + sourceCost(run, "flops", ledger),
          seconds: known(run.curve.seconds[i]) + sourceCost(run, "seconds", ledger),
        }]);
      });
    }
    return [...groups.values()].filter((group) => group.length === runs.length);
  }

  function byBudget(runs, ledger, measure) {
    const budgets = [...new Set(runs.map((run) => run.budget))].sort((a, b) => a - b);
    return budgets.map((budget) => runs.filter((run) => run.budget === budget).map((run) => ({
      budget, scored: 1, value: known(run[FINALS[measure]]), tokens: known(run.tokens),
      flops: known(run.charged.flops) + sourceCost(run, "flops", ledger),
      seconds: known(run.charged.seconds) + sourceCost(run, "seconds", ledger),
    })));
  }

  function averaged(group) {
    const values = group.map((each) => each.value);
    const means = Object.fromEntries(["flops", "seconds", "tokens"].map((unit) => [unit, mean(group.map((each) => each[unit]))]));
    return { ...group[0], ...means, value: mean(values), low: Math.min(...values), high: Math.max(...values), seeds: group.length };
  }

  const CROP = 0.3; // nats on either side of the target
  const SHOWN = 0.02; // of the largest cost: where an axis of log cost begins, and losses set the axis of losses

  // What the axes hold: costs up to the largest; losses from the lowest, but never above scratch's start. `cropped`: what is
  // near the target. Without a target, as of accuracy: all values.
  function ranges(lines, { target, log, ladder, cropped, scratch }) {
    const points = lines.flatMap((line) => line.points), most = Math.max(...points.map((point) => point.x)) || 1;
    const near = points.filter((point) => Math.abs(point.value - target) <= CROP && point.x > 0);
    if (cropped && target !== null && near.length) return { x: around(near, log), y: [target - CROP, target + CROP] };
    const shown = ladder ? points : points.filter((point) => point.x >= SHOWN * most);
    const start = lines.find((line) => line.method.name === scratch)?.points[0].value ?? Infinity;
    const top = Math.min(Math.max(...shown.map((point) => point.high)), ladder || target === null ? Infinity : start);
    const wanted = target === null ? [] : [target];
    const low = Math.min(...wanted, ...shown.map((point) => point.low)), high = Math.max(...wanted, top), room = high - low || 1;
    const x = ladder && log ? around(points, log) : [log ? SHOWN * most : 0, 1.02 * most];
    return { x: points.length ? x : [SHOWN, 1], y: points.length ? [low - 0.06 * room, high + 0.03 * room] : [(target ?? 1) - 1, (target ?? 0) + 1] };
  }

  // A little more than the costs of these points.
  function around(points, log) {
    const costs = points.map((point) => point.x), [low, high] = [Math.min(...costs), Math.max(...costs)];
    const room = 0.03 * (high - low) || 0.1 * high;
    return log ? [low / 1.06, high * 1.06] : [Math.max(low - room, 0), high + room];
  }

  return { ofMethod, broken, ranges };
})();
