"""How good are synthetic volumes? Two folders compared: figures with intervals, and one report."""
