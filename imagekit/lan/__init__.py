"""A private network in this process: no root, no bridge, no port, no file."""
