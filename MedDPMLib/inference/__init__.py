"""From a mask to volumes, with one set of settings and a record."""
