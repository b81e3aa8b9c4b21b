// Numbers as people read them, as growbench.formatting writes them.
"use strict";
const format = (() => {
  const PREFIXES = [["", 1], ["k", 1e3], ["M", 1e6], ["G", 1e9], ["T", 1e12], ["P", 1e15], ["E", 1e18], ["Z", 1e21]];
  const CLOCK = [["s", 1], ["min", 60], ["h", 3600], ["days", 86400]];
  const NONE = "–", MINUS = "−", BLANK = "\u00a0";

  const rounded = (value) => Number(value.toPrecision(3)); // 0.9999 is written with the digits of 1
  // Python rounds a half to the even digit
  const fixed = (value, places, grouped = false) =>
    new Intl.NumberFormat("en-US", {
      minimumFractionDigits: places, maximumFractionDigits: places, useGrouping: grouped, roundingMode: "halfEven",
    }).format(value).replace("-", MINUS);

  function scale(largest, unit) {
    const [units, value] = unit === "s" ? [CLOCK.map(([name, size]) => [name, size, 3 * size]), largest] :
      [PREFIXES.map(([name, size]) => [name + unit, size, size]), rounded(largest)];
    const [name, size] = units.filter(([, , from]) => value >= from).pop() ?? units[0];
    return { name, size };
  }

  function digits(value) {
    if (isNaN(value)) return NONE;
    if (!isFinite(value)) return value > 0 ? "∞" : `${MINUS}∞`;
    const places = value ? 2 - Math.floor(Math.log10(Math.abs(rounded(value)))) : 0;
    return fixed(value, Math.max(places, 0), true);
  }

  function quantity(value, unit) {
    const { name, size } = scale(Math.abs(value), unit);
    return `${digits(value / size)} ${name}`.trimEnd();
  }

  const percent = (share) => (isNaN(share) ? NONE : `${fixed(100 * share, 1).replace(/^−0\.0$/, "0.0")}${BLANK}%`);

  // A saving with its interval. Open ends are bounds; what an interval adds nothing to is left out.
  function saving({ mean, low, high, relation }) {
    if (isNaN(mean)) return NONE;
    const ends = [low, high].filter(isFinite).map((end) => percent(end).slice(0, -2));
    const bound = relation === "=" ? percent(mean) : `${relation} ${percent(mean)}`;
    if (isNaN(low)) return bound;
    if (!ends.length) return `${bound} (no limits)`;
    const text = ends.length === 2 ? ends.join(" to ") : `${isFinite(low) ? ">" : "<"} ${ends[0]}`;
    return bound.startsWith(text) ? bound : `${bound} (${text})`;
  }

  function pValue(p) {
    if (isNaN(p)) return NONE;
    if (p < 0.001) return `<${BLANK}0.001`;
    return `=${BLANK}${fixed(p, fixed(p, 3) === "0.050" ? 4 : 3)}`;
  }

  // Of an axis: without zeros at the end.
  const short = (value) => String(Number(value.toPrecision(4))).replace("-", MINUS);

  const loss = (value) => fixed(value, 3);

  return { BLANK, scale, digits, quantity, percent, saving, pValue, loss, short };
})();
