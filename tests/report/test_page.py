"""The page: complete, self-contained, and safe to open."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest

from torchswat import cli
from torchswat.errors import InvalidData
from torchswat.report.discover import discover
from torchswat.report.drawings import themed
from torchswat.report.page import _kinds, _tied, make_page

EMPTY = {"meta", "path", "use", "rect", "br"}


class Checker(HTMLParser):
    """Collects ids and links, and finds tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag


@pytest.fixture
def page(everything) -> str:
    return make_page(discover(everything), "A <title>")


def test_it_is_whole_and_needs_no_other_file(page):
    checker = Checker(page)
    assert not checker.open and "svg" in checker.tags and "script" not in checker.tags
    assert all(link.startswith("#") for link in checker.links), checker.links
    assert {link[1:] for link in checker.links} <= set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids)), "ids of two drawings are mixed up"
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)


def test_it_says_everything(page):
    assert page.count('<td class="figure">') > 30, "claims that were not run are listed too"
    assert 'class="pill not-run"' in page and 'class="pill reproduced"' in page
    assert "27.8°" in page and "torchswat reproduce 9d" in page
    for words in ("resnet-digits x8, digits", "operations", "Layers of swat 80 %", "density", "sample:1"):
        assert words in page, words


def test_figures_stand_in_the_order_of_the_paper(everything):
    facts = json.loads((everything[0] / "9d" / "result.json").read_text())
    for figure in ("top-k-cost", "5-accounts", "2a"):
        shutil.copytree(everything[0] / "9d", everything[0] / figure)
        (everything[0] / figure / "result.json").write_text(
            json.dumps({**facts, "figure": figure, "claims": []})
        )
    shown = re.findall(r'article id="figure-([^"]*)"', make_page(discover(everything), "A page"))
    assert shown == ["2a", "5-accounts", "9d", "top-k-cost"]


def test_verdicts_and_accuracy_over_time_come_first(everything):
    facts = json.loads((everything[0] / "9d" / "result.json").read_text())
    shutil.copytree(everything[0] / "9d", everything[0] / "time-to-accuracy")
    table = [{"training": "SWAT 80 %", "accuracy (%)": "92.10 ± 0.20", "to 92 %": "–"}]
    more = {"figure": "time-to-accuracy", "claims": [], "table": table, "missing": ["dense-s1", "dense-s2"]}
    (everything[0] / "time-to-accuracy" / "result.json").write_text(json.dumps({**facts, **more}))
    page = make_page(discover(everything), "A page")
    assert not Checker(page).open
    places = [
        page.index(part)
        for part in ('class="tally"', '"figure-time-to-accuracy"', 'class="claims"', '"figure-9d"')
    ]
    assert places == sorted(places) and page.count('id="figure-time-to-accuracy"') == 1
    assert '<td class="n">92.10 ± 0.20</td>' in page and ">dense-s1 dense-s2<" in page
    assert "2 of 2 runs are not made yet" in page


def test_panels_can_be_stacked(everything):
    page = make_page(discover(everything), "A page")
    curves = page.split('class="panels')
    assert len(curves) > 3 and all("<svg" in part for part in curves[1:])
    assert "<figcaption>" in page and facts_caption(everything) in page


def facts_caption(everything) -> str:
    """The first words of the caption of 9d, which is text of the page and not of the drawing."""
    return json.loads((everything[0] / "9d" / "result.json").read_text())["caption"][:30]


def test_seeds_are_taken_together(everything, trained, tmp_path):
    for source in trained.iterdir():
        again = tmp_path / "again" / f"{source.name}-again"
        shutil.copytree(source, again, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
        summary = json.loads((again / "summary.json").read_text())
        summary["last"]["sparse"] += 1.0 if "swat" in source.name else 0.0
        (again / "summary.json").write_text(json.dumps(summary))
    found = discover([trained, tmp_path / "again"])
    dense, swat = _kinds(sorted(found.runs.values(), key=lambda run: run.algorithm))
    assert (dense["runs"], dense["against"], swat["runs"]) == (2, "", 2)
    assert swat["accuracy"].endswith("± 0.71") and swat["macs"].endswith("x") and not dense["macs"]
    loss = float(swat["accuracy"].split()[0]) - float(dense["accuracy"].split()[0])
    assert float(swat["against"]) == pytest.approx(loss, abs=0.011)


@pytest.mark.parametrize(
    "name, rows, words",
    [
        ("step", [("nchw", None, 1.0), ("sample:1", 0.8, 2.5)], ["sample:1, S = 0.8", "2.50x"]),
        (
            "inference",
            [("openvino", None, 0.9), ("torchswat", 0.5, 1.5), ("torchswat", 0.8, 2.0)],
            ["net, batch 8"],
        ),
    ],
)
def test_benchmarks_at_one_sparsity_and_at_several(everything, name, rows, words):
    rows = [
        {
            "network": "net",
            "batch_size": 8,
            "how": how,
            "sparsity": s,
            "speed_up": v,
            "limit": s and 1 / (1 - s),
        }
        for how, s, v in rows
    ]
    (everything[0] / "bench.json").write_text(json.dumps({"benchmark": name, "rows": rows}))
    page = make_page(discover(everything), "A page")
    assert all(f">{word}<" in page for word in [*words, rows[0]["how"]])


def test_memory_is_drawn(everything):
    row = {"network": "net", "batch_size": 8, "norm_input": "int8", "weights_beside": 2e6}
    rows = [
        {**row, "algorithm": "dense", "sparsity": None, "activations": 9e6},
        {**row, "algorithm": "swat", "sparsity": 0.8, "activations": 4e6},
    ]
    (everything[0] / "bench.json").write_text(json.dumps({"benchmark": "memory", "rows": rows}))
    page = make_page(discover(everything), "A page")
    assert ">swat 0.8, batch norm int8<" in page and ">11<" in page and ">6<" in page


def test_numbers_read_well():
    assert _tied("at 70 % -1.5 points (p = 0.1), lemma-b1 7e-15") == (
        "at 70\u00a0% \u22121.5\u00a0points (p\u00a0=\u00a00.1), lemma-b1 7e-15"
    )


def test_words_of_others_are_text(page):
    assert "A &lt;title&gt;" in page and "<i>" not in page


def test_light_and_dark(page):
    assert "prefers-color-scheme: dark" in page
    assert "var(--series-0)" in page and "var(--ink)" in page
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "#0b62a4" not in drawings and "#222222" not in drawings, "a colour that dark mode cannot replace"


def test_drawings_are_only_looked_at():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="100pt" onload="x()"><script>x()</script>'
        '<a href="javascript:x()"><path/></a><use href="http://there/x"/><use href="#here"/>'
        '<rect style="fill: url(http://there)" fill="url(#c)"/><style>@import "x"</style></svg>'
    )
    clean = themed(svg)
    assert "x()" not in clean and "there" not in clean and "import" not in clean
    assert 'role="img" aria-label="A drawing"' in themed(svg, "A drawing")
    assert 'href="#here"' in clean and "url(#c)" in clean and "max-width: 150px" in clean
    with pytest.raises(InvalidData, match="not SVG"):
        themed("<svg")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["torchswat", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output, errors = capsys.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


def test_the_command_on_ones_own_runs(run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    code, output, errors = run("report")
    assert code == 0 and output.strip() == "report.html: 0 figures, 2 runs, 0 benchmarks.", errors
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Training runs</h1>" in page and 'id="claims"' not in page and 'id="runs"' in page


def test_the_command_on_nothing(run):
    code, _, errors = run("report", "nowhere")
    assert code == 2 and errors == "torchswat: nowhere is not a folder\n"
