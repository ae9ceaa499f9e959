"""The sections of the panel, from top to bottom: model, mask, generate, results. The module's form gives the widgets."""
