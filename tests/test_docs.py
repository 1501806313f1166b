"""The site of the documentation is complete, and asks no other host for anything."""

import os
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import setuptools

import leaps_jax as lj

ROOT = Path(__file__).parent.parent
FORMER = {"Programs"}  # names that are kept, and not told of
#: What a browser fetches by itself.
FETCHED = (
    r"""<(?:script|img|iframe|source|video|link)\b[^>]*?(?:src|href)=["']?([^"'\s>]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, str]:
    """The pages by their addresses, built strictly: a broken link is an error."""
    pytest.importorskip("material", reason="pip install -e '.[docs]'")
    pytest.importorskip("ziamath")
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return {
        str(path.relative_to(out)): path.read_text()
        for suffix in ("html", "css")
        for path in out.rglob(f"*.{suffix}")
    }


def pages(site: dict[str, str]) -> dict[str, str]:
    return {path: text for path, text in site.items() if path.endswith("index.html")}


def test_no_page_fetches_from_another_host(site):
    assert len(pages(site)) >= 18
    for path, text in pages(site).items():
        fetched = re.findall(FETCHED, text)
        assert fetched and not [a for a in fetched if re.match(r"(https?:)?//", a)], (
            path
        )
    for path, text in site.items():
        if path.endswith(".css"):
            outside = r"(@import|url\()\s*[\"']?(https?:)?//"
            assert not re.search(outside, text), path


def test_links_to_the_repository_lead_to_its_files(site):
    config = (ROOT / "mkdocs.yml").read_text()
    (repository,) = re.findall(r"repository: (\S+)", config)
    found = {
        link.partition("#")[0]
        for text in pages(site).values()
        for link in re.findall(rf'href="{re.escape(repository)}/([^"]+)"', text)
    }
    assert "leaps_jax/model.py" in found
    assert all((ROOT / path).exists() for path in found), found


def test_equations_are_drawn(site):
    method = site["method/index.html"]
    assert len(re.findall(r'<svg[^>]* class="equation display"', method)) == 8
    assert r'aria-label="\Phi"' in method and "currentColor" in method
    assert "arithmatex" not in method and "$" not in re.sub("<.*?>", "", method)


def test_the_api_page_has_every_public_name_and_its_examples(site):
    api = site["api/index.html"]
    told = set(re.findall(r'id="([\w.]+)"', api))
    for name in set(lj.__all__) - FORMER:
        it = getattr(lj, name)
        if isinstance(it, types.ModuleType):
            assert any(address.startswith(f"{it.__name__}.") for address in told), name
        else:
            defined = f"{it.__module__}.{it.__name__}"
            assert {f"leaps_jax.{name}", defined} & told, name
    assert "&gt;&gt;&gt; </span>" in api
    assert "<blockquote>" not in api  # what Markdown makes of >>> by itself


def test_readme_has_absolute_links_on_the_package_index(monkeypatch):
    told: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: told.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    links = re.findall(r"\]\(([^)]+)\)", told["long_description"])
    assert len(links) > 20 and all(re.match("https?://", link) for link in links)
    for link in links:
        if link.startswith(told["url"]):
            kind, branch, path = link.removeprefix(told["url"]).split("/", 3)[1:]
            assert branch == "main"
            assert (kind == "raw") == path.endswith((".gif", ".jpg"))
            assert (ROOT / path.partition("#")[0]).exists(), link


def test_one_address_of_the_repository():
    files = ["setup.py", "mkdocs.yml", *ROOT.glob("colabs/*.ipynb")]
    found = [
        (str(path), owner)
        for path in files
        for owner in re.findall(
            r"(?:github\.com|colab\.research\.google\.com/github)/(\w+)/leaps_jax",
            (ROOT / path).read_text(),
        )
    ]
    assert len({path for path, _ in found}) == len(files)
    assert len({owner for _, owner in found}) == 1, found
