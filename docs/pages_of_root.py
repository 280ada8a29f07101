"""Bring the repository's own pages (README, CHANGELOG, …) into the documentation's site.

A hook of MkDocs. On the site README.md is the first page, and links lead to pages of the site; what
is no page of it (a folder, a test) is linked where the repository is published.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import tomllib
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]+)?(\))")
FROM_ROOT = {  # page of the site: file of the repository
    "index.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "benchmarks.md": "benchmarks/README.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the addresses from pyproject.toml."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    config.repo_url = urls["Source"]
    config.repo_name = "/".join(urls["Source"].split("/")[-2:])
    config.site_url = urls["Documentation"]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's pages."""
    for page, source in FROM_ROOT.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to pages of the site, or to the repository."""
    here = page.file.src_uri
    folder = posixpath.dirname(FROM_ROOT.get(here, f"docs/{here}"))
    pages = {source: name for name, source in FROM_ROOT.items()}

    def link(match: re.Match[str]) -> str:
        before, target, heading, after = match.groups("")
        if "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        name = pages.get(path) or path.removeprefix("docs/")
        if not files.get_file_from_path(name):
            if not (ROOT / path).exists():
                return match[0]  # MkDocs tells of it
            name = f"{config.repo_url}/tree/main/{path}"
        else:
            name = posixpath.relpath(name, posixpath.dirname(here) or ".")
        return f"{before}{name}{heading}{after}"

    return LINK.sub(link, markdown)
