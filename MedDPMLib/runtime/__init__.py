"""What does this machine provide? Memory, devices, files, versions."""
