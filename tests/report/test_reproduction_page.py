import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import pytest

from mpelu.report.finding import Finding, Interval
from mpelu.report.grid import Cell, Grid, Picture
from mpelu.report.reproduction import Judged, Reproduction, Shown
from mpelu.report.reproduction_page import checked_svg, render_reproduction
from mpelu.report.summary import Spread
from mpelu.studies import catalog
from mpelu.studies.findings import reproduction
from tests.made_up import records, study

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
INTERVAL = Interval("a minus b", "points", -1.0, -1.5, -0.5, 5, "paired Student, 95 %")
FINDING = Finding(8, "MPELU is better", "confirmed", "1.0 points", (INTERVAL,), "cpu", "digits", ("key",), "narrower")
GRID = Grid(
    "table1",
    "Errors",
    ("net", "test error"),
    (("NIN", Cell(paper="9.06+-0.1", ours=Spread(8.0, 8.5, 0.5, 5), runs=("key",))), ("ResNet", Cell())),
    "cpu",
    "digits",
    ("Narrower nets.",),
)
PICTURE = Picture("figure1", "Shapes", '<svg><path id="p"/><use href="#p"/></svg>', "Seen.", "any", "")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Outline(HTMLParser):
    """Collects tags, attributes and text, and refuses tags that do not balance."""

    def __init__(self, page):
        super().__init__()
        self.open = []
        self.tags = Counter()
        self.attributes = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def values(self, *names):
        return [value for _, attribute, value in self.attributes if attribute in names]


def small(make_record, *, finding=FINDING, others=(), views=(GRID,), figures=(PICTURE,)):
    return Reproduction(
        claims=(Judged(finding, tuple(others)),),
        exhibits=(Shown("table1", "Errors", tuple(views)), Shown("figure1", "Shapes", tuple(figures))),
        records={"key": make_record()},
    )


