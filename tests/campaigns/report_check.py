"""Open a report in headless Chromium: nothing may complain, every plot must be there.

    python -m tests.campaigns.report_check build/demo/SmolLM2-135M-Instruct-20/report.html

Writes screenshots in light and dark, at the width of a desk and of a phone, to --output.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tests.campaigns.browser import Page, browser

_WIDTHS = {"desk": 1200, "phone": 390}
_MOST_BYTES = 3_000_000

# What each plot of the page is: its name, drawings, those with a size, those with a description.
_PLOTS = """
[...document.querySelectorAll('figure[id^=plot-]')].map(figure => {
  const drawings = [...figure.querySelectorAll('svg')];
  const large = drawings.filter(d => d.getBoundingClientRect().height > 40);
  const described = drawings.filter(d => (d.getAttribute('aria-label') || '').length > 20);
  return [figure.id, drawings.length, large.length, described.length];
})"""
_WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_HEADINGS = "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])"
# Boxes that scroll, links and summaries, without a keyboard's way to them or without a name.
_UNREACHABLE = """
[...document.querySelectorAll('.scroll, a, summary')].filter(e =>
  e.tabIndex < 0 || !(e.getAttribute('aria-label') || e.textContent).trim()).map(e => e.outerHTML)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", type=Path, default=Path("build/report-check"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    wrong = []
    size = options.report.stat().st_size
    if size > _MOST_BYTES:
        wrong.append(f"{size:,} bytes")
    with browser() as page:
        page.look(_WIDTHS["desk"], dark=False, phone=False)
        page.open(options.report.absolute().as_uri())
        plots = page.ask(_PLOTS)
        wrong += _structure(page, plots)
        for place, width in _WIDTHS.items():
            for scheme in ("light", "dark"):
                page.look(width, dark=scheme == "dark", phone=place == "phone")
                page.picture(options.output / f"{place}-{scheme}.png")
            if (wider := page.ask(_WIDER)) > 0:
                wrong.append(f"{place}: the page is {wider} pixels wider than the window")
        wrong += _complaints(page.events)
    print(f"{options.report}: {size:,} bytes")
    for name, drawings, *_ in plots:
        print(f"  {name}: {drawings} drawings")
    print(f"screenshots: {options.output}/")
    for complaint in wrong:
        print(f"WRONG: {complaint}")
    return 1 if wrong else 0


def _structure(page: Page, plots: list[list[Any]]) -> list[str]:
    wrong = [
        f"{name}: no drawing of some size with a description"
        for name, *n in plots
        if len({*n}) > 1 or not n[0]
    ]
    if not plots:
        wrong.append("no plot at all")
    levels = page.ask(_HEADINGS)
    wrong += [
        f"a heading of level {after} after one of level {before}"
        for before, after in zip([0, *levels], levels, strict=False)
        if after > before + 1
    ]
    return wrong + [
        f"not reachable or without a name: {html[:80]}" for html in page.ask(_UNREACHABLE)
    ]


def _complaints(events: list[dict[str, Any]]) -> list[str]:
    """Console messages, exceptions, and requests for anything but the page itself."""
    found = []
    for event in events:
        given = event.get("params", {})
        match event.get("method"):
            case "Log.entryAdded":
                found.append(f"console: {given['entry']['text']}")
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                found.append(f"console: {given}")
            case "Network.requestWillBeSent":
                url = given["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(f"asked for {url}")
    return found


if __name__ == "__main__":
    sys.exit(main())
