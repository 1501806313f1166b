"""MkDocs hooks: pages from outside `docs/`, links as on GitHub, equations as MathML."""

import functools
import html
import os
import posixpath
import re

import latex2mathml.converter
from mkdocs.structure.files import File

#: Files outside `docs/` that are pages of the site, or pictures on them.
OUTSIDE = {
    "README.md": "index.md",
    "checkpoints/README.md": "weights.md",
    "colabs/README.md": "notebooks.md",
    "colabs/demo.gif": "demo.gif",
    "benchmarks/results/study.md": "study.md",
    "benchmarks/results/fast_forms.md": "fast-forms.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_INSIDE = {page: path for path, page in OUTSIDE.items()}
#: `](address` of a link or a picture, unless it is absolute or within the page.
_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)")
#: What `pymdownx.arithmatex` makes of $...$ and $$...$$.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)


def on_files(files, config):
    """Adds the pages of `OUTSIDE`."""
    root = os.path.dirname(config.config_file_path)
    for path, page in OUTSIDE.items():
        source = os.path.join(root, path)
        files.append(File.generated(config, page, abs_src_path=source))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links between files of the repository to pages, or to the repository."""
    here = posixpath.dirname(_INSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def led(found: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(here, found[2]))
        target = OUTSIDE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(target) is None:
            return f"{found[1]}{config.extra['repository']}/{path}"
        return f"{found[1]}{target}"  # all pages lie in one folder

    return _LINK.sub(led, markdown)


def on_page_content(content, page, config, files):
    """Sets equations in MathML, which browsers show without a script."""
    content = _DISPLAY.sub(lambda found: _mathml(found[1], "block"), content)
    return _INLINE.sub(lambda found: _mathml(found[1], "inline"), content)


@functools.cache
def _mathml(tex: str, display: str) -> str:
    return latex2mathml.converter.convert(html.unescape(tex).strip(), display=display)
