// Numbers as people read them. Nothing here touches the page.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const NOTHING = "–";

const is = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const count = (n) => (is(n) ? whole.format(n) : NOTHING);

/** A count in little room. */
export const compact = (n) => (is(n) ? (Math.abs(n) < 10_000 ? whole.format(n) : short.format(n)) : NOTHING);

export function rate(n) {
  if (!is(n)) return NOTHING;
  return Math.abs(n) < 10 && n !== 0 ? n.toFixed(1) : compact(n);
}

export const percent = (share, digits = 1) => (is(share) ? `${(100 * share).toFixed(digits)} %` : NOTHING);

export const nats = (n) => (is(n) ? n.toFixed(3).replace("-", "−") : NOTHING);

export function bytes(n) {
  if (!is(n)) return NOTHING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${n < 10 && unit > 0 ? n.toFixed(1) : whole.format(n)} ${units[unit]}`;
}

export function duration(seconds) {
  if (!is(seconds)) return NOTHING;
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** Time of day, and the date unless it is today. */
export function clock(ms) {
  const time = new Date(ms);
  const today = time.toDateString() === new Date().toDateString();
  const two = (n) => String(n).padStart(2, "0");
  const day = today ? "" : `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} `;
  return `${day}${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}
