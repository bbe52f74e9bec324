"""Formats of feeds of vulnerabilities; a file per format."""
