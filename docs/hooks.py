"""MkDocs hooks: pages from outside `docs/`, links as on GitHub, drawn equations."""

import functools
import html
import os
import posixpath
import re
from xml.etree import ElementTree

import ziafont
import ziamath
from mkdocs.structure.files import File

#: Files outside `docs/` that are pages of the site, or pictures on them.
OUTSIDE = {
    "README.md": "index.md",
    "checkpoints/README.md": "shipped-weights.md",
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

_SIZE = 16  # of the letters of an equation, in its own units


def on_files(files, config):
    """Adds the pages of `OUTSIDE`."""
    root = os.path.dirname(config.config_file_path)
    for path, page in OUTSIDE.items():
        source = os.path.join(root, path)
        files.append(File.generated(config, page, abs_src_path=source))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links between files: to a page of the site, or to the repository."""
    here = posixpath.dirname(
        _INSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    )

    def led(found: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(here, found[2]))
        target = OUTSIDE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(target) is None:
            return f"{found[1]}{config.extra['repository']}/{path}"
        return f"{found[1]}{target}"  # all pages lie in one folder

    return _LINK.sub(led, markdown)


def on_page_content(content, page, config, files):
    """Draws equations, so that no page needs a script or a font for them."""
    content = _DISPLAY.sub(lambda found: f"<p>{_drawn(found[1], False)}</p>", content)
    return _INLINE.sub(lambda found: _drawn(found[1], True), content)


@functools.cache
def _drawn(tex: str, inline: bool) -> str:
    """LaTeX as SVG in the colour and size of the text."""
    ziafont.config.svg2 = False  # else glyphs have ids, of which a page has many twice
    equation = ziamath.Latex(
        html.unescape(tex).strip(), size=_SIZE, color="currentColor", inline=inline
    )
    svg = equation.svgxml()
    for side in ("width", "height"):
        svg.set(side, f"{float(svg.get(side)) / _SIZE:.3f}em")
    svg.set("class", "equation" if inline else "equation display")
    svg.set("style", f"vertical-align: {equation.getyofst() / _SIZE:.3f}em")
    svg.set("role", "img")
    svg.set("aria-label", html.unescape(tex).strip())
    return ElementTree.tostring(svg, encoding="unicode")
