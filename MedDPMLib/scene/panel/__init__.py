"""The sections of the panel from top to bottom: model, mask, run, results. The module's form gives the widgets."""
