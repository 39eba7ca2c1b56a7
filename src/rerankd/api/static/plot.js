// Plots of the recent history.
import { el, svg } from "./dom.js";
import { language, t } from "./words.js";

const WIDTH = 300;
const HEIGHT = 64;

/** Bars of one series, with a part of it drawn in front. */
export function bars(title, unit, values, part, stepS) {
  const most = Math.max(...values, 1);
  const step = WIDTH / values.length;
  const bar = (kind) => (value, at) =>
    value ? svg("rect", { class: kind, x: at * step, width: Math.max(step - 0.5, 0.5), y: HEIGHT - (value / most) * HEIGHT, height: (value / most) * HEIGHT }) : "";
  const total = values.reduce((sum, value) => sum + value, 0);
  const bad = part.reduce((sum, value) => sum + value, 0);
  const said = bad ? `${format(total)} · ${t("{n} failed", { n: format(bad) })}` : format(total);
  return figure(title, said, most, unit, stepS * values.length, [...values.map(bar("bar")), ...part.map(bar("bar bad"))].filter(Boolean));
}

/** Lines of several series; null is a gap. */
export function lines(title, unit, series, stepS) {
  const all = Object.values(series).flat().filter((value) => value !== null);
  const most = Math.max(...all, 1);
  const length = Object.values(series)[0].length;
  const drawn = Object.entries(series).flatMap(([kind, values]) => {
    const points = values.map((value, at) => (value === null ? null : [((at + 0.5) * WIDTH) / length, HEIGHT - 2 - (value / most) * (HEIGHT - 6)]));
    const path = points.map((point, at) => (point ? `${points[at - 1] ? "L" : "M"}${point.map((one) => one.toFixed(1)).join(" ")}` : "")).join("");
    const alone = points.filter((point, at) => point && !points[at - 1] && !points[at + 1]);
    return [svg("path", { class: `line ${kind}`, d: path }), ...alone.map(([x, y]) => svg("path", { class: `line dot-${kind} ${kind}`, d: `M${x - 1.5} ${y.toFixed(1)}h3` }))];
  });
  const latest = (values) => values.findLast((value) => value !== null);
  const now = Object.entries(series).map(([kind, values]) => [kind, latest(values)]).filter(([, value]) => value !== undefined);
  const said = now.map(([kind, value]) => `${t(kind)} ${format(value)} ${unit}`).join(" · ") || t("no data yet");
  return figure(title, said, most, unit, stepS * length, drawn);
}

function figure(title, said, most, unit, seconds, drawn) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${said}` }, ...drawn);
  return el(
    "figure",
    { class: "card plot" },
    el("figcaption", {}, el("span", { class: "muted" }, title), el("strong", {}, said)),
    picture,
    el("div", { class: "axis small muted", "aria-hidden": "true" }, el("span", {}, t("{n} min ago", { n: seconds / 60 })), el("span", {}, t("max {n}", { n: `${format(most)}${unit ? ` ${unit}` : ""}` })), el("span", {}, t("now"))),
  );
}

/** The reliability of calibrated scores: a circle for each bin of [score, share of relevant documents, documents]. */
export function reliability(calibration) {
  const { reliability: bins, log_loss } = calibration;
  const most = Math.max(...bins.map(([, , count]) => count));
  const circle = ([score, share, count]) => svg("circle", { class: "bin", cx: score * 100, cy: 100 - share * 100, r: Math.max(6 * Math.sqrt(count / most), 1.5) });
  const losses = log_loss.map((value) => value.toFixed(3)).join(" → ");
  const said = t("log loss {losses}", { losses });
  const title = t("Reliability: score (across) and share of relevant documents (up)");
  const picture = svg("svg", { viewBox: "-7 -7 114 114", role: "img", "aria-label": `${title}. ${said}` }, svg("path", { class: "frame", d: "M0 0V100H100" }), svg("path", { class: "ideal", d: "M0 100L100 0" }), ...bins.map(circle));
  return el("figure", { class: "reliability" }, picture, el("figcaption", { class: "small muted" }, el("strong", {}, said), el("span", {}, title)));
}

export const format = (value) => new Intl.NumberFormat(language, { maximumFractionDigits: value < 10 ? 1 : 0 }).format(value);
