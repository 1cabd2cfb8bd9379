"""Sphinx: the API reference from the docstrings (`make docs`)."""

import importlib.metadata

project = "Tutelage"
author = "the Tutelage authors"
release = importlib.metadata.version("tutelage")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
default_role = "code"  # docstrings write `name` for code, as comments do
apidoc_modules = [
    {
        "path": "../tutelage",
        "destination": "api",
        "implicit_namespaces": True,
        "follow_links": True,
        "separate_modules": True,
        "module_first": True,
    }
]
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
