"""How good is what a model generates, compared with real brains?"""
