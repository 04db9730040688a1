"""What mkdocs gets beyond its config: pages made from code, the front page, and links that lead out of `docs/`."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from command_pages import commands_page  # noqa: E402
from field_pages import FIELD_PAGES, fields_page  # noqa: E402

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, not written."""
    made = {"index.md": front_page(), "reference/commands.md": commands_page()}
    made |= {f"reference/{name}.md": fields_page(name) for name in FIELD_PAGES}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the repository that are no pages become their names."""
    return without_outer_links(markdown, (ROOT / "docs" / page.file.src_uri).parent)


def front_page() -> str:
    """README.md, as seen from `docs/`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return LINK.sub(lambda link: f"{link[1]}[{link[2]}]({_from_docs(link[3])})", text)


def _from_docs(target: str) -> str:
    if re.match(r"[a-z]+:|#", target):
        return target
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def without_outer_links(markdown: str, folder: Path) -> str:
    """The text with links out of `docs/`, or to one of its folders, replaced by their words and the path."""
    docs = ROOT / "docs"

    def replaced(link: re.Match[str]) -> str:
        target = link[3].partition("#")[0]
        if not target or re.match(r"[a-z]+:", target):
            return link[0]
        path = (folder / target).resolve()
        if path.is_relative_to(docs) and not path.is_dir():
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        return link[2] if name in link[2] else f"{link[2]} (`{name}`)"

    return LINK.sub(replaced, markdown)
