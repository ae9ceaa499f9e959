"""How is a study told? One HTML file with everything in it, and a conclusion in plain words."""
