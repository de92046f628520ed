"""The report: one HTML file that needs nothing beside itself.

`page` says what is on it, `render` fills the template.
"""
