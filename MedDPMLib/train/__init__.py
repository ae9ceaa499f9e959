"""How is a model trained? :func:`MedDPMLib.train.run.train` trains with a recipe on cases, in the folder of a run."""
