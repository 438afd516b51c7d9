"""Makes links from the pages to files of the repository work in the built site.

On a code host `[recipe](../configs/quickstart.yaml)` finds the file beside `docs/`. The
site has only what is copied into it, so each file that a page links to is added at the
same path below the site's root, and the link is rewritten to it.
"""

import pathlib
import posixpath
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
CHANGELOG = "CHANGELOG.md"


def outside(page, link):
    """The repository path of a link that leaves `docs/`, or None."""
    if re.match(r"[a-z]+:", link):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith(("docs/", "..")) or path == "docs" else path


def links(markdown):
    """The links of a page, those in code left out."""
    return LINK.findall(CODE.sub("", markdown))


def on_files(files, config):
    """Adds the changelog, and the files that pages link to, as they are."""
    changelog = (ROOT / CHANGELOG).read_text()
    files.append(File.generated(config, "changelog.md", content=changelog))
    for page in list(files.documentation_pages()):
        text = page.content_string
        for link in links(text):
            path = outside(page.src_uri, link)
            if (
                path is None
                or path == CHANGELOG
                or files.get_file_from_path(_name(path))
            ):
                continue
            if not (ROOT / path).is_file():
                raise PluginError(
                    f"{page.src_uri}: {link} is no file of the repository"
                )
            content = _source(path).read_bytes()
            files.append(File.generated(config, _name(path), content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points these links at the copies."""

    def rewritten(match):
        path = outside(page.file.src_uri, match[1])
        if path is None:
            return match[1]
        target = "changelog.md" if path == CHANGELOG else _name(path)
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    pieces, end = [], 0
    for code in CODE.finditer(markdown):
        pieces += [LINK.sub(rewritten, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, LINK.sub(rewritten, markdown[end:])])


def _source(path):
    """What is shown of a file: a report's page for browsers, where there is one."""
    html = (ROOT / path).with_suffix(".html")
    return html if path.endswith(".md") and html.is_file() else ROOT / path


def _name(path):
    """Where the site has a file: other Markdown as text, since it is no page of it."""
    source = _source(path)
    name = source.relative_to(ROOT).as_posix()
    return f"{name}.txt" if source.suffix == ".md" else name