@pytest.fixture(scope="module")
def page():
    """The page about a made-up study with all 52 claims."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mpelu.studies.made_up", study())
        patch.setattr(catalog, "STUDIES", ("made_up",))
        return render_reproduction(reproduction(records(150)))


def test_tags_balance_and_every_reference_resolves(page):
    outline = Outline(page)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    anchors = [value.removeprefix("#") for value in outline.values("href", "xlink:href")]
    labelled = [one for value in outline.values("aria-labelledby") for one in value.split()]
    assert len(anchors) > 100
    assert set(anchors) | set(labelled) <= set(ids)


def test_nothing_is_loaded_and_nothing_runs(page):
    outline = Outline(page)
    assert not {"script", "link", "iframe", "img", "object", "embed", "form"} & set(outline.tags)
    assert outline.values("src", "action", "srcset") == []
    assert all(value.startswith("#") for value in outline.values("href", "xlink:href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]


def test_every_claim_has_its_place_and_a_tile(page):
    outline = Outline(page)
    claims = {f"claim-{number}" for number in range(1, 53)}
    assert claims <= set(outline.values("id"))
    assert claims <= {value.removeprefix("#") for value in outline.values("href")}


def test_the_page_is_the_same_twice(make_record):
    assert render_reproduction(small(make_record)) == render_reproduction(small(make_record))


def test_paper_and_ours_stand_side_by_side(make_record):
    text = " ".join(Outline(render_reproduction(small(make_record))).text.split())
    assert "NIN 9.06 ± 0.1 8.50 ± 0.50n = 5" in text
    assert "ResNet – not run" in text


def test_a_number_leads_to_its_runs(make_record):
    page = render_reproduction(small(make_record))
    assert '<td class="ours"><a href="#run-1a2b3c4d">' in page
    inside = page.split('<details class="source" id="run-1a2b3c4d">')[1].split("</details>")[0]
    assert "<dt>activation</dt><dd>mpelu</dd>" in inside
    assert "<dt>hash</dt><dd>1a2b3c4d</dd>" in inside
    assert ("00" * 32)[:16] in inside
    assert 'href="#environment-1"' in inside


def test_a_claim_says_outcome_evidence_setting_and_how_it_differs(make_record):
    text = " ".join(Outline(render_reproduction(small(make_record))).text.split())
    assert (
        "Claim 8✓ Confirmed MPELU is better 1.0 points Scale cpu, digits, 1 record. Differs from the paper: narrower"
        in text
    )
    assert "a minus b 0 −1.0 points −1.5 to −0.5, n = 5" in text


def test_other_settings_stand_beneath(make_record):
    other = replace(FINDING, outcome="refuted", data="cifar10", evidence="the other way round")
    page = render_reproduction(small(make_record, others=[other], views=[replace(GRID, data="cifar10"), GRID]))
    text = " ".join(Outline(page).text.split())
    assert "At scale cpu, cifar10: refuted the other way round" in text
    assert "The same at scale cpu, digits" in text


def test_pictures_of_two_settings_have_ids_of_their_own(make_record):
    page = render_reproduction(small(make_record, figures=[PICTURE, replace(PICTURE, scale="cpu", runs=("key",))]))
    assert {"figure1-1-p", "figure1-2-p"} <= set(Outline(page).values("id"))


def test_what_was_not_run_says_so(make_record):
    nothing = replace(GRID, rows=(("NIN", Cell(paper="9.06")),))
    untested = Finding(8, "MPELU is better", "not run", "Needs ImageNet.", (), "paper", "imagenet")
    empty = replace(PICTURE, scale="paper", data="cifar10")
    text = Outline(render_reproduction(small(make_record, finding=untested, views=[nothing], figures=[empty]))).text
    assert text.count("Nothing was run for it so far.") == 2
    assert "Needs ImageNet." in text


def test_a_reproduction_without_records_is_a_page():
    untested = Finding(8, "MPELU is better", "not run", "", (), "paper", "")
    page = render_reproduction(Reproduction((Judged(untested),), (), {}))
    assert "No run was given." in Outline(page).text


def test_text_from_outside_is_escaped(make_record):
    attack = "<script>alert('x')</script>"
    interval = replace(INTERVAL, quantity=attack, unit=attack, method=attack)
    finding = Finding(8, attack, "refuted", attack, (interval,), "cpu", attack, ("key",), attack)
    cell = Cell(paper=attack, ours=Spread(1.0, 1.0, None, 1), text=attack, runs=("key",))
    grid = Grid("table1", attack, (attack, attack), ((attack, cell),), "cpu", attack, (attack,))
    record = make_record(attack, config={attack: attack}, data=attack)
    record["environment"]["device_name"] = attack
    diverged = make_record(attack, seed=1, diverged=attack, data=attack)
    measured = {
        "kind": "measurement", "function": attack, "options": {attack: attack}, "hash": attack, "version": 1, "seed": 0,
        "data": None, "outcome": "finished", "values": {attack: attack}, "wall_seconds": 0.1, "environment": {},
    }  # fmt: skip
    picture = replace(PICTURE, title=attack, caption=attack)
    found = Reproduction(
        claims=(Judged(finding, (replace(finding, data="b"),)),),
        exhibits=(Shown("table1", attack, (grid, grid)), Shown("figure1", attack, (picture,))),
        records={"key": record, "diverged": diverged, "measured": measured},
    )
    outline = Outline(render_reproduction(found, title=attack))
    assert outline.tags["script"] == 0
    assert outline.text.count(attack) > 30


@pytest.mark.parametrize(
    ("svg", "message"),
    [
        ("<svg><script>1</script></svg>", "only draw, got <script>"),
        ('<svg onload="x()"/>', "onload="),
        ('<svg><use href="https://example.org/x.svg#a"/></svg>', "href="),
        ('<svg><rect style="fill: url(https://example.org/x)"/></svg>', "style="),
        ("<svg><foreignObject/></svg>", "foreignObject"),
        ("<p>text</p>", "one <svg> element, got <p>"),
        ("<svg>", "well formed"),
    ],
)
def test_pictures_that_do_more_than_draw_are_refused(svg, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checked_svg(svg)


def luminance(color):
    digits = color * 2 if len(color) == 3 else color
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_outcomes_can_be_read_in_light_in_dark_and_on_paper(page):
    for outcome in ("confirmed", "refuted", "open", "untested"):
        ink = re.findall(rf"--{outcome}: #(\w+)", page)
        fill = re.findall(rf"--{outcome}-tint: #(\w+)", page)
        assert len(ink) == len(fill) == 3
        for one, other in zip(ink, fill, strict=True):
            low, high = sorted((luminance(one), luminance(other)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (outcome, one, other)


def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return found or pytest.skip(f"none of {', '.join(BROWSERS)} is installed")


def shown(page, place, *, width):
    """Return the DOM that a browser makes of a window, in whose title it says what a page of some width measures."""
    measure = (
        "<script>addEventListener('load', () => parent.postMessage(JSON.stringify({width: "
        "document.documentElement.scrollWidth, claims: document.querySelectorAll('.claim').length, seen: "
        "[...document.querySelectorAll('.claim')].filter(claim => claim.offsetHeight).length, "
        "wide: [...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll') && "
        "one.getBoundingClientRect().right > innerWidth + 1).length}), '*'))</script>"
    )
    inner = page.replace("</body>", f"{measure}</body>")
    window = place / "window.html"
    window.write_text(
        "<!DOCTYPE html><title>nothing</title>"
        "<script>addEventListener('message', event => document.title = event.data)</script>"
        f'<iframe style="width: {width}px; height: 800px" srcdoc="{escape(inner)}"></iframe>',
        encoding="utf-8",
    )
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={place / 'profile'}", "--virtual-time-budget=10000", "--dump-dom", window.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)[:1]
    return title


def test_on_a_phone_every_claim_is_seen_and_nothing_is_wider_than_the_window(page, tmp_path):
    opened = page.replace("<details", "<details open")
    assert shown(opened, tmp_path, width=375) == '{"width":375,"claims":52,"seen":52,"wide":0}'


def test_a_filter_leaves_the_claims_of_one_outcome(page, tmp_path):
    refuted = len(re.findall(r'<li class="claim refuted"', page))
    assert 0 < refuted < 52
    chosen = page.replace('id="only-all" checked', 'id="only-all"').replace(
        'id="only-refuted"', 'id="only-refuted" checked'
    )
    assert chosen != page
    assert shown(chosen, tmp_path, width=1280) == f'{{"width":1280,"claims":52,"seen":{refuted},"wide":0}}'
