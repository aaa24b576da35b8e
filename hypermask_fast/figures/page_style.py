"""The style sheet of a report: light and dark ground, screens and paper."""

from __future__ import annotations

from hypermask_fast.figures.svg import DARK_RULES, FONT, LIGHT_RULES, STYLE

_LIGHT = LIGHT_RULES + "--ground:#f5f6f8;--card:#ffffff;--edge:#e0e4ea;--accent:#0062a3;"
_LIGHT += "--good:#007a53;--bad:#b3400a;--mark:#fff4d6;"
_DARK = DARK_RULES + "--ground:#0f141a;--card:#171e27;--edge:#2a3440;--accent:#7cc4ff;"
_DARK += "--good:#3fd6a4;--bad:#ff9b66;--mark:#3a3113;"

PAGE_STYLE = f"""
:root{{{_LIGHT}color-scheme:light dark}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--ground);color:var(--text);font:14px/1.5 {FONT}}}
header,main,footer{{max-width:1160px;margin:0 auto;padding:0 16px}}
header{{padding-top:28px}}
h1{{font-size:26px;line-height:1.2;margin:0;overflow-wrap:anywhere;letter-spacing:-.01em}}
h2{{font-size:18px;margin:30px 0 10px}}
h3{{font-size:14px;margin:0 0 10px;font-weight:600}}
.sub{{color:var(--muted);margin:4px 0 10px;overflow-wrap:anywhere}}
nav{{display:flex;flex-wrap:wrap;gap:4px 18px;border-bottom:1px solid var(--edge);padding:0 0 10px}}
a{{color:var(--accent);text-decoration:none}}
a:hover{{text-decoration:underline}}
.tiles{{
display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:12px;margin:18px 0}}
.tiles div{{
background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:10px 14px}}
.tiles dt{{color:var(--muted);font-size:12px}}
.tiles dd{{
margin:0;font-size:20px;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap}}
.notes{{
background:var(--mark);border-radius:10px;padding:10px 14px 10px 32px;margin:0 0 8px;
overflow-wrap:anywhere}}
.cards{{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}}
#tasks .cards,#settings .cards{{display:block}}
#tasks .card{{display:inline-block}}
#settings .cards{{columns:3;column-gap:16px}}
#settings .card{{break-inside:avoid;margin-bottom:16px}}
@media (max-width:900px){{
  .cards{{grid-template-columns:minmax(0,1fr)}}
  #settings .cards{{columns:1}}
}}
.card{{
background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:14px 17px;
margin:0;min-width:0;max-width:100%}}
.wide{{grid-column:1/-1}}
.scroll{{overflow:auto}}
.tall{{max-height:460px}}
figcaption{{color:var(--muted);font-size:12px;margin-top:8px;max-width:520px}}
.data{{font-size:11px;font-weight:400;margin-left:10px}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
th{{text-align:left;font-weight:600;color:var(--muted);font-size:12px;white-space:nowrap}}
th,td{{padding:4px 22px 4px 0;border-bottom:1px solid var(--edge);vertical-align:baseline}}
tr:last-child td{{border-bottom:0}}
th:last-child,td:last-child{{padding-right:0}}
.n{{text-align:right;white-space:nowrap}}
.settings table,.wide table{{width:100%}}
.settings td,.wide td{{overflow-wrap:anywhere}}
.settings td:first-child,.wide td:first-child{{white-space:nowrap;width:1%}}
.wide td.n,.wide th.n{{width:1%}}
.changed td{{background:var(--mark)}}
.changed td:last-child{{font-weight:600}}
small{{color:var(--muted);font-weight:400}}
.good{{color:var(--good);font-weight:700}}
.bad{{color:var(--bad);font-weight:700}}
code,pre{{font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}}
pre{{
margin:0 0 12px;padding:10px 12px;background:var(--ground);border-radius:6px;
white-space:pre-wrap;overflow-wrap:anywhere}}
footer{{color:var(--muted);font-size:12px;padding:22px 16px 34px}}
{STYLE}
@media print{{
:root{{{_LIGHT}color-scheme:light}}
@page{{size:A4;margin:14mm}}
body{{background:#fff;font-size:11px;print-color-adjust:exact;-webkit-print-color-adjust:exact}}
header,main,footer{{max-width:none;padding:0}}
nav,.data{{display:none}}
.card,.tiles div{{break-inside:avoid;border-color:#d5d9df}}
.tall{{max-height:none;break-inside:auto}}
tr{{break-inside:avoid}}
h2,h3{{break-after:avoid}}
.tiles{{grid-template-columns:repeat(4,1fr)}}
.tiles dd{{font-size:16px}}
.cards{{grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}}
.card{{padding:9px 11px}}
#settings .cards{{columns:3;column-gap:10px}}
#settings .card{{margin-bottom:10px}}
th,td{{padding:2px 12px 2px 0}}
code,pre,small,figcaption{{font-size:9.5px}}
}}
"""
