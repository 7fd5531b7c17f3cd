"""How `make docs` builds the documentation: every warning is an error, and nothing is fetched.

The theme is the one that PyTorch's own is derived from: that one carries PyTorch's trackers, and says of a site that it
is a part of PyTorch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from bench.report import load, markdown  # noqa: E402
from docutils import nodes  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.writers.html5 import HTML5Translator  # noqa: E402
from sphinx_gallery.scrapers import figure_rst  # noqa: E402

import pyromancy  # noqa: E402

project = "pyromancy"
copyright = "the authors of pyromancy"
version = release = pyromancy.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery", "generated/results.md"]
templates_path: list[str] = []
default_role = "py:obj"

# Pages are Markdown that a forge shows as well.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["config.cache"]

# The reference is made of docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "class"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88


def last_picture(block: object, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The picture that a block of a script ends in, as `pyromancy.plots` makes them: pyplot does not know of them."""
    scope = block_vars["example_globals"]
    figure, scope["___"] = getattr(scope.get("___"), "figure", None), None
    if figure is None or hasattr(figure, "number"):  # one of pyplot's
        return ""
    path = str(next(block_vars["image_path_iterator"]))
    figure.savefig(path)
    return figure_rst([path], gallery_conf["src_dir"])


# The gallery runs every script, in a folder's order of names.
sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["generated/gallery"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "reference_url": {},
    "capture_repr": (),
    "image_scrapers": ("matplotlib", last_picture),
    "remove_config_comments": True,
    "copyfile_regex": "",
}

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "pyromancy"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "generated/gallery/ten_minutes", "benchmarks")}
html_theme_options = {
    "show_toc_level": 1,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
copybutton_exclude = ".linenos, .gp, .go"


def with_table(app: Sphinx, what: str, name: str, module: object, options: object, lines: list[str]) -> None:
    """Put a table of a module's classes and functions below what it says of itself."""
    members = [member for member in getattr(module, "__all__", ()) if callable(getattr(module, member))]
    if what == "module" and members:
        lines += ["", ".. autosummary::", "   :nosignatures:", "", *(f"   {member}" for member in members)]


def formula(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw by themselves."""
    block = isinstance(node, nodes.math_block)
    translator.body.append(translator.starttag(node, "div", CLASS="formula") if block else "")
    translator.body.append(convert(node.astext(), display="block" if block else "inline"))
    translator.body.append("</div>\n" if block else "")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Make the tables of benchmarks from the files that their runs wrote."""
    app.connect("autodoc-process-docstring", with_table)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    folder = Path(__file__).parent / "generated"
    folder.mkdir(exist_ok=True)
    results = sorted((ROOT / "bench" / "results").glob("*.json"), reverse=True)
    (folder / "results.md").write_text(markdown([load(path) for path in results]))
