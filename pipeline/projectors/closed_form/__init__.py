"""Projectors without training: from the pairs' second moments straight to a pair of projectors, in float64.

`fit.fit_closed_form` is the door; `statistics` takes the moments once, `maps` turns them into maps for any
ridge strength.
"""
