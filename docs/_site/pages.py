"""What mkdocs is told beside the pages in docs/: pages of files elsewhere, and links to them."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # mkdocs runs this file by its path

from keys import keys_page

ELSEWHERE = {
    "slurm/README.md": "cluster.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files of the repository that are pages too, and their places on the site."""

SOURCES = {page: source for source, page in ELSEWHERE.items()}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose text is not in docs/."""
    texts = {page: (ROOT / source).read_text() for source, page in ELSEWHERE.items()}
    texts |= {page: text() for page, text in MADE.items()}
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links that are right in the repository right on the site."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return "".join(
        part if is_code else LINK.sub(lambda found: _link(found, source, page), part)
        for part, is_code in _parts(markdown)
    )


def configs_page() -> str:
    """All shipped configs, as they are."""
    lines = [
        "# Shipped configs",
        "",
        "The files that `--config NAME` finds, as they are, with the source of each constant. Those",
        "in a folder are overlays: put them behind a config, `--config seg_ade20k --config backbone/small`.",
        "What a key does is on the page of [the keys](keys.md).",
    ]
    folder = ROOT / "configs"
    for path in sorted(folder.rglob("*.yaml"), key=lambda p: (p.parent != folder, p)):
        name = path.relative_to(folder).with_suffix("")
        lines += [
            "",
            f"## {name} {{#{_anchor(name)}}}",
            "",
            "```yaml",
            path.read_text().rstrip(),
            "```",
        ]
    return "\n".join(lines) + "\n"


MADE = {"reference/configs.md": configs_page, "reference/keys.md": keys_page}
"""Pages that are in no file, and what makes their text."""


def _anchor(name: PurePosixPath) -> str:
    return str(name).replace("/", "-")


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """Stretches of a page, and whether each is a fenced block."""
    for number, part in enumerate(
        re.split(r"(^```.*?^```\n?)", markdown, flags=re.MULTILINE | re.DOTALL)
    ):
        yield part, number % 2 == 1


def _link(found: re.Match[str], source: str, page: Page) -> str:
    """A link on the site; its words alone where a file of the repository is no page."""
    words, written, anchor = found[1], found[2], found[3] or ""
    target = os.path.normpath(PurePosixPath(source).parent / written)
    if target.removeprefix("docs/") not in MADE and not (ROOT / target).exists():
        raise PluginError(f"{source}: links to {written}, which is not in the repository")
    place = _place(target)
    if place is None:
        return words
    place, _, own = place.partition("#")
    here = PurePosixPath(page.file.src_uri).parent
    return f"[{words}]({os.path.relpath(place, here)}{'#' + own if own else anchor})"


def _place(target: str) -> str | None:
    """Where a file of the repository is on the site."""
    if target == "README.md":
        return "index.md"
    if target == "configs":
        return "reference/configs.md"
    if target.startswith("configs/") and target.endswith(".yaml"):
        name = PurePosixPath(target).relative_to("configs").with_suffix("")
        return f"reference/configs.md#{_anchor(name)}"
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return ELSEWHERE.get(target)
