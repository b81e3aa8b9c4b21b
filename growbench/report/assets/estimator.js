// What a method saves over scratch, as growbench.analysis.estimator and growbench.analysis.statistics have it, step by step.
// Pure functions. A saving is {mean, low, high, relation}; NaN: there is none; an infinite end of an interval is open.
"use strict";
const estimator = (() => {
  const LEVEL = 0.05;
  const BETWEEN = 7; // points between two budgets of a ladder
  const ROUNDING = 1e-12; // relative differences of losses below it are rounding

  const ONE_SEED = "one seed";
  const NO_SPREAD = "no spread over seeds";
  const NO_COMMON_COST = "no cost at which every seed has a loss";
  const UNMET = "scratch never meets the target loss";

  const EQUAL = "=", BELOW = "<", ABOVE = ">";
  const SAVES = "saves", EVEN = "not told apart from scratch", COSTS_MORE = "costs more";
  const WORSE = "cheaper but worse", BETTER = "better but dearer", NONE = "no verdict";

  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => sum(values) / values.length;
  const covariance = (one, other) => {
    const [a, b] = [mean(one), mean(other)];
    return sum(one.map((value, i) => (value - a) * (other[i] - b))) / (one.length - 1);
  };
  const variance = (values) => covariance(values, values);
  const clip = (value, low, high) => Math.min(Math.max(value, low), high);

  // Student's t

  // The two-sided tail beyond t: the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4).
  function tail(t, freedom) {
    const angle = Math.atan2(Math.abs(t), Math.sqrt(freedom));
    const [sine, square] = [Math.sin(angle), Math.cos(angle) ** 2];
    const odd = freedom % 2 === 1;
    let term = odd ? Math.cos(angle) * sine : sine;
    let series = freedom > 1 ? term : 0;
    for (let k = odd ? 3 : 2; k < freedom; k += 2) {
      term *= square * (k - 1) / k;
      series += term;
    }
    return odd ? 1 - (2 / Math.PI) * (angle + series) : 1 - series;
  }

  // The t beyond which, on both sides, `share` of the distribution lies: by bisection.
  function critical(share, freedom) {
    let [low, high] = [0, 1];
    while (tail(high, freedom) > share) high *= 2;
    for (let middle = high / 2; low < middle && middle < high; middle = (low + high) / 2) {
      if (tail(middle, freedom) > share) low = middle;
      else high = middle;
    }
    return high;
  }

  function pairedTTest(differences) {
    const deviation = Math.sqrt(variance(differences) / differences.length);
    return tail(mean(differences) / deviation, differences.length - 1);
  }

  // Holm's adjusted p-values. NaN counts as 1, and stays NaN.
  function holm(p) {
    const order = p.map((_, i) => i).sort((a, b) => (isNaN(p[a]) ? 1 : p[a]) - (isNaN(p[b]) ? 1 : p[b]));
    const adjusted = Array(p.length);
    let largest = 0;
    order.forEach((i, rank) => {
      largest = Math.max(largest, (p.length - rank) * (isNaN(p[i]) ? 1 : p[i]));
      adjusted[i] = isNaN(p[i]) ? NaN : Math.min(largest, 1);
    });
    return adjusted;
  }

  // Curves

  // Non-increasing least squares, by pooling violators from the last value on: the order in which scipy pools.
  function isotonic(losses) {
    const blocks = [];
    for (let i = losses.length - 1; i >= 0; i--) {
      let block = { value: losses[i], size: 1, sum: losses[i] };
      const before = blocks[blocks.length - 1];
      if (before && before.value >= block.value) {
        blocks.pop();
        block = pooled(before.size * before.value + block.value, before.size + 1);
        while (i > 0 && block.value >= losses[i - 1]) block = pooled(block.sum + losses[--i], block.size + 1);
        while (blocks.length && blocks[blocks.length - 1].value >= block.value) {
          const lower = blocks.pop();
          block = pooled(block.sum + lower.size * lower.value, block.size + lower.size);
        }
      }
      blocks.push(block);
    }
    return blocks.reverse().flatMap((block) => Array(block.size).fill(block.value));
  }

  const pooled = (total, size) => ({ value: total / size, size, sum: total });

  // Numbers of the embedded JSON, which has null for NaN and infinity.
  const finite = (value) => value !== null && isFinite(value);

  function curveOfRun(costs, losses) {
    const kept = costs.map((cost, i) => [cost, losses[i]]).filter((point) => finite(point[1]));
    const last = kept.filter((point, i) => i === kept.length - 1 || kept[i + 1][0] > point[0]);
    const fitted = isotonic(last.map((point) => point[1]));
    if (last.length) fitted[fitted.length - 1] = last[last.length - 1][1];
    return { costs: last.map((point) => point[0]), losses: fitted, log: false };
  }

  function curveOfLadder(costs, losses) {
    const start = losses.reduce((found, loss, i) => (finite(loss) ? found : i + 1), 0);
    const points = costs.map((cost, i) => [cost, losses[i]]).slice(start).sort((a, b) => a[0] - b[0]);
    return { costs: points.map((point) => point[0]), losses: points.map((point) => point[1]), log: true };
  }

  // A ladder's curve with more points, on a monotone cubic of log cost.
  function bent(curve) {
    const { costs, losses, log } = curve, count = costs.length;
    if (!log || count < 3 || costs[0] <= 0 || costs.some((cost, i) => i && cost <= costs[i - 1])) return curve;
    const finer = [];
    for (let i = 0; i < count - 1; i++) {
      for (let k = 0; k <= BETWEEN; k++) finer.push(costs[i] * Math.pow(costs[i + 1] / costs[i], k / (BETWEEN + 1)));
    }
    finer.push(costs[count - 1]);
    const cubic = monotoneCubic(costs.map(Math.log), losses);
    const values = finer.map((cost, i) =>
      i % (BETWEEN + 1) ? cubic(Math.log(cost), Math.floor(i / (BETWEEN + 1))) : losses[i / (BETWEEN + 1)]);
    return { costs: finer, losses: values, log };
  }

  // Fritsch and Butland (1984): the value at x within an interval between two knots.
  function monotoneCubic(x, y) {
    const widths = x.slice(1).map((place, i) => place - x[i]);
    const slopes = widths.map((width, i) => (y[i + 1] - y[i]) / width);
    const inner = slopes.slice(1).map((slope, i) => {
      if (Math.sign(slope) !== Math.sign(slopes[i]) || slope === 0) return 0;
      const [one, other] = [2 * widths[i + 1] + widths[i], widths[i + 1] + 2 * widths[i]];
      return 1 / ((one / slopes[i] + other / slope) / (one + other));
    });
    const end = slopes.length - 1;
    const slopesAt = [
      slopeAtEnd(widths[0], widths[1], slopes[0], slopes[1]),
      ...inner,
      slopeAtEnd(widths[end], widths[end - 1], slopes[end], slopes[end - 1]),
    ];
    return (place, i) => {
      const bend = (slopesAt[i] + slopesAt[i + 1] - 2 * slopes[i]) / widths[i];
      const [square, s] = [(slopes[i] - slopesAt[i]) / widths[i] - bend, place - x[i]];
      return y[i] + slopesAt[i] * s + square * (s * s) + (bend / widths[i]) * (s * s * s);
    };
  }

  function slopeAtEnd(width, next, slope, nextSlope) {
    const found = ((2 * width + next) * slope - width * nextSlope) / (width + next);
    if (Math.sign(found) !== Math.sign(slope)) return 0;
    return Math.sign(slope) !== Math.sign(nextSlope) && Math.abs(found) > 3 * Math.abs(slope) ? 3 * slope : found;
  }

  const places = (curve, reference = 1) =>
    curve.costs.map((cost) => (curve.log ? Math.log(cost / reference) : cost / reference));

  // Linear between points; beyond the ends the value there.
  function interpolate(x, xs, ys) {
    let [low, high] = [-1, xs.length]; // xs[low] <= x < xs[high]
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle;
      else high = middle;
    }
    if (low < 0) return ys[0];
    if (high === xs.length || x === xs[low]) return ys[low];
    return ((ys[high] - ys[low]) / (xs[high] - xs[low])) * (x - xs[low]) + ys[low];
  }

  function lossAt(curve, cost) {
    const finer = bent(curve);
    return interpolate(curve.log ? Math.log(cost) : cost, places(finer), finer.losses);
  }

  // The cost from which on a curve is at or below a loss; Infinity if it ends above it.
  function meets(curve, loss) {
    if (!curve.costs.length) return Infinity;
    const finer = bent(curve);
    const [place, relation] = crossing(places(finer), finer.losses.map((each) => each - loss));
    return relation === ABOVE ? Infinity : costOf(place, curve.log);
  }

  // Estimates

  const NO_SAVING = { mean: NaN, low: NaN, high: NaN, relation: EQUAL };
  const NOTHING = { saving: NO_SAVING, p: NaN, testedAt: NaN, difference: NaN, deviation: NaN, untested: "" };

  function estimate(given, scratchLosses, references) {
    if (!given.length || given.some((curve) => !curve.costs.length)) return { ...NOTHING, untested: NO_COMMON_COST };
    const curves = given.map(bent), log = curves[0].log;
    const seeds = curves.map((curve, i) => places(curve, references[i]));
    const differences = curves.map((curve, i) => curve.losses.map((loss) => loss - scratchLosses[i]));
    const low = Math.max(...seeds.map((each) => each[0]));
    const high = Math.min(...seeds.map((each) => each[each.length - 1]));
    if (low > high) return { ...NOTHING, untested: NO_COMMON_COST };
    const at = clip(log ? 0 : 1, low, high);
    const inside = seeds.flatMap((each) => each.filter((place) => low < place && place < high));
    const grid = [...new Set([low, at, high, ...inside])].sort((a, b) => a - b);
    const table = seeds.map((each, i) => grid.map((place) => interpolate(place, each, differences[i])));
    const column = grid.map((_, k) => table.map((row) => row[k]));
    const tested = column[grid.indexOf(at)];
    const [place, relation] = crossing(grid, column.map(mean));
    const opposite = { [BELOW]: ABOVE, [ABOVE]: BELOW, [EQUAL]: EQUAL }[relation];
    const saving = { ...NO_SAVING, mean: 1 - costOf(place, log), relation: opposite };
    const found = { ...NOTHING, saving, testedAt: log ? Math.exp(at) : at, difference: mean(tested) };
    if (curves.length === 1) return { ...found, untested: ONE_SEED };
    const spread = Math.max(...tested) - Math.min(...tested);
    if (spread <= ROUNDING * Math.max(...scratchLosses.map(Math.abs))) return { ...found, untested: NO_SPREAD };
    const [first, last] = interval(grid, column);
    return {
      ...found,
      saving: { ...saving, low: 1 - costOf(last, log), high: 1 - costOf(first, log) },
      p: pairedTTest(tested),
      deviation: Math.sqrt(variance(tested)),
    };
  }

  // Of a loss that scratch never meets, what is saved is a lower bound.
  function atLeast(found) {
    const bound = found.saving.relation === BELOW ? { ...NO_SAVING } : { ...found.saving, relation: ABOVE };
    if (!isNaN(bound.low)) bound.high = Infinity;
    return { ...found, saving: bound, ...(found.difference >= 0 ? { p: NaN, untested: UNMET } : {}) };
  }

  function verdict(found, p) {
    if (isNaN(p)) return NONE;
    if (p >= LEVEL) return EVEN;
    if (found.difference < 0) return found.testedAt <= 1 + ROUNDING ? SAVES : BETTER;
    return found.testedAt >= 1 - ROUNDING ? COSTS_MORE : WORSE;
  }

  const costOf = (place, log) => (log && isFinite(place) ? Math.exp(place) : place);

  // Where a piecewise linear curve falls to 0 for good.
  function crossing(xs, differences) {
    let last = differences.length - 1;
    while (last >= 0 && !(differences[last] > 0)) last--;
    if (last < 0) return [xs[0], BELOW];
    if (last === xs.length - 1) return [xs[last], ABOVE];
    const share = differences[last] / (differences[last] - differences[last + 1]);
    return [xs[last] + share * (xs[last + 1] - xs[last]), EQUAL];
  }

  // The hull of all places at which a paired t-test does not reject a mean of 0. `column`: by place, the seeds' differences.
  function interval(grid, column) {
    const factor = critical(LEVEL, column[0].length - 1) ** 2 / column[0].length;
    const means = column.map(mean);
    const excess = column.map((values, k) => means[k] ** 2 - factor * variance(values));
    const kept = grid.filter((_, k) => excess[k] <= 0);
    for (let k = 0; k < grid.length - 1; k++) {
      const slope = column[k + 1].map((value, i) => value - column[k][i]);
      const linear = 2 * (means[k] * mean(slope) - factor * covariance(column[k], slope));
      const quadratic = mean(slope) ** 2 - factor * variance(slope);
      for (const share of roots(quadratic, linear, excess[k])) {
        if (share >= 0 && share <= 1) kept.push(grid[k] + share * (grid[k + 1] - grid[k]));
      }
    }
    const end = grid.length - 1;
    const low = kept.length ? Math.min(...kept) : grid[end];
    const high = kept.length ? Math.max(...kept) : grid[0];
    return [excess[0] > 0 && means[0] > 0 ? low : -Infinity, excess[end] > 0 && means[end] < 0 ? high : Infinity];
  }

  function roots(quadratic, linear, constant) {
    const root = Math.sqrt(linear ** 2 - 4 * quadratic * constant);
    const larger = -0.5 * (linear + (linear < 0 || Object.is(linear, -0) ? -root : root));
    return [larger / quadratic, constant / larger];
  }

  return {
    NO_SAVING, NOTHING, NO_COMMON_COST, EQUAL, BELOW, ABOVE, SAVES, COSTS_MORE, WORSE, NONE,
    mean, sum, tail, critical, holm, curveOfRun, curveOfLadder, lossAt, meets, estimate, atLeast, verdict,
  };
})();
