"""The web application of `pipeline serve`: a JSON API over trained runs, and one page that uses it."""
