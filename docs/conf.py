"""The settings of the documentation, which `make docs` builds."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# the tutorial runs on the CPU, whatever else is there, and prints the same on every machine
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["COLUMNS"] = "100"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cells call the command jaxgpt

import jaxgpt

project = "jaxgpt"
author = "the authors of jaxgpt"
copyright = "the authors of jaxgpt, Apache-2.0"
release = version = jaxgpt.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "directives",
    "signatures",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # two hyphens are a flag

nb_execution_mode = "force"
nb_execution_in_temp = True  # a notebook may write runs
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress; a cell that shows a mistake has 2>&1
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
default_role = "code"  # one backtick in docstrings
python_maximum_signature_line_length = 80
napoleon_use_rtype = False
add_module_names = False

copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"jaxgpt {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"
