"""A process that keeps a model loaded and generates volumes on request; see docs/worker-protocol.md.

``python -m MedDPMLib.worker --session FOLDER`` is the worker. A client needs :mod:`MedDPMLib.worker.protocol` (the
lines) and :mod:`MedDPMLib.worker.session` (the arrays), which are light: neither imports PyTorch.
"""
