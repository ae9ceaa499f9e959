"""How is a model trained? :func:`MedDPMLib.train.run.train` is the way from a recipe and cases to a run's folder."""
