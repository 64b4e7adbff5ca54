"""A thousand texts of people who mean harm: each tries to set a canary, to load something, or to leave its place."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.report import report
from tests.pipeline.report.small_runs import Row, SmallRun, picture, uid

AWAY = "http://127.0.0.1:9"
"""A port at which nobody listens; a page of ours must never ask."""

INSIDE = (
    "<script>window.canary=1</script>",
    "<img src=x onerror=window.canary=1>",
    f"<img src={AWAY}/i.png>",
    "<svg onload=window.canary=1><circle r=9/></svg>",
    "<svg><script>window.canary=1</script></svg>",
    "<svg><style>*{display:none}</style></svg>",
    f"<iframe src='{AWAY}/f' srcdoc='<script>parent.canary=1</script>'></iframe>",
    f"<link rel=stylesheet href={AWAY}/s.css>",
    f"<meta http-equiv=refresh content='0;url={AWAY}/'>",
    f"<base href={AWAY}/>",
    f"<form action={AWAY}/><input name=a autofocus onfocus=window.canary=1></form>",
    "<a href=javascript:window.canary=1 id=top>",
    "<details open ontoggle=window.canary=1>",
    "<body onload=window.canary=1>",
    "<math><mtext></p><style><img src=x onerror=window.canary=1>",
    f"<style>*{{background:url({AWAY}/b)}}</style>",
    f"<object data={AWAY}/o><embed src={AWAY}/e>",
    f"<video src={AWAY}/v onerror=window.canary=1 autoplay>",
    "<template shadowrootmode=open><script>window.canary=1</script></template>",
    "<marquee onstart=window.canary=1>x</marquee>",
    "<input type=image src=x onerror=window.canary=1>",
    "{{ 7*7 }}{% for x in ().__class__.__bases__ %}{{ x }}{% endfor %}",
    "${window.canary=1}",
    "javascript:window.canary=1",
    "&lt;script&gt;window.canary=1&lt;/script&gt;",
    "&#60;script&#62;window.canary=1&#60;/script&#62;",
    "\u003cscript\u003ewindow.canary=1",
    "+ADw-script+AD4-window.canary=1+ADw-/script+AD4-",
    "\uff1cscript\uff1ewindow.canary=1\uff1c/script\uff1e",
    f"url({AWAY}/u);background:url({AWAY}/w)",
    "expression(window.canary=1)",
    "%3Cscript%3Ewindow.canary=1%3C/script%3E",
    "<scr<script>ipt>window.canary=1</scr</script>ipt>",
    "<a\u2028href='javascript:window.canary=1'>",
    "{0.__class__} %s %(x)s {style}",
    "<plaintext>",
)
BEFORE = (
    *("", '"', "'", "`", ">", '">', "'>", "-->", "]]>", "{", "*/}", "/*", "}</style>", "<!--", "<![CDATA["),
    *("</title>", "</style>", "</script>", "</svg>", "</text></svg>", "</textarea>", "</figcaption></figure>"),
    *('" onerror="window.canary=1" x="', "' onload='window.canary=1' x='", "</code></pre>"),
    *("\u202e", "\x00", "\ud7ff\ufeff"),
)
TEXTS = tuple(dict.fromkeys(before + inside for inside, before in product(INSIDE, BEFORE)))[:1000]
TONGUES = {
    "en": "A cat on a sofa",
    "ar": "قطة على الأريكة",
    "he": "חתול על הספה",
    "fa": "گربه روی مبل",
    "zh": "沙发上的一只猫",
    "ja": "ソファの上の猫",
    "ko": "소파 위의 고양이",
    "hi": "सोफे पर बिल्ली",
    "th": "แมวบนโซฟา",
    "ru": "Кошка на диване",
    "el": "Μια γάτα στον καναπέ",
    "emoji": "🐈\u200d⬛ 🛋️",
}


def roomy_page(folder: Path, texts: Sequence[str]) -> Path:
    """The page of such a run, with room for a thousand of everything."""
    written(folder / "root", texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.page.EXAMPLES", 1000)
        patch.setattr("pipeline.report.page.ERRORS", 1000)
        patch.setattr("pipeline.report.web.HOSTS", 1000)
        patch.setattr("pipeline.report.web.STATUSES", 1000)
        patch.setattr("pipeline.report.copies.SHOWN_OF_EACH", 100)
        target = folder / "page.html"
        target.write_text(report(str(folder / "root")), encoding="utf-8")
    return target


def written(root: Path, texts: Sequence[str]) -> None:
    """A run in which every text is a caption, a URL, a host, a status, an error and a column's name; some also stand
    as a verdict, a stage, a DAG, a shard and a copy's group.
    """
    columns = {f"number {place} {text}": float(place % 3) for place, text in enumerate(texts[:12])}
    rows = [
        Row(
            uid(place),
            caption=text,
            url=f"{'https://' if place % 2 else 'x://'}{place}{text}/{text}",
            status=f"{place} {text}",
            picture=picture(size=(4, 4)),
            numbers=columns if place % 5 else dict.fromkeys(columns, 7.0),
            group=f"{place // 2} {texts[place // 2 * 2]}",
            similarity=0.5,
        )
        for place, text in enumerate(texts)
    ]
    dropped_by = [f"{place % 7} {texts[place % 7]}" if place % 10 == 0 else None for place in range(len(texts))]
    run = SmallRun(
        dropped_by=dropped_by,
        dag=texts[0],
        text="\n".join(texts),
        stage=texts[1],
        errors=[f"{chr(65 + place % 26)}{text}" for place, text in enumerate(texts)],
        shard=f"/data/{texts[2]}.tar",
        edges=pa.table({texts[3]: [1.0, 2.0]}),
    )
    run.write(str(root), rows)
