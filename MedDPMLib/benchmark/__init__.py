"""How fast is it here, and what do fewer steps cost? What ``meddpm benchmark`` measures."""
