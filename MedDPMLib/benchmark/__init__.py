"""How fast is it here, and what is the effect of fewer steps? What ``meddpm benchmark`` measures."""
