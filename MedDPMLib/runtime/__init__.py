"""What does the machine offer, and how is it asked for? Memory, devices, files, versions."""
