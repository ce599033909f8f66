"""The report: run folders as one HTML file that needs nothing else."""
