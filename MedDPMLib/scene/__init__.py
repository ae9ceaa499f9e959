"""The scene of 3D Slicer: segments to labels, templates to segments, volumes to nodes.

The only part of the library that imports ``slicer`` and ``vtk``; it runs inside the application alone.
"""
