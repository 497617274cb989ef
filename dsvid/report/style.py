"""The look of the pages: one style sheet, light and dark, from a narrow telephone to a wide screen, and on paper."""

# Contrast of text to its ground is 4.5 : 1 or more, of lines 3 : 1; tests/report/test_page.py computes it from here.
LIGHT = {
    "ground": "#fbfbf9", "card": "#ffffff", "ink": "#1d2327", "quiet": "#566069", "edge": "#d9dcd8",
    "grid": "#e4e6e2",
    "link": "#0b5ea8", "good": "#1b6b3a", "attention": "#8a5300", "bad": "#ab2020",
    "band": "#dcebdc", "level": "#5d6870",
    "c0": "#1f5fae", "c1": "#b3470b", "c2": "#1b7a55", "c3": "#8a3ca0", "c4": "#7a6400", "c5": "#b02a63",
}  # fmt: skip
DARK = {
    "ground": "#14181b", "card": "#1b2024", "ink": "#e6e9ea", "quiet": "#a5b0b7", "edge": "#343c42",
    "grid": "#2b3237",
    "link": "#7fbcf5", "good": "#7fd19b", "attention": "#f0b860", "bad": "#ff9a92",
    "band": "#23402c", "level": "#99a5ad",
    "c0": "#6fb1f7", "c1": "#f59a5f", "c2": "#5fd0a0", "c3": "#d59aea", "c4": "#d9c04a", "c5": "#f58bb5",
}  # fmt: skip

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,"Noto Sans","Liberation Sans",sans-serif;overflow-wrap:anywhere}
a{color:var(--link)}
.skip{position:absolute;left:-999em}
.skip:focus{position:static}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
header,main,footer{max-width:74rem;margin:0 auto;padding:0 clamp(.9rem,3vw,2rem)}
header{padding-top:clamp(1rem,3vw,2.4rem)}
h1{font-size:clamp(1.5rem,1.1rem + 1.6vw,2.1rem);line-height:1.2;margin:.1em 0;font-weight:650}
h2{font-size:1.3rem;margin:2.6rem 0 .7rem;font-weight:650;padding-top:.5rem;border-top:1px solid var(--edge)}
h3{font-size:1rem;margin:0 0 .5rem;font-weight:600}
p{margin:.5rem 0;max-width:46rem}
.quiet,figcaption,caption,dt,footer{color:var(--quiet)}
.state{display:inline-block;font-weight:650;padding:.15em .7em;border:2px solid;border-radius:1em;margin:.5rem 0}
.good{color:var(--good)}.attention{color:var(--attention)}.bad{color:var(--bad)}
.verdict{list-style:none;padding:0;margin:.6rem 0 1.2rem;max-width:52rem}
.verdict li{margin:.45rem 0;padding-left:1.7rem;text-indent:-1.7rem}
.verdict .sign{display:inline-block;width:1.7rem;text-indent:0;font-weight:700}
.figures{display:flex;flex-wrap:wrap;gap:1px;margin:0;padding:0;
background:var(--edge);border:1px solid var(--edge);border-radius:.5rem;overflow:hidden}
.figures div{background:var(--card);padding:.65rem .8rem;flex:1 1 9.8rem}
.figures dt{font-size:.82rem}
.figures dd{margin:0;font-size:1.08rem;font-weight:600;font-variant-numeric:tabular-nums}
.bars{width:100%}.bars td:last-child{width:55%}.bars meter{width:100%;height:1rem}
.charts{display:flex;flex-wrap:wrap;gap:1rem}
.chart,.card{background:var(--card);border:1px solid var(--edge);border-radius:.5rem;padding:.9rem 1rem 1rem;margin:0}
.chart{flex:1 1 20rem;min-width:0}
.chart.wide{flex-basis:100%}
.plot{position:relative;margin:1.1rem .9rem 2.6rem 3.4rem;height:13.5rem}
.wide .plot{height:17rem}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:hidden}
.plot span{position:absolute;font-size:.8rem;line-height:1;color:var(--quiet);font-variant-numeric:tabular-nums;
white-space:nowrap}
.plot .y{right:calc(100% + .5rem);transform:translateY(50%)}
.plot .x{top:calc(100% + .45rem);transform:translateX(-50%)}
.plot .x-name{right:0;top:calc(100% + 1.5rem)}
.plot .letter{bottom:calc(100% + .2rem);transform:translateX(-50%);color:var(--ink);font-weight:600}
svg path,svg polygon{vector-effect:non-scaling-stroke;fill:none;stroke-linejoin:round}
svg .grid{stroke:var(--grid);stroke-width:1}
svg .level{stroke:var(--level);stroke-width:1.5;stroke-dasharray:2 3}
svg .mark{stroke:var(--level);stroke-width:1.5;stroke-dasharray:6 3}
svg .band{fill:var(--band);stroke:var(--good);stroke-width:.8}
svg .line{stroke-width:2.2}
svg .raw{stroke-width:1;opacity:.45}
svg .dots{stroke-width:7;stroke-linecap:round}
svg .c0{stroke:var(--c0)}svg .c1{stroke:var(--c1)}svg .c2{stroke:var(--c2)}
svg .c3{stroke:var(--c3)}svg .c4{stroke:var(--c4)}svg .c5{stroke:var(--c5)}
figcaption{font-size:.86rem;line-height:1.45}
.legend{list-style:none;margin:0 0 .3rem;padding:0}
.legend li{padding-left:2.4rem;text-indent:-2.4rem;margin:.15rem 0}
.swatch{width:1.75rem;height:.75rem;margin-right:.65rem;vertical-align:-.05rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums;margin:.6rem 0 1rem}
caption{text-align:left;padding:.3rem 0;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.32rem .6rem .32rem 0;border-bottom:1px solid var(--edge)}
thead th{font-weight:600;color:var(--quiet);overflow-wrap:normal}
tbody th{font-weight:500}
.counted tbody th{white-space:nowrap}
.numbers th+th,.numbers td{text-align:right}
details{margin:.6rem 0;border:1px solid var(--edge);border-radius:.5rem;background:var(--card);padding:0 1rem}
summary{cursor:pointer;padding:.65rem 0;font-weight:600}
pre{margin:.3rem 0 .8rem;padding:.7rem .8rem;background:var(--ground);border:1px solid var(--edge);border-radius:.4rem;
white-space:pre-wrap;font:.85rem/1.5 ui-monospace,"SFMono-Regular",Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{font-family:ui-monospace,"SFMono-Regular",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.92em}
.commands dt{margin-top:.7rem}.commands dd{margin:0}
img{max-width:100%;height:auto;display:block;border-radius:.3rem;background:#fff}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem}
.pictures figure{margin:0}
.notice{border-left:4px solid var(--attention);padding:.1rem 0 .1rem 1rem;margin:1rem 0}
footer{padding-top:2rem;padding-bottom:2.5rem;font-size:.86rem}
@media print{body{background:#fff}.chart,details,.pictures figure{break-inside:avoid}}
"""


def style_sheet() -> str:
    """The whole style sheet: colours of both schemes, then the rules."""
    light, dark = ("".join(f"--{name}:{value};" for name, value in scheme.items()) for scheme in (LIGHT, DARK))
    return f":root{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{_RULES}"
