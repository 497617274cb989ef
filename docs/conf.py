"""Sphinx's settings for `make docs`: these pages as a site. They are written to be read as plain files as well."""

project = "dsvid"
author = "the dsvid authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "dsvid"
html_copy_source = False
# pages lead to files of the repository besides each other
suppress_warnings = ["myst.xref_missing"]
myst_heading_anchors = 3
