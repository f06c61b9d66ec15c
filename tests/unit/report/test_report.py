"""The report of a run: every plot with its words, nothing from elsewhere, nothing that obeys."""

import base64
import hashlib
import html.parser
import itertools
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError

from pipeline.report.figures import Matrices
from pipeline.report.losses import losses
from pipeline.report.notes import FALLBACK, notes_of
from pipeline.report.page import render_report
from schemas.result.output import MatrixResult
from schemas.result.report import SpectrumSample, StageTime
from tests import reports
from tests.documents import ROOT

PLOTS = ["layers", "ranks", "spectra", "losses", "stages"]
VOID = {"meta", "link", "br", "hr", "img"}
HOSTILE = "</title></svg><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[31m\u202e"
CSS = ROOT / "pipeline" / "report" / "templates" / "report.css.j2"


class Document(html.parser.HTMLParser):
    """Elements and their attributes, after a check that tags close in the order they opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def test_the_report_says_what_was_predicted_measured_and_shrunk() -> None:
    rows = reports.matrices(3)
    made = reports.compression(rows, nats=0.1)
    gist = losses(Matrices(rows), made, reports.evaluation()).gist
    assert "0.100 nats a token were predicted, and 0.414 measured on 16 windows: the" in gist
    assert "shrinkage of gradient moments is 0.0500 to 0.350" in gist


def page(layers: int = 3, family: str = "llama", **fields: Any) -> str:
    rows = reports.matrices(layers, family)
    given = {name: fields.pop(name) for name in ("warnings", "command") if name in fields}
    return render_report(
        reports.compression(rows, **fields), reports.evaluation(), reports.facts(rows, **given)
    )


def drawings(text: str) -> list[ElementTree.Element]:
    """Every drawing of a page, as strict XML."""
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.S)]


@pytest.mark.parametrize("family", reports.TARGETS)
def test_every_plot_is_there_with_its_words_and_its_table(family: str) -> None:
    text = page(family=family)
    document = Document(text)
    assert [figure["id"] for figure in document.of("figure") if "id" in figure] == [
        f"plot-{name}" for name in PLOTS
    ]
    kinds = len(reports.matrices(1, family))
    found = drawings(text)
    assert len(found) == len(PLOTS) + kinds - 1 + 2  # a panel a type, the whole model, the workers
    assert all(len(drawing.attrib["aria-label"]) > 20 for drawing in found)
    assert {drawing.attrib["role"] for drawing in found} == {"img"}
    assert len(document.of("caption")) == len(document.of("table")) == len(PLOTS) + 2
    assert all("scope" in heading for heading in document.of("th"))


def test_a_page_is_whole_in_one_file_and_runs_nothing() -> None:
    text = page()
    document = Document(text)
    names = {name for name, _ in document.elements}
    assert not names & {"script", "iframe", "object", "embed", "form", "base", "img"}
    for name, attributes in document.elements:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], name
        link = attributes.get("href") or attributes.get("src") or "#"
        assert re.match(r"#|data:,|(compression|report|manifest)\.json$", link)
    assert "http" not in text.replace("http-equiv", "")
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    [policy] = [m["content"] for m in document.of("meta") if "http-equiv" in m]
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")


def test_headings_anchors_and_boxes_lead_somewhere() -> None:
    document = Document(page())
    levels = [int(name[1]) for name, _ in document.elements if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in document.elements:
        named = attributes.get("aria-labelledby") or (attributes.get("href") or "")[1:]
        assert named in ids or not (attributes.get("href") or "#x").startswith("#") or not named
    boxes = [a for name, a in document.elements if name == "div" and a.get("role") == "region"]
    assert boxes
    assert all(box.get("tabindex") == "0" and box.get("aria-label") for box in boxes)


@pytest.mark.parametrize(
    ("norms", "stays"), [(False, "embeddings and norms are as"), (True, "embeddings are as")]
)
def test_norms_that_were_trained_are_not_as_they_were(norms: bool, stays: str) -> None:
    rows = reports.matrices(1)
    earlier = (reports.recovery(2.0, 1.0, norms=norms),)
    made = reports.compression(rows, earlier=earlier, recovery=reports.recovery(1.0, 0.5))
    assert f"{stays} they were" in render_report(made, None, reports.facts(rows))


def test_what_strangers_named_is_text() -> None:
    rows = tuple(
        row.model_copy(update={"fallbacks": (HOSTILE,), "remarks": (HOSTILE,)})
        for row in reports.matrices(2)
    )
    text = render_report(
        reports.compression(
            (rows[0].model_copy(update={"name": f"layers.0.{HOSTILE}"}), *rows[1:]),
            model=f"org/{HOSTILE}",
            device=HOSTILE,
            given_up={HOSTILE: HOSTILE},
            fallbacks=(HOSTILE,),
            method=dict.fromkeys(("preset", "truncation", "allocation", "factors"), HOSTILE),
        ),
        reports.evaluation(sample=f"{HOSTILE}\nsecond line"),
        reports.facts(rows, warnings=(HOSTILE,), command=("svdllm", HOSTILE), layout=HOSTILE),
    )
    document = Document(text)
    assert not document.of("script") + document.of("img")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(drawings(text)) > len(PLOTS)
    assert "second line" in "".join(document.text).splitlines()


def test_both_texts_after_every_prompt_are_shown() -> None:
    rows = reports.matrices(1)
    evaluation = reports.wrote(reports.evaluation(), f"{HOSTILE} end\n\n\n")
    text = render_report(reports.compression(rows), evaluation, reports.facts(rows))
    document = Document(text)
    assert not document.of("script") + document.of("img")
    found = "".join(document.text)
    assert all(prompt in found for prompt in reports.PROMPTS)
    assert found.count(" end\n[3 line breaks]") == 11 + 7
    assert "repetition (seq-rep-4), greedy / sampled" in found
    assert "What they write after 12 prompts, greedy" in found
    evaluation = reports.evaluation()
    assert "seq-rep-4" not in render_report(
        reports.compression(rows), evaluation, reports.facts(rows)
    )


def test_what_is_long_is_whole() -> None:
    rows = [row.model_copy(update={"fallbacks": ("x",)}) for row in reports.matrices(40)]
    facts = reports.facts(tuple(rows), points=300, command=("svdllm", word := "a" * 3000))
    text = render_report(reports.compression(tuple(rows)), None, facts)
    assert ", ".join(row.name for row in rows) in text
    assert word in text
    lines = [e for drawing in drawings(text) for e in drawing.iter("polyline")]
    assert {len(line.attrib["points"].split()) for line in lines} == {300}


def test_a_fallback_that_was_a_warning_at_first_is_told_once() -> None:
    """One of a worker that committed no moment is a warning alone, and told as that."""
    rows = reports.matrices(1)
    done = reports.compression(rows, fallbacks=("one at a time",))
    facts = reports.facts(rows, warnings=(f"{FALLBACK}one at a time", f"{FALLBACK}pageable"))
    found = [(note.kind, note.text) for note in notes_of(done, facts)]
    assert found == [("fallback", "one at a time"), ("warning", f"{FALLBACK}pageable")]


def test_a_credential_in_a_warning_is_hidden() -> None:
    text = page(warnings=("s3://key:secretsecret@bucket failed",))
    assert "secretsecret" not in text
    assert "s3://***@bucket failed" in text


def test_a_method_without_gradients_and_without_evaluation_has_every_plot() -> None:
    rows = tuple(row.model_copy(update={"nats": None}) for row in reports.matrices(2))
    text = render_report(reports.compression(rows, nats=None), None, reports.facts(rows))
    found = [figure["id"] for figure in Document(text).of("figure")]
    assert found == [f"plot-{name}" for name in PLOTS]
    assert text.count("not measured") == 2
    assert "--evaluate TEXT" in text


def test_a_loss_that_is_no_number_breaks_nothing() -> None:
    infinite = float("inf")
    update = {"predicted_loss": float("nan"), "achieved_loss": infinite, "nats": infinite}
    row = reports.matrices(1)[0].model_copy(update=update | {"energy": None})
    facts = reports.facts((row,), stages=(), spectra=())
    text = render_report(reports.compression((row,)), reports.evaluation(infinite, 3.0), facts)
    assert drawings(text)
    assert '"nan"' not in text


def test_a_70b_is_under_3_megabytes() -> None:
    text = page(layers=80)
    assert len(drawings(text)) == 5 + 6 + 2
    assert len(text.encode()) < 3_000_000


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 has it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(encoding="utf-8"), re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    assert colours.keys() == dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0])).keys()
    texts = [
        (ink, paper) for ink in ("text", "muted", "link", "strong") for paper in ("page", "card")
    ]
    texts += [(f"on{at}", f"f{at}") for at in range(8)] + [("on-special", "special")]
    marks = [(mark, "card") for mark in ("one", "two", "three", "four")]
    assert [p for p in texts if contrast(colours[p[0]], colours[p[1]]) < 4.5] == []
    assert [p for p in marks if contrast(colours[p[0]], colours[p[1]]) < 3] == []


def test_a_file_that_no_run_writes_is_refused_when_it_is_read() -> None:
    row = reports.matrices(1)[0].model_dump(mode="json")
    with pytest.raises(ValidationError, match=r"shape\.0"):
        MatrixResult.model_validate(row | {"shape": [0, 48]})
    with pytest.raises(ValidationError, match=r"busy\.0"):
        StageTime(name="factorise", seconds=1.0, busy=(float("nan"),))


def test_a_spectrum_that_begins_with_zero_has_no_floor() -> None:
    rows = reports.matrices(1)
    odd = SpectrumSample(name=rows[0].name, size=2, ranks=(1, 2), values=(0.0, 1.0))
    page = render_report(reports.compression(rows), None, reports.facts(rows, spectra=(odd,)))
    assert "spectra of 1 layers" in page


def test_a_run_without_spectra_draws_none() -> None:
    rows = reports.matrices(2)
    text = render_report(reports.compression(rows), None, reports.facts(rows, spectra=()))
    assert "pectra" not in text.replace("(spectra, times, warnings)", "")
    assert "#spectra" in page(layers=2)
