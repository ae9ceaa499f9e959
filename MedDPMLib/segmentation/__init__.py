"""From a scan to a mask."""
