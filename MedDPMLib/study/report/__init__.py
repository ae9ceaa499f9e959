"""How does a study report? One HTML file with everything in it, and a conclusion in plain words."""
