// Numbers as people read them, as growbench.formatting writes them.
"use strict";
const format = (() => {
  const PREFIXES = [["", 1], ["k", 1e3], ["M", 1e6], ["G", 1e9], ["T", 1e12], ["P", 1e15], ["E", 1e18], ["Z", 1e21]];
  const CLOCK = [["s", 1], ["min", 60], ["h", 3600], ["days", 86400]];
  const NONE = "–", MINUS = "−", BLANK = "\u00a0";

  const rounded = (value) => Number(value.toPrecision(3)); // 0.9999 is written with the digits of 1
  // As Python rounds: what is exactly half-way goes to the even digit, where toFixed goes up.
  function fixed(value, places) {
    const up = Math.abs(value).toFixed(places), most = Math.abs(value) * 10 ** places;
    const tie = most % 1 === 0.5 && Number.isInteger(value * 2 ** (places + 1));
    const text = tie && Math.floor(most) % 2 === 0 ? (Math.floor(most) / 10 ** places).toFixed(places) : up;
    return value < 0 ? MINUS + text : text;
  }

  const grouped = (text) => text.replace(/^[^.]+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));

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
    return grouped(fixed(value, Math.max(places, 0)));
  }

  function quantity(value, unit) {
    const { name, size } = scale(Math.abs(value), unit);
    return `${digits(value / size)}${BLANK}${name}`.trimEnd();
  }

  const percentTo = (share, places) =>
    (isNaN(share) ? NONE : `${fixed(100 * share, places).replace(/^−(0\.?0*)$/, "$1")}${BLANK}%`);

  const percent = (share) => percentTo(share, 1);

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

  return { scale, digits, quantity, percent, percentTo, saving, pValue, loss, short };
})();
