"""The look of ``report.html``, and the few lines of script that show values under the pointer."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --page:#f6f7f9; --card:#fff; --text:#16202c; --soft:#5d6b7c; --line:#e2e6ec;
  --good:#12805c; --bad:#c2410c; --warn:#8a6d00; --c1:#2563eb; --c2:#0d9488; --c3:#d97706; --c4:#9333ea; --c5:#dc2626;
  --c6:#64748b; --c7:#be185d; --c8:#4d7c0f; --c9:#0369a1; --c10:#92400e; --c11:#111827; --c12:#0f766e;
  --tint:#eef3fb; }
@media (prefers-color-scheme: dark) { :root { --page:#0f141a; --card:#171e27; --text:#e6ebf2; --soft:#93a1b3;
  --line:#2a3441; --good:#34d399; --bad:#fb923c; --warn:#facc15; --c1:#60a5fa; --c2:#2dd4bf; --c3:#fbbf24;
  --c4:#c084fc; --c5:#f87171; --c6:#94a3b8; --c7:#f472b6; --c8:#a3e635; --c9:#38bdf8; --c10:#fdba74; --c11:#f9fafb;
  --c12:#5eead4; --tint:#1b2635; } }
* { box-sizing:border-box } html { -webkit-text-size-adjust:100% }
body { margin:0; background:var(--page); color:var(--text);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif }
main { max-width:1200px; margin:0 auto; padding:36px 24px 64px }
h1 { font-size:30px; line-height:1.2; margin:0 0 4px; letter-spacing:-.02em }
h2 { font-size:20px; margin:44px 0 6px; letter-spacing:-.01em } h3 { font-size:15px; margin:26px 0 10px }
p { margin:0 0 12px } .soft, .note { color:var(--soft) } .note { font-size:13px; margin:6px 0 0 }
.facts { display:flex; flex-wrap:wrap; gap:6px 8px; margin:14px 0 26px; padding:0; list-style:none }
.facts li { background:var(--card); border:1px solid var(--line); border-radius:999px; padding:2px 12px;
  font-size:13px }
.facts b { font-weight:600 } .facts span { color:var(--soft) }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(160px,1fr)); gap:14px }
.tile, .chart, .sample, .panel { background:var(--card); border:1px solid var(--line); border-radius:12px }
.tile { padding:14px 18px } .tile .name { color:var(--soft); font-size:13px }
.tile .value { font-size:28px; font-weight:650; letter-spacing:-.02em; font-variant-numeric:tabular-nums }
.tile .value small { font-size:16px; font-weight:500; color:var(--soft) }
.tile .more { font-size:13px; color:var(--soft) }
.up { color:var(--good) } .down { color:var(--bad) }
.panel { padding:6px 18px; overflow-x:auto }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
th, td { text-align:right; padding:9px 10px; border-bottom:1px solid var(--line); white-space:nowrap }
th:first-child, td:first-child { text-align:left } th { color:var(--soft); font-weight:500; font-size:13px }
tr:last-child td { border-bottom:0 } td.bar { width:34%; min-width:150px }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr)); gap:16px; margin-top:14px }
.chart { margin:0; padding:14px 16px 10px; position:relative } .chart.wide { grid-column:1/-1 }
figcaption { font-weight:600 } .legend { display:flex; flex-wrap:wrap; gap:2px 14px; font-size:13px; color:var(--soft);
  min-height:20px } .key i { display:inline-block; width:10px; height:10px; border-radius:3px; margin-right:6px;
  background:var(--c) }
svg { display:block; width:100%; height:auto; overflow:visible } .grid { stroke:var(--line); fill:none }
.tick { fill:var(--soft); font-size:11.5px }
.line { stroke:var(--c); fill:none; stroke-width:2; stroke-linejoin:round }
.raw { stroke:var(--c); fill:none; stroke-width:1; opacity:.28 }
.dot { fill:var(--c) } .area { fill:var(--c); opacity:.8 }
.cursor { stroke:var(--soft); stroke-dasharray:3 3; fill:none }
.c1{--c:var(--c1)} .c2{--c:var(--c2)} .c3{--c:var(--c3)} .c4{--c:var(--c4)} .c5{--c:var(--c5)} .c6{--c:var(--c6)}
.c7{--c:var(--c7)} .c8{--c:var(--c8)} .c9{--c:var(--c9)} .c10{--c:var(--c10)} .c11{--c:var(--c11)} .c12{--c:var(--c12)}
.tip { position:absolute; top:44px; right:18px; background:var(--card); border:1px solid var(--line); border-radius:8px;
  padding:6px 10px; font-size:12.5px; font-variant-numeric:tabular-nums; pointer-events:none;
  box-shadow:0 4px 14px #0002 }
.sample { display:grid; grid-template-columns:190px 1fr; gap:18px; padding:16px; margin:0 0 14px }
.sample img { width:100%; border-radius:8px; border:1px solid var(--line); background:#fff; image-rendering:auto }
.sample img.small { image-rendering:pixelated }
.missing { border:1px dashed var(--line); border-radius:8px; padding:24px 8px; text-align:center;
  color:var(--soft); font-size:13px }
.question { font-weight:600; overflow-wrap:anywhere } .response { border-top:1px solid var(--line); padding:10px 0 2px;
  margin-top:10px }
.chips { display:flex; flex-wrap:wrap; gap:6px; font-size:12.5px; font-variant-numeric:tabular-nums }
.chip { background:var(--tint); border-radius:6px; padding:1px 8px } .chip b { font-weight:600 }
.chip.correct { background:color-mix(in srgb,var(--good) 18%,transparent); color:var(--good); font-weight:600 }
.chip.wrong, .chip.no_answer { background:color-mix(in srgb,var(--bad) 16%,transparent); color:var(--bad);
  font-weight:600 }
.chip.grader_error { background:color-mix(in srgb,var(--warn) 18%,transparent); color:var(--warn); font-weight:600 }
pre { margin:8px 0; white-space:pre-wrap; overflow-wrap:anywhere; max-height:300px;
  overflow:auto; font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace }
.tag { color:var(--c4) }
details { margin-top:14px } summary { cursor:pointer; color:var(--soft) }
@media (max-width:640px) { .sample { grid-template-columns:1fr } .sample .pictures { max-width:260px } }
@media print { body { background:#fff } .chart, .sample { break-inside:avoid } pre { max-height:none } }
"""

SCRIPT = """
for (const figure of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart), svg = figure.querySelector("svg"), tip = figure.querySelector(".tip");
  const cursor = figure.querySelector(".cursor"), span = chart.last - chart.first || 1;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const share = Math.min(1, Math.max(0, (x - chart.left) / (chart.right - chart.left)));
    const wanted = chart.first + share * span;
    const nearest = (points) => points.reduce((a, b) => Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a);
    const step = nearest(chart.series.flatMap((one) => one.points))[0];
    const at = chart.left + (step - chart.first) / span * (chart.right - chart.left);
    cursor.setAttribute("d", `M${at} ${chart.top}V${chart.bottom}`);
    tip.replaceChildren(...[`step ${step}`, ...chart.series.map((one) => `${one.name}: ${nearest(one.points)[1]}`)]
      .map((text) => Object.assign(document.createElement("div"), { textContent: text })));
    tip.hidden = false;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("d", ""); });
}
"""
