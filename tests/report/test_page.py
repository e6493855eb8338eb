"""The page: complete, self-contained, and safe to open."""

from __future__ import annotations

import re
import shutil
import sys
from html.parser import HTMLParser

import pytest

from torchswat import cli
from torchswat.errors import InvalidData
from torchswat.report.discover import discover
from torchswat.report.drawings import themed
from torchswat.report.page import make_page

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
    assert page.count('<tr>\n<td class="figure">') > 30, "claims that were not run are listed too"
    assert 'class="pill not-run"' in page and 'class="pill reproduced"' in page
    assert "27.8°" in page and "torchswat reproduce 9d" in page
    for words in ("resnet-digits x8, digits", "operations", "Layers of swat 80 %", "density", "sample:1"):
        assert words in page, words


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
