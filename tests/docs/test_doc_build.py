"""The documentation builds without a warning and without network, and what it builds loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser_tools import browsing, chromium
from page_tools import DOCS, ROOT

NEEDED = ("mkdocs", "material", "mkdocstrings")
missing = [name for name in NEEDED if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"needs pip install -e '.[docs]': no {', '.join(missing)}"),
]

# Any connection fails: a proxy where nobody listens, for whatever asks for one.
OFFLINE = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What a page loads, what it links to, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.places |= {found[name] or "" for name in ("id", "name") if name in found}
        if tag in LOADED and found.get(LOADED[tag]):
            self.loads.append(str(found[LOADED[tag]]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as the command line builds it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    env = {**os.environ, **OFFLINE, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    """Those of docs/, of every experiment, of slurm/, and the architecture; but for what builds them."""
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    pages |= {page.relative_to(ROOT).parent / "index.html" for page in ROOT.glob("experiments/*/README.md")}
    pages |= {Path("slurm/index.html"), Path("ARCHITECTURE.html")}
    assert len(pages) > 25
    assert [page for page in sorted(pages) if not (site / page).exists()] == []
    assert not (site / "_build").exists()


def test_figures_of_experiments_are_in_the_gallery(site: Path) -> None:
    shown = {Path(image).name for image in Page(site / "gallery.html").loads}
    drawn = {
        image
        for page in ROOT.glob("experiments/*/README.md")
        for image in re.findall(r"!\[.*?\]\((\S+)\)", page.read_text())
    }
    assert drawn
    assert drawn <= shown


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Scripts, styles, fonts and images are files of the site."""
    for path in site.rglob("*.html"):
        for address in Page(path).loads:
            if path.name == "404.html" and address.startswith("/"):  # it is shown at any address
                address = address[1:]
            assert not re.match(r"(\w+:)?//", address), f"{path.name} loads {address}"
            assert address.startswith("data:") or (path.parent / address.partition("?")[0]).exists(), (
                f"{path}: {address}"
            )
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", path.read_text()), path.name


@pytest.mark.timeout(180)
def test_the_search_works_from_the_disk(site: Path) -> None:
    """In a browser, without a server: what is typed is found, and nothing is complained of."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with browsing(program) as page:
        for start in ("index.html", "methods/imp.html"):
            page.complaints.clear()
            page.call("Page.navigate", url=(site / start).as_uri())
            page.wait(
                "!!document.querySelector('[data-md-component=search-query]') && document.readyState === 'complete'"
            )
            page.run("document.querySelector('[data-md-component=search-query]').focus()")
            page.call("Input.insertText", text="jackpots")
            page.wait("document.querySelectorAll('.md-search-result__link').length > 0")
            found = page.run("[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)")
            assert any(urlsplit(address).path == (site / "methods" / "jackpots.html").as_posix() for address in found)
            assert page.complaints == []
        assert {urlsplit(address).scheme for address in page.requests} <= {"file", "data", "blob", "about"}


def test_links_lead_somewhere(site: Path) -> None:
    """To a page of the site, and where a place in it is named, to that."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            address, _, place = link.partition("#")
            if re.match(r"\w+:", link) or (not address and not place):
                continue
            target = (path.parent / address).resolve() if address else path
            assert target.exists(), f"{path.name}: {link}"
            if place and target in pages:
                assert place in pages[target].places, f"{path.name}: {link}"


def test_docstrings_become_lists(site: Path) -> None:
    """The lines `name: what` of a docstring, each an item; none in one paragraph with the next."""
    text = (site / "api" / "analysis.html").read_text()
    assert re.search(r"<li>\s*(<p>)?<code>filters</code>: key", text)
