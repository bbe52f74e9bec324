"""Places where depots lie; a file here is a kind of place."""
