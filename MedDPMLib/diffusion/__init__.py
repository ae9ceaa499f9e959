"""How much noise is there at each step, and how does noise become an image?"""
