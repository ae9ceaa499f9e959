"""How does what a model generates compare with real brains?"""
