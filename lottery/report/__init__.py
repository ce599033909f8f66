"""The report: run folders as one HTML file that needs no other file."""
