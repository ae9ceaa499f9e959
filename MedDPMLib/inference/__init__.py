"""From a mask to volumes, with their settings and a record."""
