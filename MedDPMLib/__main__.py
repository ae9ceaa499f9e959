"""``python -m MedDPMLib`` is ``meddpm``."""

from MedDPMLib.cli import main

main()
