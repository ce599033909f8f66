"""What the site takes from the rest of the repository: the pages of experiments, slurm and architecture, and their
figures. Nothing is stored twice, and links are written as they hold in the repository.
"""

from __future__ import annotations

import posixpath
import re
from html import escape
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OTHERS = (
    "ARCHITECTURE.md",
    "slurm/README.md",
    "notebooks/README.md",
    "notebooks/*.ipynb",
    "experiments/*/README.md",
    "experiments/*/*.png",
    "experiments/*/sweep.yaml",
)

LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FIGURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def others() -> list[str]:
    """The repository's files outside of docs/ that the site shows, as paths from its root."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in OTHERS for path in ROOT.glob(pattern))


def title(path: str) -> str:
    """The first heading of a page of the repository."""
    return next(line[2:] for line in (ROOT / path).read_text().splitlines() if line.startswith("# "))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The experiments take the place of the word EXPERIMENTS in the navigation."""
    pages = [path for path in others() if path.startswith("experiments/") and path.endswith(".md")]
    for section in config.nav or []:
        for entries in section.values() if isinstance(section, dict) else ():
            if isinstance(entries, list) and "EXPERIMENTS" in entries:
                at = entries.index("EXPERIMENTS")
                entries[at : at + 1] = [{title(path): path} for path in pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The other files, under the paths that they have in the repository."""
    for path in others():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them, and the gallery where it is asked for."""
    markdown = markdown.replace("<!-- gallery -->", gallery())
    source = page.file.src_uri
    own = source if source in others() else f"docs/{source}"

    def relinked(text: str) -> str:
        return LINK.sub(lambda m: m[1] + relinked_target(m[2], own, source, files) + m[3], text)

    parts, end = [], 0
    for fence in FENCED.finditer(markdown):
        parts += [relinked(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, relinked(markdown[end:])])


def relinked_target(target: str, own: str, source: str, files: Files) -> str:
    """A link of the repository's file `own` as one of the site's page `source`; as it is where the site lacks it."""
    path, mark, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return target
    meant = posixpath.normpath(posixpath.join(posixpath.dirname(own), path))
    meant = meant.removeprefix("docs/")
    if files.get_file_from_path(meant) is None:
        return target
    return posixpath.relpath(meant, posixpath.dirname(source) or ".") + mark + anchor


def gallery() -> str:
    """Every figure of the experiments' pages, with its caption and a link to its page."""
    lines = []
    for path in others():
        if path.startswith("experiments/") and path.endswith(".md"):
            found = FIGURE.findall((ROOT / path).read_text())
            if found:
                lines += [f"## {title(path)}", ""]
            for caption, image in found:
                place = posixpath.join("..", posixpath.dirname(path), image)
                lines += [
                    f"[![{escape(caption)}]({place})](../{path})",
                    "",
                    f"*{caption[:1].upper()}{caption[1:]}.*",
                    "",
                ]
    return "\n".join(lines)
