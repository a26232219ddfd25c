"""The documentation as a site: `make docs`. Every page is Markdown that a code host shows too; what only a site needs is here."""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import und3rstand_jax  # noqa: E402

project = "und3rstand_jax"
author = "The und3rstand_jax authors"
copyright = author
release = version = und3rstand_jax.__version__

root_doc = "index"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton"]
exclude_patterns = ["README.md", "_build"]  # index.md includes the README
nitpicky = True

html_theme = "sphinx_book_theme"
html_title = "und3rstand_jax"
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
# The live report of the pocket model, where `make docs-live` has made it, else a page that says how to.
html_extra_path = ["_build/live" if (HERE / "_build/live/pocket_report.html").exists() else "_extra"]
html_copy_source = False

# Headings have the anchors that a code host gives them. Notebooks are run by tests, not by this build.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 6
nb_execution_mode = "off"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# In docstrings, single backquotes are code.
default_role = "code"
autodoc_member_order = "bysource"
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
# Types that have no page of their own here: those of Python and other packages, and aliases that a signature spells out.
nitpick_ignore_regex = [("py:.*", r"(?!und3rstand_jax\.\w+$).*")]
suppress_warnings = ["misc.highlighting_failure"]  # JSON with … in it

# With a network, `make docs-links` asks for every page outside.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False
# Files beside docs/ that have a page here.
_OUTSIDE = {"../pocket/README.md": "explanation/pocket_card.md", "../tests/golden/README.md": "explanation/golden.md"}


def setup(app: Sphinx) -> None:
    """Sphinx's door to this file."""
    app.connect("source-read", _link_to_pages)
    app.connect("include-read", _link_included)
    app.connect("autodoc-process-signature", _as_written)


def _link_to_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """What leads out of docs/, see `_relinked`; and the front page lists no folder without pages."""
    source[0] = _relinked(source[0], (HERE / name).parent, "../" * name.count("/"))
    if name == root_doc:
        source[0] = re.sub(r"^\S+\*$\n", lambda match: match[0] if any(HERE.glob(match[0].strip())) else "", source[0], flags=re.M)


def _link_included(app: Sphinx, path: Path, parent: str, source: list[str]) -> None:
    source[0] = _relinked(source[0], (HERE / path).parent, "../" * parent.count("/"))


def _relinked(text: str, folder: Path, up: str) -> str:
    """Links to files outside of docs/ lead to their pages here, or are plain text where they have none."""
    for file, page in _OUTSIDE.items():
        text = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}", f"]({up}{page}", text)

    def link(match: re.Match[str]) -> str:
        return match[0] if (folder / match[2]).resolve().is_relative_to(HERE) else match[1]

    return re.sub(r"\[([^\]]+)\]\((\.\./[^)#\s]+)[^)\s]*\)", link, text)


def _as_written(app: Sphinx, what: str, name: str, thing: Any, options: Any, arguments: str | None, returns: str | None) -> Any:
    """A signature with annotations as the source has them: `Float[Array, "B H W 3"]`, `Image`, not what they stand for."""
    if what not in ("class", "function", "method", "exception"):
        return None
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    except (OSError, TypeError):
        return None  # made by a decorator, which leaves no source
    if isinstance(node, ast.FunctionDef):
        if what == "method":
            del node.args.args[0]
        return f"({ast.unparse(node.args)})", node.returns and ast.unparse(node.returns)
    assert isinstance(node, ast.ClassDef)
    made = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if made is not None:
        del made.args.args[0]
        return f"({ast.unparse(made.args)})", None
    fields = [text for one in node.body if isinstance(one, ast.AnnAssign) and "ClassVar" not in (text := ast.unparse(one))]
    return f"({', '.join(fields)})", None
