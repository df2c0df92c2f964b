"""How Sphinx builds the site. Everything a page needs is in the site itself: it works offline."""

from importlib.metadata import version as version_of
from typing import Any

project = "pagewire"
copyright = "the pagewire authors"
release = version_of("pagewire")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns: list[str] = []

# Markdown. Headings down to the third level can be linked to, as on code forges.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# The Python reference. Docstrings are plain prose in which backquotes mean code.
default_role = "code"
smartquotes_action = "D"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# The language of blocks that do not name one.
highlight_language = "text"

html_theme = "furo"
html_title = f"pagewire {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
# The copy button leaves out the prompt of console blocks.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True


def keep_colons(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in the first line of an attribute's docstring for its type."""
    if what in ("attribute", "property"):
        lines.insert(0, "")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_colons, priority=100)
