"""The reader study in Slicer: cases in linked views, a screen with nothing else on it, the questions."""
