"""Bytes, no policy: the writers of file systems, archives and partition tables."""
